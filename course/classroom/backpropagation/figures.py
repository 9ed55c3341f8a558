"""The figures of chapter 02: state in, figure out."""

from course.autograd import backward_steps, graph, layout
from course.classroom import style

BLUE, ORANGE = style.COLORS[1:3]
GREY = "#888888"


def number_of_steps(result):
    """How far the graph of `result` can be walked: forward through each operation, then backward through each value."""
    return sum(bool(value.parents) for value in graph(result)) + len(graph(result))


def expression(result, step=None, title=None):
    """The graph of `result` after `step` steps: with its values, then also with the gradients.

    An edge carries its slope. The value of the last step, and the edges that it used, are drawn in heavy lines.
    step: None for the whole walk.
    """
    order, places = graph(result), layout(result)
    made = [value for value in order if value.parents]
    step = number_of_steps(result) if step is None else step
    forward = made[:step]
    known = set(forward) | {value for value in order if not value.parents}
    walk = [(value, dict(grads)) for value, grads in backward_steps(result)][: max(0, step - len(made))]
    now, grads = walk[-1] if walk else (forward[-1] if forward else None, {})
    fig, ax = _canvas(places)
    texts = {value: f"{_label(value)}\n{f'{value.data:.4g}' if value in known else '?'}" for value in order}
    for value in order:
        for operand, slope in value.parents:
            ends = [(places[end], 7 + 3.3 * max(map(len, texts[end].split("\n")))) for end in (operand, value)]
            _edge(ax, *ends, f"{slope:.3g}" if value in known else "", bool(walk), value is now)
    for value in order:
        grad = grads.get(value) if walk and (grads[value] or value in dict(walk)) else None
        _node(ax, places[value], texts[value], grad, value is now)
    ax.set_title(title or _told(step, made, walk))
    return fig


def _canvas(places):
    columns, rows = zip(*places.values(), strict=True)
    fig, ax = style.subplots(size=(1.75 * max(columns) + 2.0, 1.05 * max(rows) + 1.8))
    fig.set_layout_engine("none")  # nothing here needs arranging, and it would take most of the time
    ax.set_position([0.01, 0.01, 0.98, 0.9])
    ax.set(xlim=(-0.5, max(columns) + 0.5), ylim=(max(rows) + 0.6, -0.5))
    ax.set_axis_off()
    return fig, ax


def _edge(ax, start, end, slope, backward, heavy):
    (start, left), (end, right) = start, end  # a place, and the points from there to just outside its box
    color = (ORANGE if backward else BLUE) if heavy else GREY
    look = {"arrowstyle": "<|-" if backward else "-|>", "linestyle": "--" if backward else "-", "color": color}
    look |= {"shrinkA": left, "shrinkB": right, "linewidth": 2.6 if heavy else 1.1}
    ax.annotate("", end, start, arrowprops=look)
    middle = [(one + other) / 2 for one, other in zip(start, end, strict=True)]
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    if slope:
        ax.text(*middle, f"× {slope}" if backward else slope, ha="center", va="center", size=9, color=color, bbox=white)


def _node(ax, place, text, grad, heavy):
    box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "linewidth": 2.6 if heavy else 1}
    ax.text(*place, text, ha="center", va="center", size=10, bbox=box)
    if grad is not None:
        below = {"xytext": (0, -21), "textcoords": "offset points", "ha": "center", "va": "top"}
        ax.annotate(f"grad {grad:.4g}", place, **below, size=10, color=ORANGE, weight="bold")


def _label(value):
    both = value.name and value.operation
    return f"{value.name} ({value.operation})" if both else value.name or value.operation or "number"


def _told(step, made, walk):
    """The last step in words."""
    if not step:
        return "The leaves are given"
    if not walk:
        return f"Forward, {step} of {len(made)}: {_label(made[step - 1])} is {made[step - 1].data:.4g}"
    value, grads = walk[-1]
    told = "multiplies its {} by each slope and sends it on" if value.parents else "is a leaf; its gradient is now {}"
    return f"Backward, {len(walk)}: {_label(value)} {told.format(f'{grads[value]:.4g}')}"


def losses(ours, theirs):
    """The loss of each step of the network built of Values, and of the one in torch."""
    fig, ax = style.subplots()
    ax.plot(ours, label="Value, one number at a time")
    ax.plot(range(0, len(theirs), 5), theirs[::5], linestyle="none", marker="o", label="torch, every fifth step")
    ax.set(title="Two engines, the same losses", xlabel="step (count)", ylabel="mean squared error (squared units)")
    ax.legend()
    return fig


def _bar(index):
    return {"color": style.COLORS[index + 1], "hatch": style.HATCHES[index], "edgecolor": "white"}


def kept(parts):
    """What a block keeps; parts: name -> (numbers a token while gradients pass, those for its own weights)."""
    fig, ax = style.subplots()
    names = list(parts)[::-1]
    left = [0] * len(names)
    for index, label in enumerate(["to pass the gradient on", "only to train the block's weights"]):
        widths = [parts[name][index] for name in names]
        ax.barh(names, widths, left=left, label=label, **_bar(index))
        left = widths
    ax.set(title="The feed-forward part keeps more than half", xlabel="kept (numbers per token)", ylabel="part")
    ax.legend()
    return fig


def predictions(panels):
    """Predicted beside measured. panels: for each a title, an x label and a dict name -> (predicted, measured)."""
    fig, axes = style.subplots(1, len(panels), size=(11.0, 3.9), sharey=True)
    for ax, (title, label, rows) in zip(axes, panels, strict=True):
        for index, said in enumerate(["predicted", "measured"]):
            places = [place - 0.2 + 0.4 * index for place in range(len(rows))]
            bars = ax.barh(places, [pair[index] for pair in rows.values()], height=0.38, label=said, **_bar(index))
            ax.bar_label(bars, fmt="%.0f", padding=2)
        ax.set(title=title, xlabel=label)
        ax.margins(x=0.15)
        ax.yaxis.set_visible(ax is axes[0])
    axes[0].set_yticks(range(len(rows)), list(rows))
    axes[0].set_ylabel("trained (parts)")
    axes[0].invert_yaxis()
    axes[-1].legend(loc="lower right")
    return fig
