"""The figures of chapter 00: state in, figure out."""

from course.classroom import style


def loss_curve(losses, validation):
    """The loss of every optimizer step, and of the validation set where it was measured ([step, loss] pairs)."""
    fig, ax = style.subplots()
    ax.plot(range(1, len(losses) + 1), losses, label="training, every step")
    steps, values = zip(*validation, strict=True)
    ax.plot(steps, values, linestyle="none", marker="s", label="validation, letters not trained on")
    ax.set(
        title="The loss falls below a hundredth of where it began",
        yscale="log",
        xlabel="optimizer step (count)",
        ylabel="loss (nats per token, log scale)",
    )
    ax.legend()
    return fig


def scores(rows):
    """Share of exact answers and of the right form for each model; rows: name -> (exact, right form), from 0 to 1."""
    fig, ax = style.subplots()
    places = range(len(rows))
    for offset, index, label in ((-0.2, 0, "exactly right"), (0.2, 1, "right form")):
        bars = ax.bar(
            [place + offset for place in places],
            [100 * row[index] for row in rows.values()],
            width=0.38,
            color=style.COLORS[index + 1],
            hatch=style.HATCHES[index],
            edgecolor="white",
            label=label,
        )
        ax.bar_label(bars, fmt="%.0f")
    ax.set_xticks(list(places), list(rows))
    ax.set(
        title="Shuffled answers teach the form and nothing else",
        xlabel="model (trained on)",
        ylabel="test letters (%)",
        ylim=(0, 112),
    )
    ax.legend(loc="upper left")
    return fig
