"""The figures of chapter 06: state in, figure out."""

import numpy as np

from course.classroom import style
from course.floats import FORMATS

FP16 = FORMATS["fp16"]
LOST = int(np.log2(FP16.smallest)) - 1  # from 2^-25 down a number is rounded to zero
FULL = FP16.max_exponent + 1  # from 2^16 up it is infinite
POWERS = np.arange(-60, 41)


def exponents(values):
    """Share of values, in %, at each of POWERS: value = 1.x · 2^power; zeros are left out."""
    values = np.abs(np.asarray(values, np.float64).ravel())
    powers = np.frexp(values[values > 0])[1] - 1
    counts = np.bincount(np.clip(powers, POWERS[0], POWERS[-1]) - POWERS[0], minlength=len(POWERS))
    return 100 * counts / max(1, counts.sum())


def lost_and_infinite(shares, log2_scale=0):
    """How much of it FP16 makes zero and infinite, in %, once all is multiplied by 2^log2_scale."""
    scaled = POWERS + log2_scale
    return shares[scaled < LOST].sum(), shares[scaled >= FULL].sum()


def _range_of_fp16(ax):
    for edges in ((POWERS[0], LOST), (FULL, POWERS[-1])):
        ax.axvspan(*edges, color="#DDDDDD", zorder=0)  # behind what is drawn
    top = ax.get_ylim()[1]
    ax.text(LOST - 0.5, 0.97 * top, "FP16 makes\nit zero", ha="right", va="top")
    ax.text(FULL + 0.5, 0.97 * top, "infinite", ha="left", va="top")
    ax.set(xlabel="size of a number (power of two)", ylabel="numbers of that size (%)")


def sizes(kinds):
    """Exponents of several kinds of numbers against FP16's range; kinds: name -> shares at POWERS."""
    fig, ax = style.subplots(size=(7.5, 3.9))
    for (name, shares), marker in zip(kinds.items(), ("s", "^", "o"), strict=False):
        ax.plot(POWERS, shares, marker=marker, markersize=4, label=name)
    ax.set(title="Weights and activations fit into FP16; gradients reach out of it at the lower end")
    ax.set(xlim=(-45, 25), ylim=(0, None))
    _range_of_fp16(ax)
    ax.legend(loc="upper left", bbox_to_anchor=(0.0, 0.8))
    return fig


def scaled_gradients(shares, log2_scale):
    """The histogram of gradients as backward leaves them when the loss is multiplied by 2^log2_scale."""
    edges = {"left": 0.09, "right": 0.98, "bottom": 0.15, "top": 0.88}
    fig, ax = style.subplots(size=(7.5, 3.6), gridspec_kw=edges)
    fig.set_layout_engine("none")  # it takes as long as all the rest, and the slider should answer at once
    lost, infinite = lost_and_infinite(shares, log2_scale)
    edges = np.arange(POWERS[0], POWERS[-1] + 2) + log2_scale
    ax.stairs(shares, edges, fill=True, color=style.COLORS[1])
    ax.set(xlim=(-45, 32), ylim=(0, 1.25 * shares.max()))
    _range_of_fp16(ax)
    fate = "the step is left out" if infinite else "the step is taken"
    ax.set_title(f"Loss scale 2^{log2_scale}: {lost:.1f} % lost, {infinite:.2g} % infinite; {fate}")
    return fig


def over_steps(runs, title, what, **settings):
    """A quantity at each step for several runs; runs: name -> numbers; what: the label of the y axis."""
    fig, ax = style.subplots(size=(7.5, 3.9))
    for name, numbers in runs.items():
        ax.plot(range(1, len(numbers) + 1), numbers, label=name)
    ax.set(title=title, xlabel="optimizer step (count)", ylabel=what, **settings)
    ax.legend()
    return fig


def qat(rows, title):
    """Exact answers for each scheme; rows: way -> {scheme: score in %}."""
    fig, ax = style.subplots(size=(7.5, 3.9))
    for place, (way, scores) in enumerate(rows.items()):
        places = np.arange(len(scores)) + (place - (len(rows) - 1) / 2) * 0.26
        look = {"color": style.COLORS[place + 1], "hatch": style.HATCHES[place], "edgecolor": "white"}
        bars = ax.bar(places, scores.values(), width=0.24, label=way, **look)
        ax.bar_label(bars, fmt="%.0f")
    ax.set_xticks(range(len(scores)), scores)
    ax.set(title=title, xlabel="scheme of the weights (name)", ylabel="exact answers (%)", ylim=(0, 130))
    ax.set_yticks(range(0, 101, 20))  # above is room for the legend
    ax.legend(loc="upper right", ncols=len(rows))
    return fig
