"""The figures of chapter 03: state in, figure out."""

from course.classroom import style
from course.lab.planner import RESERVE
from course.memory import inference_memory, training_memory

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "overhead")
SHADES = ("#08306b", "#2171b5", "#6baed6", "#d95f0e", "#fec44f", "#f7f7f7")


def moments(memory, gpu=None, name=""):
    """The parts that are alive at each moment of a training step, stacked; gpu: bytes of the GPU.

    A part that stays below half a percent of the peak cannot be seen, and is left out.
    """
    fig, ax = style.subplots(size=(7.0, 4.3), layout="none")  # the widget has to answer at once
    ax.set_position([0.11, 0.19, 0.64, 0.69])
    names = list(memory.moments)
    bottoms = [0.0] * len(names)
    for part, shade, hatch in zip(PARTS, SHADES, style.HATCHES, strict=False):
        heights = [memory.moments[moment].parts[part] / 2**30 for moment in names]
        seen = [place for place, height in enumerate(heights) if height]  # drawing nothing takes as long as a bar
        if max(heights) * 2**30 < memory.total / 200:
            continue
        look = {"label": part, "color": shade, "hatch": hatch, "edgecolor": "black", "linewidth": 0.6}
        places, low = [names[place] for place in seen], [bottoms[place] for place in seen]
        ax.bar(places, [heights[place] for place in seen], bottom=low, **look)
        bottoms = [low + high for low, high in zip(bottoms, heights, strict=True)]
    most = max(bottoms)
    if gpu:
        room = (gpu - RESERVE) / 2**30
        ax.axhline(room, color="black", linestyle="--", label=f"the GPU,\nless {RESERVE / 2**30:g} GiB")
        most = max(most, room)
    verdict = "" if not gpu else ": it fits" if memory.total + RESERVE <= gpu else ": it does not fit"
    title = f"{name} needs {memory.total / 2**30:,.1f} GiB,\nat the moment “{memory.peak}”{verdict}"
    ax.set(title=title.strip(), xlabel="moment of a step", ylabel="bytes alive (GiB)", ylim=(0, 1.08 * most))
    ax.tick_params(axis="x", labelrotation=20)
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=1, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def where_the_rule_breaks(cases, contexts):
    """Total over weights against the context, for (model, batch) cases; the rule of thumb says 1.2."""
    fig, ax = style.subplots()
    for (model, batch), mark in zip(cases, "osv^", strict=False):
        ratios = []
        for seq in contexts:
            memory = inference_memory(model, "bf16", batch, seq)
            ratios.append(memory.total / memory.weights)
        ax.plot(contexts, ratios, marker=mark, markevery=3, label=f"{model}, batch {batch}")
    ax.axhline(1.2, color="grey", linestyle=":", linewidth=2.5, label="the rule of thumb")
    ax.set(
        title="× 1.2 is a guess at the context: it holds for one length",
        xscale="log",
        yscale="log",
        xlabel="context (tokens, log)",
        ylabel="memory over weights (ratio, log)",
    )
    ax.set_yticks([1, 1.2, 1.5, 2, 3, 5, 10], ["1", "1.2", "1.5", "2", "3", "5", "10"])
    ax.minorticks_off()
    ax.legend(loc="upper left")
    return fig


def checkpointing(rows):
    """Peak bytes, predicted and measured, and seconds for each block size; rows: (label, predicted, measured, s)."""
    fig, (left, right) = style.subplots(1, 2, size=(8.0, 3.8))
    labels, predicted, measured, seconds = zip(*rows, strict=True)
    places = range(len(rows))
    for offset, sizes, label, color, hatch in (
        (-0.2, predicted, "predicted", style.COLORS[1], ""),
        (0.2, measured, "measured", style.COLORS[6], ".."),
    ):
        heights = [size / 2**20 for size in sizes]
        left.bar([p + offset for p in places], heights, 0.38, color=color, hatch=hatch, edgecolor="white", label=label)
    left.set(title="One layer a block saves most …", ylabel="peak (MiB)", xlabel="layers in a block (count)")
    left.set_ylim(0, 1.3 * max(*predicted, *measured) / 2**20)
    left.legend(loc="upper right", ncols=2)
    right.bar(places, [s / seconds[0] for s in seconds], 0.6, color=style.COLORS[3])
    right.set(title="… and any block costs a forward pass", ylabel="time of a step (times none's)")
    right.set_xlabel("layers in a block (count)")
    for ax in (left, right):
        ax.set_xticks(list(places), labels)
    return fig


def planned(model, method, optimizer, precision, batch, seq, checkpointing, devices, sharding, gpu_gib):
    """The planner's figure for one state of its controls; the sharding counts from two devices on.

    Raises:
        ValueError: settings that do not go together.
    """
    settings = {"optimizer": optimizer, "batch": batch, "seq": seq, "checkpointing": checkpointing}
    several = {"devices": devices, "sharding": sharding} if devices > 1 else {}
    memory = training_memory(model, method, precision=precision, **settings, **several)
    each = f", each of {devices} devices" if several else ""
    fig = moments(memory, gpu_gib * 2**30, f"{model}, {method}{each}")
    if memory.paged >= 2**30 / 20:
        fig.axes[0].set_xlabel(f"moment of a step ({memory.paged / 2**30:,.1f} GiB of paged states are not drawn)")
    return fig
