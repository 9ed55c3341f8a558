"""The figures of chapter 08: state in, figure out."""

import numpy as np
import torch

from course.classroom import charts, style

lines = charts.lines
CORNER = 32  # rows and columns that the explorer shows: more would take longer to draw
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)


def energy(singular_values):
    """Share, in %, of a matrix's sum of squares that its first 1, 2, 3 … directions hold."""
    squares = singular_values.double() ** 2
    return (100 * squares.cumsum(0) / squares.sum()).numpy()


def best(parts, rank):
    """(the nearest matrix of that rank, its error in % of the whole's size, the numbers it takes as B and A).

    parts: u (out, k), s (k,), vh (k, in) as torch.linalg.svd(update, full_matrices=False) gives them.
    """
    u, s, vh = parts
    error = 100 * (s[rank:].square().sum() / s.square().sum()).sqrt().item()
    return (u[:, :rank] * s[:rank]) @ vh[:rank], error, rank * (u.size(0) + vh.size(1))


def explorer(parts, rank):
    """A corner of an update of a weight, of its nearest matrix of this rank, and of what is left, on one grey scale."""
    near, error, numbers = best(parts, rank)
    whole = best(parts, len(parts[1]))[0]
    edges = {"left": 0.08, "right": 0.99, "bottom": 0.21, "top": 0.89}
    fig, ax = style.subplots(size=(6.6, 2.6), layout="none", gridspec_kw=edges)  # the controls should answer at once
    white = 2.5 * whole.square().mean().sqrt().item()
    gap = torch.full((CORNER, 4), white)
    corners = [values[:CORNER, :CORNER] for values in (whole, near, whole - near)]
    picture = torch.cat([corners[0], gap, corners[1], gap, corners[2]], 1)
    ax.imshow(picture, cmap="gray", vmin=-white, vmax=white, aspect="auto", interpolation="none")
    middles = [(CORNER + 4) * place + CORNER / 2 for place in range(3)]
    ax.set_xticks(middles, ["the update", f"its nearest matrix of rank {rank}", "what is left"])
    ax.grid(False)
    share, size = 100 * numbers / whole.numel(), f"{numbers:,} numbers, {4 * numbers / 1e3:,.0f} kB"
    ax.set_title(f"Rank {rank}: error {error:.0f} %, in {size} ({share:.0f} % of the matrix)")
    ax.set(xlabel=f"input (number, the first {CORNER})", ylabel="output (number)")
    return fig


def bars(title, xlabel, rows):
    """A bar to the mean of each row, its runs as dots where there are several; rows: name -> numbers."""
    fig, ax = style.subplots(size=(7.5, 0.9 + 0.34 * len(rows)))
    names = [*rows][::-1]
    means = [float(np.mean(rows[name])) for name in names]
    ax.barh(names, means, color=style.COLORS[5], height=0.66)
    for place, (name, mean) in enumerate(zip(names, means, strict=True)):
        if len(rows[name]) > 1:
            ax.plot(rows[name], [place] * len(rows[name]), "o", color=style.COLORS[0], markersize=3.5)
        ax.text(max(rows[name]), place, f"   {mean:.0f}", va="center")
    ax.set(title=title, xlabel=xlabel, ylabel="what is trained")
    ax.margins(x=0.12)
    return fig


def table(title, xlabel, ylabel, columns, rows, values):
    """Numbers as grey fields, dark where they are high; values: (row, column) -> number, both as named."""
    grid = np.array([[values[row, column] for column in columns] for row in rows], float)
    fig, ax = style.subplots(size=(6.4, 0.9 + 0.55 * len(rows)))
    ax.imshow(grid, cmap="Greys", vmin=0, vmax=130, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        ax.text(column, row, f"{value:.0f}", ha="center", va="center", color="white" if value > 70 else "black")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(False)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return fig


def parts_of(update):
    """The singular value decomposition of an update, as `explorer` takes it."""
    return torch.linalg.svd(update.detach(), full_matrices=False)
