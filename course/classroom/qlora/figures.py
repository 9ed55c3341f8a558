"""The figures of chapter 10: state in, figure out."""

from functools import partial

import numpy as np
import torch

from course.classroom import charts, style
from course.quantization import quantize_absmax, quantize_fp4, quantize_nf4

lines = partial(charts.lines, size=(7.5, 3.8))
SCHEMES = {
    "NF4": quantize_nf4,
    "FP4": quantize_fp4,
    "INT4": lambda rows, block_size: quantize_absmax(rows, bits=4, group_size=block_size),
}


def samples(kind, count=2**16, seed=0):
    """(count,) numbers of a distribution: "normal", "uniform", "Laplace" or "Student's t", of 3 degrees of freedom."""
    dice = torch.Generator().manual_seed(seed)
    draw = partial(torch.rand, count, generator=dice)
    if kind == "uniform":
        return 2 * draw() - 1
    if kind == "Laplace":
        return -(2 * draw() - 1).sign() * torch.log1p(-draw())
    normal = torch.randn(count, generator=dice)
    return normal if kind == "normal" else normal / torch.randn(3, count, generator=dice).square().mean(0).sqrt()


def judged(numbers, scheme, block_size=64):
    """(error in % of the numbers' size, the information of a code in bits); scheme: of SCHEMES."""
    rows = numbers.reshape(-1)[: numbers.numel() // block_size * block_size].view(-1, block_size)
    quantized = SCHEMES[scheme](rows, block_size=block_size)
    shares = quantized.unpacked().reshape(-1).unique(return_counts=True)[1] / rows.numel()
    error = 100 * (quantized.dequantize() - rows).norm() / rows.norm()
    return error.item(), -(shares * shares.log2()).sum().item()


def levels(scheme):
    """The levels of a scheme over its largest."""
    unique = sorted({level for level in SCHEMES[scheme](torch.ones(64), block_size=64).levels})
    return [level / unique[-1] for level in unique if abs(level) <= unique[-1]]  # INT4's −8 is not used


def explorer(numbers, name, scheme="NF4", block_size=64):
    """How often each size occurs in a block, over its largest, and where a scheme's levels stand."""
    edges = {"left": 0.09, "right": 0.98, "bottom": 0.16, "top": 0.89}
    fig, ax = style.subplots(size=(7.5, 3.4), layout="none", gridspec_kw=edges)  # the controls should answer at once
    rows = numbers.reshape(-1)[: numbers.numel() // block_size * block_size].view(-1, block_size)
    over = (rows / rows.abs().amax(1, keepdim=True).clamp(min=1e-30)).flatten()
    heights = torch.histc(over, 60, -1, 1) / over.numel() * 100
    ax.stairs(heights.numpy(), np.linspace(-1, 1, 61), fill=True, color="#CCCCCC")
    top = 1.15 * heights[1:-1].max().item()  # a block's largest is always at 1 or −1, which would dwarf the rest
    ax.vlines(levels(scheme), 0, top, color=style.COLORS[1], linewidth=1.2)
    error = judged(numbers, scheme, block_size)[0]
    ax.set_title(f"{scheme}, {name}, blocks of {block_size}: error {error:.1f} % of the numbers' size")
    ax.set(xlabel="number over the largest of its block (ratio)", ylabel="numbers (%)", ylim=(0, top))
    return fig


def bars(title, xlabel, ylabel, rows, digits=0):
    """A bar to the mean of each row, and its runs as dots where there are several; rows: name -> numbers."""
    fig, ax = style.subplots(size=(7.5, 0.9 + 0.4 * len(rows)))
    names = [*rows][::-1]
    means = [float(np.mean(rows[name])) for name in names]
    ax.barh(names, means, color=style.COLORS[5], height=0.65)
    for place, (name, mean) in enumerate(zip(names, means, strict=True)):
        if max(map(len, rows.values())) > 1:
            ax.plot(rows[name], [place] * len(rows[name]), "o", color=style.COLORS[0], markersize=3.5)
        beyond = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(f"{mean:.{digits}f}", (max(rows[name]), place), **beyond)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.margins(x=0.12)
    return fig
