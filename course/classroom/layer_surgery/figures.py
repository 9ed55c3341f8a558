"""The figure of chapter 12's explorer: losses of stacks in, figure out."""

import numpy as np

from course.classroom import style


def stacks(losses, end, begin):
    """The loss of every stack of two slices, 0 to `end` and `begin` to the last, with a frame around the chosen one.

    losses: (end, begin) -> nats a token, for ends from 1 to the number of layers and begins from 0 to one less.
    """
    layers = max(end for end, _ in losses)
    grid = np.array([[losses[row + 1, column] for column in range(layers)] for row in range(layers)])
    edges = {"left": 0.12, "right": 0.97, "bottom": 0.16, "top": 0.88}
    fig, ax = style.subplots(size=(6.4, 4.2), layout="none", gridspec_kw=edges)  # the controls should answer at once
    ax.imshow(np.log(grid), cmap="Greys", vmax=np.log(grid.max()) * 1.3, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        if row != end - 1 and column != begin:
            continue  # each number takes time to draw
        light = value > 0.45 * grid.max()
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if light else "black")
    x, y = begin - 0.5, end - 1.5
    ax.plot([x, x + 1, x + 1, x, x], [y, y, y + 1, y + 1, y], color=style.COLORS[2], linestyle="-", linewidth=3)
    ax.set_xticks(range(layers), range(layers))
    ax.set_yticks(range(layers), range(1, layers + 1))
    ax.grid(False)
    count = end + layers - begin
    ax.set(
        title=f"0 to {end} and {begin} to {layers}: {count} layers, {losses[end, begin]:.2f} nats a token",
        xlabel="second slice begins at (layer)",
        ylabel="first slice ends before (layer)",
    )
    return fig
