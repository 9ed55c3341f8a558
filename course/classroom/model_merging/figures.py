"""The figures of chapter 11: state in, figure out."""

import math

import numpy as np
import torch

from course.classroom import style
from course.merging import arc_weights

MODELS = torch.tensor(  # eight weights of three models less their base: what the explorer of TIES shows
    [[0.9, -0.3, 0.5, 0.1, -0.7, 0.2, 0.4, -0.15], [0.4, 0.8, -0.6, 0.2, -0.5, -0.1, 0.0, 0.3],
     [-1.0, 0.6, 0.3, -0.2, -0.1, 0.7, -0.5, 0.25]]
)  # fmt: skip


def between(angle, t, length=1.0):
    """Where the straight line and the arc are at t, from a = (1, 0) to b of this length at this angle in degrees.

    Returns (a, b, on the line, on the arc), each (2,).
    """
    theta = math.radians(angle)
    a, b = np.array([1.0, 0.0]), length * np.array([math.cos(theta), math.sin(theta)])
    first, second = arc_weights(math.cos(theta), t)
    return a, b, (1 - t) * a + t * b, first * a + second * b


def arc(angle=90, t=0.5, length=1.0):
    """The line and the arc between two vectors, and a point on each."""
    edges = {"left": 0.13, "right": 0.97, "bottom": 0.16, "top": 0.88}
    fig, ax = style.subplots(size=(6.4, 3.9), layout="none", gridspec_kw=edges)  # the controls should answer at once
    a, b, line, curve = between(angle, t, length)
    steps = [between(angle, s, length)[2:] for s in np.linspace(0, 1, 40)]
    for name, points, place in (("straight line", line, 0), ("arc", curve, 1)):
        size = float(np.hypot(*points))
        ax.plot(*zip(*(step[place] for step in steps), strict=True), label=f"point on the {name}: length {size:.3f}")
        ax.plot(*points, "os"[place], color="black", markerfacecolor=style.COLORS[place], markersize=9)
    for name, end in (("a", a), ("b", b)):
        ax.plot(*zip((0, 0), end, strict=True), color="#777777", linestyle="-", linewidth=1)
        ax.annotate(name, end * 1.06)
    lost = 100 * (1 - np.hypot(*line) / np.hypot(*curve))
    ax.set(
        title=f"At {angle}° and t = {t:g} the line's point is {lost:.0f} % shorter",
        xlim=(-1.6, 1.9),
        ylim=(-0.25, 1.7),
    )
    ax.set(xlabel="first number (weight)", ylabel="second number (weight)")
    ax.legend(loc="upper left")
    return fig


def ties_steps(density, weights, models=MODELS):
    """TIES on a few numbers: (trimmed and weighted changes, elected signs, who agrees, the merged change).

    models: (count, numbers), less their base.
    """
    kept = int(density * models.shape[1])
    least = models.abs().sort(1, descending=True)[0][:, max(kept, 1) - 1 : max(kept, 1)]
    trimmed = models * (models.abs() >= least) * (kept > 0)
    weights = torch.tensor(weights)[:, None]
    total = (trimmed * weights).sum(0)
    signs = torch.where(total >= 0, 1, -1)
    agree = (trimmed * weights).sign() == signs
    divisor = (agree * weights).sum(0)
    return trimmed, signs, agree, (trimmed * weights * agree).sum(0) / torch.where(divisor == 0, 1, divisor)


def _write(ax, row, texts, **look):
    """Texts of a table's row as one, each in the middle of eight places: far quicker to draw than one by one."""
    filled = [place for place, text in enumerate(texts) if text]
    if filled:
        told = "".join(f"{text:^8}" for text in texts[filled[0] : filled[-1] + 1]).rstrip()
        ax.text(filled[0] - 0.5, row, told, va="center", family="monospace", **look)


def _signed(value):
    return f"{value:+.2g}" if value else "0"


def ties(density=0.5, weights=(1.0, 1.0, 1.0), models=MODELS):
    """The steps as a table: what is trimmed is grey, what the election overrules is in brackets."""
    trimmed, signs, agree, merged = ties_steps(density, weights, models)
    edges = {"left": 0.22, "right": 0.99, "bottom": 0.17, "top": 0.87}
    fig, ax = style.subplots(size=(7.4, 3.4), layout="none", gridspec_kw=edges)
    gone = trimmed == 0
    plain = (models * torch.tensor(weights)[:, None]).sum(0) / (sum(weights) or 1)
    for row, changes in enumerate(models):
        marked = zip(map(_signed, changes), agree[row] | gone[row], strict=True)
        told = [text if in_force else f"({text})" for text, in_force in marked]
        for color, hidden in (("black", gone[row]), ("#999999", ~gone[row])):
            _write(ax, row, ["" if hide else each for each, hide in zip(told, hidden, strict=True)], color=color)
    elected = ["+" if sign > 0 else "−" for sign in signs]
    told = [mark if kept else "" for mark, kept in zip(elected, (~gone).any(0), strict=True)]
    for row, texts in enumerate((told, map(_signed, merged), map(_signed, plain)), len(weights)):
        bold = "bold" if row == len(weights) + 1 else "normal"
        _write(ax, row, list(texts), weight=bold)
    for line in (len(weights) - 0.5, len(weights) + 0.5):
        ax.axhline(line, color="#777777", linewidth=0.8, linestyle="-")
    names = [f"model {i + 1}, weight {w:g}" for i, w in enumerate(weights)]
    names += ["elected sign", "merged", "plain average"]
    ax.set_xticks(range(models.shape[1]), range(1, models.shape[1] + 1))
    ax.set_yticks(range(len(names)), names)
    ax.grid(False)
    wide = 0.77 * 7.4 * style.STYLE["savefig.dpi"] / 80  # columns that fit: eight letters of this font are 80 dots
    ax.set(xlim=(-0.5, wide - 0.5), ylim=(len(names) - 0.5, -0.5), xlabel="weight (number)", ylabel="step (in order)")
    overruled = int((~gone & ~agree).sum())
    title = f"{int(gone.sum())} of {models.numel()} trimmed (grey), {overruled} overruled (in brackets)"
    ax.set_title(f"Density {density:g}: {title}")
    return fig
