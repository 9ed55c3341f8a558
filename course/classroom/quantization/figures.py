"""The figures of chapter 05: state in, figure out."""

import torch

from course.classroom import style
from course.quantization import quantize_absmax, quantize_affine

NUMBERS = 512  # in the explorer's row
# of schemes in the chart: what a scheme's name begins with -> how it is drawn
FAMILIES = dict(zip(("one scale", "row", "group", "affine", "MX", "codebook", "ternary"), "osD^PXv", strict=True))


def explored(bits, group_size, symmetric, outlier):
    """The explorer's row of weights, what becomes of it, the error in % of the row's size, and bits a weight.

    One weight near the middle is `outlier` standard deviations; 0 leaves it as it was drawn.
    """
    row = torch.randn(1, NUMBERS, generator=torch.Generator().manual_seed(5))
    clean = row.clone()
    if outlier:
        row[0, NUMBERS // 2 + 5] = outlier
    quantized = (quantize_absmax if symmetric else quantize_affine)(row, bits, group_size)
    ordinary = clean == row  # the outlier itself is not counted: it comes out well
    restored = quantized.dequantize()
    error = (restored - row)[ordinary].square().mean().sqrt() / row[ordinary].square().mean().sqrt()
    return row, quantized, 100 * error.item(), quantized.bits_per_weight


def explorer(bits=4, group_size=64, symmetric=True, outlier=8):
    """A row of weights as a histogram, and under it the levels that each of the first groups can hold."""
    row, quantized, error, stored = explored(bits, group_size, symmetric, outlier)
    edges = {"left": 0.09, "right": 0.98, "bottom": 0.14, "top": 0.9, "hspace": 0.12}
    fig, (top, low) = style.subplots(2, size=(7.8, 4.0), sharex=True, gridspec_kw=edges)
    fig.set_layout_engine("none")  # it takes as long as all the rest, and a slider should show at once
    counts, places = row[0].histogram(80)
    top.stairs(counts, places, fill=True, color=style.COLORS[1])  # 80 bars would take four times as long
    top.set_title(f"{stored:.2f} bits a weight, and an error of {error:.2g} % of their size")
    top.set_ylabel("weights (count)")
    top.xaxis.set_visible(False)
    scales = quantized.scale.flatten()
    zeros = torch.zeros_like(scales) if symmetric else quantized.zero_point.flatten().float()
    codes = torch.arange(1 - 2 ** (bits - 1), 2 ** (bits - 1)) if symmetric else torch.arange(2**bits)
    struck = (NUMBERS // 2 + 5) // group_size
    shown = sorted({*range(min(6, len(scales))), struck})
    for place, group in enumerate(shown):
        levels = (codes - zeros[group]) * scales[group]
        color = style.COLORS[2 if group == struck and outlier else 0]
        low.plot(levels, torch.full(levels.shape, place), "|", markersize=12, markeredgewidth=0.9, color=color)
    low.set_yticks(range(len(shown)), [f"{group}" for group in shown])
    low.set(xlabel="weight, and the levels of its group (standard deviations)", ylabel="group (number)")
    low.set_ylim(-0.7, len(shown) - 0.3)
    return fig


def chart(title, points, full):
    """Perplexity and exact match against bits a weight; an arrow marks a perplexity above ten times the full model's.

    points: (family, bits a weight, perplexity, exact match in %); full: the last two of the whole model.
    """
    fig, axes = style.subplots(2, size=(7.5, 6.8))
    ceiling = 10 * full[0]
    for index, ax in enumerate(axes):
        ax.axhline(full[index], color="#777777", linestyle=style.DASHES[2])
        ax.text(1.5, full[index], "FP32", va="bottom", color="#444444")
        for place, (family, marker) in enumerate(FAMILIES.items()):
            mine = sorted((bits, scores[index]) for kind, bits, *scores in points if kind == family)
            above = [bits for bits, score in mine if index == 0 and score > ceiling]
            line = "-" if family in ("one scale", "row", "group", "affine") else "none"
            look = {"color": style.COLORS[place], "linewidth": 0.8, "markerfacecolor": "none", "marker": marker}
            if mine:
                inside = [point for point in mine if point[0] not in above]
                ax.plot(
                    [bits for bits, _ in inside], [score for _, score in inside], label=family, linestyle=line, **look
                )
            ax.plot(above, [ceiling] * len(above), linestyle="none", **look)
            ax.plot(above, [1.25 * ceiling] * len(above), linestyle="none", **look | {"marker": r"$\uparrow$"})
        ax.set_xlabel("bits a weight, scales included (count)")
    axes[0].set(title=title, yscale="log", ylabel=f"perplexity (log scale; arrow: above {ceiling:.0f})")
    ticks = [tick for tick in (2, 2.5, 3, 4, 5, 7, 10, 15, 20, 30) if full[0] < 1.05 * tick < 1.1 * ceiling]
    axes[0].set_yticks(ticks, ticks, minor=False)
    axes[0].minorticks_off()
    axes[0].legend(ncols=2)
    axes[1].set(ylabel="exactly right (% of letters)", ylim=(-4, 104))
    return fig


def bars(title, xlabel, rows, digits=0):
    """One bar a row; rows: name -> number, written with so many digits after the point."""
    fig, ax = style.subplots(size=(7.5, 0.7 + 0.48 * len(rows)))
    drawn = ax.barh([*reversed(rows)], [*reversed(rows.values())], color=style.COLORS[1], height=0.65)
    ax.bar_label(drawn, fmt=f"%.{digits}f", padding=3)
    ax.set(title=title, xlabel=xlabel, ylabel="model")
    ax.margins(x=0.12)
    return fig


def lines(title, xlabel, ylabel, x, rows, log=False, parts=0):
    """One line for each row; rows: name -> numbers, as many as x. parts: points alone, and a rule after so many."""
    fig, ax = style.subplots(size=(7.5, 3.9))
    for (name, values), marker in zip(rows.items(), "osDX", strict=False):
        ax.plot(x, values, marker=marker, label=name, linestyle="none" if parts else None)
    for start in x[parts::parts] if parts else ():
        ax.axvline(start - 0.5, color="#777777", linestyle="-", linewidth=0.8)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    ax.legend(ncols=3 if parts else 1)
    return fig
