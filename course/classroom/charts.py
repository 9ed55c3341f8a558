"""Charts that do not belong to one chapter: numbers in, a figure in the course's style out."""

import numpy as np

from course.classroom import style


def lines(title, xlabel, ylabel, rows, *, size=(7.5, 3.9), level=None, **settings):
    """One line a row, through the mean where an x comes several times, which are points; rows: name -> [(x, y)].

    level: (name, y) of a line to beat. settings: of the axes, such as xscale="log".
    """
    fig, ax = style.subplots(size=size)
    if level:
        ax.axhline(level[1], color="#777777", linestyle=style.DASHES[2], linewidth=1.2)
        ax.annotate(level[0], (0.005, level[1]), xycoords=("axes fraction", "data"), va="bottom")
    for place, ((name, points), marker) in enumerate(zip(rows.items(), "osD^vX*", strict=False)):
        xs = sorted({x for x, _ in points})
        means = [np.mean([y for x, y in points if x == each]) for each in xs]
        color, dash = style.COLORS[place], style.DASHES[place]
        ax.plot(xs, means, marker=marker, markersize=5, label=name, color=color, linestyle=dash)
        if len(points) > len(xs):
            ax.plot(*zip(*points, strict=True), marker, markersize=4, color=color, markerfacecolor="none")
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, **settings)
    if len(rows) > 1:
        ax.legend()
    return fig


def tables(title, panels, xlabel, ylabel):
    """Shares in % as grey fields, a table a panel; panels: name -> {row: {column: number}}."""
    tallest = max(map(len, panels.values()))
    fig, axes = style.subplots(1, len(panels), size=(8.2, 1.2 + 0.42 * tallest), squeeze=False)
    for ax, (name, rows) in zip(axes[0], panels.items(), strict=True):
        columns = list(next(iter(rows.values())))
        grid = np.array([[rows[row][column] for column in columns] for row in rows], float)
        ax.imshow(grid, cmap="Greys", vmin=0, vmax=130, aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", color="white" if value > 70 else "black")
        ax.set_xticks(range(len(columns)), columns)
        ax.set_yticks(range(len(rows)), list(rows))
        ax.grid(False)
        ax.set(title=name, xlabel=xlabel, ylabel=ylabel)
    fig.suptitle(title, x=0.01, ha="left")
    return fig


def dots(title, xlabel, ylabel, panels):
    """A row of marks for each name, one a column, and the mean as a bar; panels: name -> {row: {column: numbers}}."""
    tallest = max(map(len, panels.values()))
    fig, axes = style.subplots(1, len(panels), size=(8.2, 1.2 + 0.34 * tallest), squeeze=False, sharey=True)
    for ax, (name, rows) in zip(axes[0], panels.items(), strict=True):
        names = list(rows)[::-1]
        means = [np.mean([np.mean(values) for values in rows[row].values()]) for row in names]
        ax.barh(names, means, color="#DDDDDD", height=0.7)
        for place, column in enumerate(next(iter(rows.values()))):
            points = [np.mean(rows[row][column]) for row in names]
            look = {"color": style.COLORS[place], "marker": "osD^v"[place], "markersize": 6, "linestyle": "none"}
            ax.plot(points, names, label=column, **look)
        for mean, row in zip(means, names, strict=True):
            ax.annotate(f"{mean:.0f}", (101, row), va="center")
        ax.set(title=name, xlabel=xlabel, ylabel=ylabel, xlim=(-3, 112))
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    fig.suptitle(title, x=0.01, ha="left")
    return fig
