"""The exercises of chapter 03: reference answers, and the hints that typical mistakes deserve."""

from course.classroom.exercises import Exercise, FunctionExercise, Mistake
from course.lab.planner import RESERVE, make_plan


def kv_cache_bytes(layers, kv_heads, head_dim, seq, batch, width):
    """Reference of 03.2."""
    return 2 * layers * kv_heads * head_dim * seq * batch * width


def training_bytes(parameters, trainable, width, states):
    """Reference of 03.4."""
    return width * (parameters + trainable * (1 + states))


def kept_numbers(hidden, kv_width, feed_forward):
    """Reference of 03.5."""
    return 8 * hidden + 2 * kv_width + 4 * feed_forward


def longest(checkpointing=True, gpu=24 * 2**30):
    """Reference of 03.6; the other arguments are mistakes."""
    plan = make_plan("llama-3-8b", method="lora", checkpointing=checkpointing)
    return plan.largest("seq", gpu)


CHECKS = {
    "03.1": Exercise(
        reference=1.2 * 7e9 * 2,
        tolerance=1e-3,
        hint="Parameters times bytes of each, times the rule's factor.",
        right="16.8 GB, and nothing in it knows how long the text is.",
        mistakes=[
            Mistake(7e9 * 2, "That is the weights alone; the rule of thumb adds a fifth."),
            Mistake(1.2 * 7e9 * 4, "That is at four bytes a parameter. BF16 has 16 bits."),
            Mistake(1.2 * 7e9, "That counts parameters. Each takes more than one byte in BF16."),
            Mistake(16.8, "That looks like GB; the question asks for bytes."),
            Mistake(1.2 * 7 * 2 * 2**30, "A billion parameters of two bytes are 2 GB (10⁹), not 2 GiB (2³⁰)."),
        ],
    ),
    "03.2": FunctionExercise(
        reference=kv_cache_bytes,
        cases=[(2, 4, 16, 10, 1, 2), (32, 8, 128, 4096, 3, 2), (1, 1, 8, 1, 1, 4)],
        hint="One vector for the key and one for the value: per token, per layer, per key-value head.",
        right="Exactly what the cache of a model holds.",
        mistakes=[
            Mistake(lambda n, k, d, s, b, w: n * k * d * s * b * w, "A key and a value are kept, not one of them."),
            Mistake(lambda n, k, d, s, b, w: 2 * k * d * s * b * w, "Each layer keeps its own keys and values."),
            Mistake(lambda n, k, d, s, b, w: 2 * n * k * d * s * w, "Each text of the batch has its own cache."),
            Mistake(lambda n, k, d, s, b, w: 2 * n * k * d * s * b, "These are numbers; each takes `width` bytes."),
            Mistake(lambda n, k, d, s, b, w: 2 * n * k * d * s * s * b * w, "It grows with seq, not its square."),
            Mistake(lambda n, k, d, s, b, w: 2 * n * k * d * b * w, "That is one token's. Each token has its own."),
            Mistake(lambda n, k, d, s, b, w: 2 * n * d * s * b * w, "Each key-value head has its own key and value."),
            Mistake(lambda n, k, d, s, b, w: 2 * n * k * s * b * w, "A key is a vector: as wide as a head."),
        ],
    ),
    "03.3": Exercise(
        reference=16 * 70e9,
        tolerance=1e-3,
        hint="Weights, master weights, gradient and two averages: how many bytes each, for one parameter?",
        right="1.12 TB, before a single activation: 14 GPUs of 80 GB and no room to work.",
        mistakes=[
            Mistake(8 * 70e9, "That is pure BF16. Mixed precision keeps master weights and Adam's averages in FP32."),
            Mistake(12 * 70e9, "That is the FP32 part. The BF16 weights and gradients come on top."),
            Mistake(6 * 70e9, "That is gradient and two averages at two bytes; mixed precision keeps more, and wider."),
            Mistake(14 * 70e9, "That has no gradients: two bytes more a parameter."),
            Mistake(16 * 70, "That looks like GB; the question asks for bytes."),
            Mistake(1.12, "That looks like TB; the question asks for bytes."),
        ],
    ),
    "03.4": FunctionExercise(
        reference=training_bytes,
        cases=[(13, 13, 2, 2), (13, 1, 2, 2), (100, 10, 4, 0), (7, 3, 2, 1)],
        hint="All weights are there; only trained ones have a gradient and optimizer states.",
        right="Freezing saves on everything but the weights.",
        mistakes=[
            Mistake(lambda p, t, w, s: w * p * (2 + s), "That gives every parameter a gradient, the frozen ones too."),
            Mistake(lambda p, t, w, s: w * t * (1 + s), "The weights themselves are missing."),
            Mistake(lambda p, t, w, s: w * (p + t * s), "The gradients are missing."),
            Mistake(lambda p, t, w, s: w * t * (2 + s), "The frozen weights are in memory too."),
            Mistake(lambda p, t, w, s: w * (2 * p + t * s), "Frozen parameters have no gradient."),
            Mistake(lambda p, t, w, s: w * (p + t) + 4 * t * s, "The states have `width` bytes too, not always four."),
            Mistake(lambda p, t, w, s: p + t * (1 + s), "These are numbers; each takes `width` bytes."),
        ],
    ),
    "03.5": FunctionExercise(
        reference=kept_numbers,
        cases=[(192, 192, 512), (64, 16, 176), (4096, 1024, 14336)],
        hint="Go through the list of the chapter: norm, projections, attention, output; norm, projections, product.",
        right="Eight hidden states, keys and values, and four feed-forward widths.",
        mistakes=[
            Mistake(lambda h, k, f: 8 * h + 2 * h + 4 * f, "Keys and values have the width kv_width."),
            Mistake(lambda h, k, f: 8 * h + 2 * k + 3 * f, "The feed-forward part keeps four, not three."),
            Mistake(lambda h, k, f: 4 * h + 2 * k + 4 * f, "Each norm keeps three: see the table."),
            Mistake(lambda h, k, f: 4 * (8 * h + 2 * k + 4 * f), "That is in bytes. The question asks for numbers."),
            Mistake(lambda h, k, f: 2 * (8 * h + 2 * k + 4 * f), "That is in bytes of BF16; numbers are asked for."),
            Mistake(lambda h, k, f: 8 * h + 2 * k + 4 * f + 6, "Leave the small ones out: those of norms and heads."),
        ],
    ),
    "03.6": Exercise(
        reference=longest(),
        tolerance=0.02,
        hint="Make the plan with method and checkpointing, then ask it for the largest seq that fits 24 × 2³⁰ bytes.",
        right="Most of what is left over goes to the logits: chapter 14 cuts those into pieces.",
        mistakes=[
            Mistake(longest(False), "That is without checkpointing."),
            Mistake(longest(gpu=24 * 10**9), "That is 24 GB. A GiB is 2³⁰ bytes."),
            Mistake(longest(gpu=24 * 2**30 + RESERVE), "That leaves nothing to the GPU's own use; the planner does."),
        ],
    ),
}
