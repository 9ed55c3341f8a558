"""The figures of chapter 09: state in, figure out."""

import numpy as np

from course.classroom import style


def held(customers, rank, side):
    """Bytes of one square matrix for many customers, in BF16: (a merged copy each, one base and an adapter each)."""
    full, adapter = 2 * side * side, 2 * rank * 2 * side
    return customers * full, full + customers * adapter


def storage(customers=100, rank=8, side=4096):
    """Bytes against the number of customers, merged and apart, and a rule at the number that was chosen."""
    edges = {"left": 0.1, "right": 0.98, "bottom": 0.15, "top": 0.9}
    fig, ax = style.subplots(size=(7.5, 3.7), layout="none", gridspec_kw=edges)  # the controls should answer at once
    counts = np.geomspace(1, 1000, 40)
    for name, values in zip(("a merged copy each", "one base, adapters apart"), held(counts, rank, side), strict=True):
        ax.plot(counts, values / 1e9, label=name)
    ax.axvline(customers, color="#777777", linestyle="-", linewidth=0.8)
    merged, apart = held(customers, rank, side)
    ratio = merged / apart
    least = f"{max(ratio, 1 / ratio):.4g} times {'fewer' if ratio > 1 else 'as many'} bytes when apart"
    ax.set(title=f"{customers:,} customers, {side:,} × {side:,}, rank {rank}: {least}", xscale="log", yscale="log")
    ax.set(xlabel="customers (count, log scale)", ylabel="one matrix for all (GB, log scale)")
    ax.minorticks_off()  # these and powers of ten take longer to draw than all the rest
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend(loc="upper left")
    return fig


def bars(title, xlabel, ylabel, rows, digits=0):
    """One bar a row; rows: name -> number, written with so many digits after the point."""
    fig, ax = style.subplots(size=(7.5, 0.9 + 0.48 * len(rows)))
    drawn = ax.barh([*reversed(rows)], [*reversed(rows.values())], color=style.COLORS[1], height=0.65)
    ax.bar_label(drawn, fmt=f"%.{digits}f", padding=3)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.margins(x=0.12)
    return fig


def drift(rows, title):
    """How far weights are from where they were, after each swap; rows: name -> numbers in %."""
    fig, ax = style.subplots(size=(7.5, 3.7))
    for (name, values), marker in zip(rows.items(), "os", strict=False):
        ax.plot(range(1, len(values) + 1), values, label=name, marker=marker, markersize=3)
    ax.set(title=title, xlabel="swaps (count)", ylabel="drift (% of the weights' size, log scale)", yscale="log")
    ax.legend(loc="center right")
    return fig
