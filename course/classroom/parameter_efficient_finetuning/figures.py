"""The figures of chapter 07: state in, figure out."""

from math import prod
from statistics import mean

from course.activations import Run
from course.classroom import style
from course.memory import training_memory
from course.model_shape import ModelShape

MARKS = "osD^vP*X<>hd"
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PLANNED = {  # the planner's word for each method, and what it needs to know; size: of a bottleneck, or the rank, or …
    "full": ("full", {}),
    "top layer": ("partial", {"last_layers": 1}),
    "LoRA": ("lora", {}),
    "adapters": ("adapter", {}),
    "BitFit": ("bitfit", {"targets": LINEAR}),
    "IA3": ("ia3", {}),
    "prompt": ("prompt", {}),
}
BOXES = {  # a layer's parts in the order of the way through it: what the methods train there
    "rows": "prompt,\nP-tuning:\nmore rows",
    "q, k, v": "LoRA, BitFit\nIA3: × k, v\nprefix:\nmore k, v",
    "o": "LoRA,\nBitFit",
    "adapter": "adapters",
    "+": "",
    "gate, up": "LoRA,\nBitFit",
    "product": "IA3: ×",
    "down": "LoRA,\nBitFit",
    "adapter ": "adapters",
    " + ": "",
}
PARTS = {"weights": "#08306b", "gradients and optimizer": "#d95f0e", "activations and the rest": "#9ecae1"}


def llama(width, layers):
    """The config of a Llama of this width: a feed-forward of 8/3 the width, heads of 64, 32,000 tokens, head tied."""
    heads = width // 64
    shape = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 64 * (width // 24)}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": 32_000}
    return shape | {"model_type": "llama", "max_position_embeddings": 4096, "tie_word_embeddings": True}


def planned(width, layers, size, tokens):
    """What each method trains and what a training step takes, for a Llama in BF16 with AdamW and one text.

    size: the width of a bottleneck, the rank of LoRA and the tokens of a prompt. tokens: of the text.
    """
    counts, memory = zip(*(step(name, width, layers, size, tokens) for name in PLANNED), strict=True)
    fig, ax = style.subplots(size=(7.5, 3.8), layout="none")  # the sliders should answer at once
    ax.set_position([0.21, 0.22, 0.76, 0.69])
    places, starts = range(len(counts)), [0.0] * len(counts)
    for (part, color), hatch in zip(PARTS.items(), ("", "//", ".."), strict=True):
        sizes = [parts[part] / 2**30 for parts in memory]
        ax.barh(places, sizes, left=starts, color=color, hatch=hatch, edgecolor="white", label=part)
        starts = [start + size for start, size in zip(starts, sizes, strict=True)]
    ax.set_yticks(places, [f"{name}: {_short(count)}" for name, count in zip(PLANNED, counts, strict=True)])
    title = f"Full finetuning takes {starts[0] / min(starts):.1f} times the bytes of the cheapest method"
    ax.set(title=title, xlabel="bytes at the peak of a step (GiB)", ylabel="method: trained numbers (count)")
    ax.set(xlim=(0, 1.05 * max(starts)), ylim=(len(counts) - 0.4, -0.6))
    ax.legend(loc="upper center", bbox_to_anchor=(0.36, -0.17), ncols=3)  # below, where no bar ends
    return fig


def step(name, width, layers, size, tokens):
    """How many numbers a method trains, and the bytes at the peak of a step by PARTS; arguments as in `planned`."""
    method, settings = PLANNED[name]
    settings = {"rank": size, "virtual_tokens": size, "batch": 1, "seq": tokens} | settings
    shape = ModelShape.from_config(llama(width, layers))
    tensors = Run(shape, method, "bf16", "sdpa", **settings).trained_tensors
    memory = training_memory(shape, method, **settings)
    parts = memory.weights, memory.gradients + memory.optimizer, memory.activations + memory.logits + memory.overhead
    return sum(prod(shape) * count for shape, count in tensors), dict(zip(PARTS, parts, strict=True))


def _short(count):
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g}{('', ' K', ' M', ' B')[power]}"


def comparison(runs, title):
    """Mean score, with a bar from worst to best, against trained numbers; runs: method -> runs over seeds."""
    fig, ax = style.subplots(size=(8.2, 4.6), subplot_kw={"xscale": "log", "xlim": (1500, 4e6)})
    for place, (name, seeds) in enumerate(runs.items()):
        scores, trained = [100 * run["exact"] for run in seeds], seeds[0]["trainable"]
        ax.plot([trained] * 2, [min(scores), max(scores)], "_-", color=style.COLORS[1])
        ax.plot(trained, mean(scores), "o", color=style.COLORS[1])
        edge, away, side = (max(scores), 7, "bottom") if place % 2 else (min(scores), -7, "top")
        ax.annotate(name, (trained, edge), (0, away), textcoords="offset points", ha="center", va=side, fontsize=9)
    ax.set(title=title, xlabel="trained numbers (count, log)", ylabel="exact answers (%)", ylim=(-12, 108))
    return fig


def against(rows, title, xlabel, ylabel, apart=1, **settings):
    """Lines through means, bars from lowest to highest; rows: name -> {x: ys}, each `apart` times further right."""
    fig, ax = style.subplots(size=(7.5, 4.0))
    for place, (name, points) in enumerate(rows.items()):
        again = place // len(style.COLORS)  # where colors come round, the mark is open and the dash another
        look = {"linestyle": style.DASHES[(place + 3 * again) % 7], "markerfacecolor": "white"} if again else {}
        xs, ys = [x * apart**place for x in points], points.values()
        (line,) = ax.plot(xs, [*map(mean, ys)], marker=MARKS[place], label=name, **look)
        ax.vlines(xs, [*map(min, ys)], [*map(max, ys)], color=line.get_color(), linewidth=1.2)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, **settings)
    ticks = sorted({x for points in rows.values() for x in points})
    ax.minorticks_off()
    ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def places():
    """Where in a decoder layer each method puts what it trains; a dashed box is new."""
    fig, ax = style.subplots(size=(8.6, 1.9))
    ax.set(xlim=(-0.6, len(BOXES) - 0.4), ylim=(-1.2, 0.9), title="What each method trains, on the way through a layer")
    ax.set_axis_off()
    for place, (box, below) in enumerate(BOXES.items()):
        look = {"boxstyle": "round", "facecolor": "white", "linestyle": "--" if "adapter" in box else "-"}
        ax.text(place, 0.45, box, ha="center", va="center", fontsize=9, bbox=look)
        ax.text(place, 0.0, below, ha="center", va="top", fontsize=9)
        if place:
            ax.annotate("", (place - 0.4, 0.45), (place - 0.6, 0.45), arrowprops={"arrowstyle": "->"})
    return fig
