"""The figures of chapter 04: state in, figure out."""

import numpy as np
from matplotlib.colors import ListedColormap

from course.classroom import style
from course.floats import FORMATS, bit_text, decode, encode, formula, spacing


def label(name):
    """A format as the text writes it: FP8 E4M3."""
    return name.upper().replace("_", " ")


def held(value, name):
    """The code that a value gets and the number it stands for; (None, NaN) for a NaN in a format without one."""
    if np.isnan(value) and FORMATS[name].nan_code is None:
        return None, np.nan
    code = int(encode(value, name))
    return code, float(decode(code, name))


def bit_explorer(value, name):
    """A number in one format: its bits, and where it falls between the neighbours."""
    fmt, (code, got) = FORMATS[name], held(value, name)
    edges = {"left": 0.02, "right": 0.98, "bottom": 0.19, "top": 0.82, "hspace": 0.15}
    fig, (top, line) = style.subplots(2, size=(8.6, 2.9), height_ratios=(3, 2), gridspec_kw=edges)
    fig.set_layout_engine("none")  # it takes as long as all the rest, and a click should show at once
    top.axis("off")
    line.set(yticks=[], xlabel="the number and its neighbours in the format (value)")
    if code is None:
        fig.suptitle(f"{label(name)} has no code for NaN", x=0.02, ha="left")
        line.axis("off")
        return fig
    error = f", off by {abs(got - value) / abs(value):.2g} of it" if got != value and np.isfinite(value - got) else ""
    exactly = "exactly " * (got == value and name != "fp64")  # FP64 is what it came in
    fig.suptitle(f"{value:.12g} in {label(name)} is {exactly}{got:.12g}{error}", x=0.02, ha="left")
    parts = np.repeat([0, 1, 2], [fmt.signed, fmt.exponent_bits, fmt.mantissa_bits])
    colors = ListedColormap([style.COLORS[0], style.COLORS[1], "#DDDDDD"])
    top.pcolormesh(parts[None, :], cmap=colors, vmin=0, vmax=2, edgecolors="white", linewidth=2)
    for place, bit in enumerate(f"{code:0{fmt.bits}b}"):
        top.text(place + 0.5, 0.5, bit, ha="center", va="center", color="black" if parts[place] == 2 else "white")
    top.set_title(f"sign (black), exponent (blue), mantissa (grey):   {formula(code, fmt)}", fontsize=10.5)
    size = min(code & 2 ** (fmt.bits - fmt.signed) - 1, fmt.max_code + 1)  # NaN and infinity are beside the largest
    numbers = np.copysign(decode([near for near in (size - 1, size, size + 1) if 0 <= near <= fmt.max_code], fmt), got)
    centre, gap = (got, spacing(got, fmt)) if np.isfinite(got) else (numbers[0], 1.0)
    places = (numbers - centre) / gap  # in steps: FP64 could not tell its own neighbours apart on an axis
    line.plot(places, 0 * places, "|", markersize=22, color="black")
    if min(numbers) <= value <= max(numbers):
        line.plot([(value - centre) / gap], [0], "v", markersize=9, color=style.COLORS[2])
    line.set(xticks=places, xticklabels=[repr(float(number)) for number in numbers], xlim=(-1.3, 1.3))
    return fig


def same_number(value):
    """An HTML table of what every format makes of a value."""
    rows = [("format", "bits", "it holds", "error", "spacing there")]
    for name in FORMATS:
        code, got = held(value, name)
        error = f"{(got - value) / abs(value):+.2%}" if value and np.isfinite(got - value) else ""
        gap = f"{spacing(got, name):.3g}" if np.isfinite(got) else ""
        rows.append((label(name), "no NaN" if code is None else bit_text(code, name), f"{got:.12g}", error, gap))
    look = "font-family: monospace; white-space: nowrap; text-align: left"
    cells = ["".join(f"<td style='{look}'>{cell}</td>" for cell in row) for row in rows]
    return f"<table><tr>{'</tr><tr>'.join(cells)}</tr></table>"


def ranges(names):
    """What each format reaches, in powers of two, and into how many steps it divides each of them."""
    fig, ax = style.subplots(size=(7.5, 3.9))
    for fmt in (FORMATS[name] for name in reversed(names)):
        low, normal, high = np.log2([fmt.smallest, fmt.smallest_normal, fmt.max])
        ax.barh(label(fmt.name), high - normal, left=normal, color=style.COLORS[1])
        ax.barh(label(fmt.name), normal - low, left=low, color="white", edgecolor=style.COLORS[1], hatch="////")
        ax.text(high + 4, label(fmt.name), f"{2**fmt.mantissa_bits:,} steps", va="center")
    ax.set(title="Exponent bits buy range, mantissa bits buy steps to the next power of two", ylabel="format (name)")
    ax.set(xlabel="size of a number (log₂); hatched: subnormal", xlim=(-155, 215))
    return fig


def number_lines(names):
    """All finite numbers of small formats: on a linear stretch around zero, and on a scale of powers of two."""
    fig, axes = style.subplots(2, size=(8.6, 5.6))
    for ax in axes:
        for name in reversed(names):
            numbers = decode(np.arange(2 ** FORMATS[name].bits), name)
            ax.plot(numbers, [label(name)] * len(numbers), "|", markersize=20, markeredgewidth=0.8, color="black")
        ax.set(ylabel="format (name)", ymargin=0.15)
    axes[0].set(xlim=(-8.2, 8.2), title="The gaps double at every power of two", xlabel="number (linear scale)")
    axes[1].set_xscale("log", base=2)
    axes[1].set(xlim=(2.0**-17, 2.0**17), xlabel="number above zero (log₂ scale)")
    axes[1].set_title("More exponent bits reach further and leave fewer numbers to each power of two")
    return fig


def spacing_and_update(update, name):
    """Spacing and half spacing of a format against the weight, and where an update is lost."""
    weights = 2.0 ** np.arange(-6, 3, 1 / 64)
    gaps = spacing(weights, name)
    first = weights[gaps / 2 > update][0]
    fig, ax = style.subplots()
    ax.loglog(weights, gaps, base=2, label="spacing")
    ax.plot(weights, gaps / 2, label="half of it: what an update must exceed")
    ax.axhline(update, color=style.COLORS[2], linestyle=style.DASHES[2], label=f"an update of {update:g}")
    ax.axvspan(first, weights[-1], color="#EEEEEE")
    near = gaps[weights < first][-1] / 2  # too near to the update to be told apart from it by eye
    ax.annotate(f"{update} > {near:.2g}", (0.7 * first, near), (1.5 * first, near / 6), arrowprops={"arrowstyle": "->"})
    title = f"{label(name)}'s spacing doubles at every power of two:\nan update of {update:g} is lost from {first:g} up"
    ax.set(title=title, xlabel="weight (number, log₂ scale)", ylabel="distance (number, log₂ scale)")
    ax.legend(loc="upper left")
    return fig


def unmoved(rates, lines):
    """Share of weights that a step leaves as they were, in %; lines: name -> shares, two predicted, two measured."""
    fig, ax = style.subplots()
    for (name, shares), look in zip(lines.items(), ("-", "--", "o", "s"), strict=True):
        ax.plot(rates, shares, look, markersize=9, fillstyle="none", label=name)
    ax.set(title="At the learning rates of finetuning, most weights do not move in BF16", xscale="log")
    ax.set(xlabel="learning rate (number, log scale)", ylabel="weights that did not move (%)", ylim=(-4, 104))
    ax.legend(loc="center left")
    return fig


def disagreement(names, columns):
    """Places with another likeliest token once the weights are rounded, in %; columns: two names -> their shares."""
    fig, ax = style.subplots(size=(7.5, 3.9))
    for (what, shares), marker in zip(columns.items(), "ox", strict=True):
        ax.plot([*map(label, names)], shares, marker, markersize=11, fillstyle="none", label=what)
    ax.set(title="FP4 needs a scale; FP8 does not", yscale="log", ylim=(1, 120))
    ax.set_yticks([1, 3, 10, 30, 100], [1, 3, 10, 30, 100])
    ax.set(xlabel="format of the weights (name)", ylabel="places with another\nlikeliest token (%, log scale)")
    ax.legend(loc="upper left")
    return fig
