"""The exercises of chapter 05: reference answers, and the hints that typical mistakes deserve."""

import math
from functools import partial

import torch

from course.classroom.exercises import Exercise, FunctionExercise, Mistake, OpenExercise

WEIGHTS_7B = 32 * (4 * 4096**2 + 3 * 4096 * 11008)


def absmax(w, bits, top=None, size=lambda w: w.abs().max(), whole=torch.round):
    """Reference of 05.3; the largest code, the size and the rounding can be set, where mistakes are made."""
    scale = size(w) / (top or 2 ** (bits - 1) - 1)
    return whole(w / scale), scale


def affine(w, bits, widen=True, clamped=False, levels=0, add=1, off=1, restored=True):
    """Reference of 05.4, with settings for mistakes as well."""
    low, high = w.min().item(), w.max().item()
    if widen:
        low, high = min(0.0, low), max(0.0, high)
    scale = (high - low) / (2**bits - 1 + levels)
    zero = round(-low / scale)
    zero = min(max(zero, 0), 2**bits - 1) if clamped else zero
    codes = (torch.round(w / scale) + add * zero).clamp(0, 2**bits - 1)
    return (codes - off * zero) * scale if restored else codes


def from_low(w, bits):
    low = w.min().clamp(max=0)
    scale = (w.max().clamp(min=0) - low) / (2**bits - 1)
    return torch.round((w - low) / scale) * scale + low


def pack(codes):
    """Reference of 05.5."""
    codes = [*codes, 0] if len(codes) % 2 else codes
    return [16 * first + second for first, second in zip(codes[::2], codes[1::2], strict=True)]


W = torch.tensor
CHECKS = {
    "05.1": Exercise(
        reference=4 + 16 / 128,
        tolerance=0.001,
        hint="Each weight pays for its code, and for its share of the scale.",
        right="That is what most 4-bit checkpoints hold: groups of 128 with scales in FP16.",
        mistakes=[
            Mistake(4, "That is the code alone. The scale is stored, too."),
            Mistake(4.25, "That would be a scale of 32 bits, or groups half as large."),
            Mistake(20, "One scale serves all 128 weights of its group."),
            Mistake(4 + 128 / 16, "The scale's bits are divided by the number of weights, not the other way round."),
            Mistake(4.5, "That is the chapter's own case: groups of 64, and scales in FP32."),
        ],
    ),
    "05.2": Exercise(
        reference=-3,
        tolerance=0,
        hint="First the scale: the largest size in the group over the largest code. Then divide, and round.",
        right="The scale is 0.2, so −0.62 is −3.1 steps, and is restored as −0.6.",
        mistakes=[
            Mistake(3, "Mind the sign."),
            Mistake(-4, "Four bits have eight negative codes, but absmax leaves the last one out."),
            Mistake(-3.1, "A code is a whole number."),
            Mistake(-0.6, "That is what the code is restored to. The question asks for the code itself."),
            Mistake(13, "That is how the code is stored. Say it as a number with a sign."),
        ],
    ),
    "05.3": FunctionExercise(
        reference=absmax,
        cases=[(W([0.9, -0.31, 0.05, 0.4]), 3), (W([0.2, -1.4, 0.65]), 4), (W([3.0, 2.9]), 8), (W([-0.1, -0.26]), 5)],
        hint="The scale is the largest size over 2^(bits − 1) − 1; a code is the weight over the scale, rounded.",
        right="Four lines, and most of the quantization that is in use.",
        mistakes=[
            Mistake(lambda w, b: absmax(w, b, top=2 ** (b - 1)), "One too many: the largest code is odd."),
            Mistake(lambda w, b: absmax(w, b, top=2**b - 1), "Half of the codes are for negative weights."),
            Mistake(lambda w, b: absmax(w, b, size=torch.max), "Sizes: negative weights count, too."),
            Mistake(lambda w, b: absmax(w, b, whole=torch.trunc), "This cuts off. Round to the nearest."),
            Mistake(lambda w, b: absmax(w, b, whole=lambda x: x), "The codes are not whole numbers yet."),
            Mistake(lambda w, b: absmax(w, b)[::-1], "Codes first, then the scale."),
            Mistake(lambda w, b: absmax(w, b, whole=torch.floor), "This rounds down. Round to the nearest."),
            Mistake(lambda w, b: (math.prod(absmax(w, b)), absmax(w, b)[1]), "Those are restored weights, not codes."),
            Mistake(lambda w, b: (absmax(w, b)[0] % 2**b, absmax(w, b)[1]), "Give the codes with their signs."),
            Mistake(lambda w, b: absmax(w, b)[0], "Return the scale, too: without it the codes mean nothing."),
        ],
    ),
    "05.4": FunctionExercise(
        reference=affine,
        cases=[(W([0.0, 0.9, 0.5]), 4), (W([-0.31, 0.2, 2.69, 1.15]), 4), (W([3.1, 3.9]), 3), (W([-1.0, -3.0]), 5)],
        hint="Scale and zero point come from the range, which is from min to max and holds 0.",
        right="The range is used from end to end, and zero comes back as zero.",
        mistakes=[
            Mistake(partial(affine, add=0, off=0), "Numbers below 0 have no code here: where is the zero point?"),
            Mistake(partial(affine, off=0), "What was added to each code comes off again before the scale."),
            Mistake(from_low, "Here zero does not come back as zero: the zero point is a whole number, and rounded."),
            Mistake(partial(affine, restored=False), "Those are the codes. Undo it, and return what they stand for."),
            Mistake(lambda w, b: math.prod(absmax(w, b)), "That is absmax. Use the range that is really there."),
            Mistake(partial(affine, widen=False, clamped=True), "The range must hold 0, or 0 may have no code."),
            Mistake(partial(affine, widen=False), "A zero point that is no code cannot be stored: widen the range."),
            Mistake(partial(affine, levels=1), "2^bits codes have one gap less than that between them."),
        ],
    ),
    "05.5": FunctionExercise(
        reference=pack,
        cases=[([1, 2],), ([15, 0, 7, 8],), ([3, 4, 5],), ([0, 9],)],
        hint="The first code goes into the upper four bits of a byte: it counts sixteen times.",
        right="Half a byte a weight, in the order that bitsandbytes has.",
        mistakes=[
            Mistake(lambda c: [b % 16 * 16 + b // 16 for b in pack(c)], "The other way round: the first goes on top."),
            Mistake(lambda c: [*c], "That is one code a byte, and half of each byte is empty."),
            Mistake(lambda c: [b // 16 + b % 16 for b in pack(c)], "Added up, two codes cannot be told apart again."),
            Mistake(lambda c: pack(c[: len(c) // 2 * 2]), "The last code of an odd number got lost."),
            Mistake(lambda c: [*pack(c[:-1]), c[-1]] if len(c) % 2 else pack(c), "A last code alone goes on top, too."),
            Mistake(lambda c: [b // 16 << (4 + b % 16) for b in pack(c)], "Brackets: Python adds before it shifts."),
        ],
    ),
    "05.6": Exercise(
        reference=WEIGHTS_7B * 4.5 / 8,
        tolerance=0.002,
        hint="The number of weights times the bits a weight takes, scales included, in bytes.",
        right="In FP16 they take 13 GB. What else the model needs is in chapter 03's formula.",
        mistakes=[
            Mistake(WEIGHTS_7B * 4 / 8, "That is the codes alone. The scales come on top."),
            Mistake(WEIGHTS_7B * 4.25 / 8, "That would be scales of 16 bits. How wide are they in this chapter?"),
            Mistake(WEIGHTS_7B * 4.5, "That is in bits."),
            Mistake(WEIGHTS_7B * 2, "That is the size in 16 bits."),
            Mistake(WEIGHTS_7B * 4.5 / 8 / 1e9, "That is in GB. The question asks for bytes."),
            Mistake(WEIGHTS_7B * 4.5 / 8 / 2**30, "That is in GiB. The question asks for bytes."),
            Mistake(WEIGHTS_7B * 4.127 / 8, "That is with double quantization, which the question leaves out."),
        ],
    ),
    "05.7": OpenExercise(
        reference="model.layers.3.mlp.down_proj",
        accepts=lambda name: name.strip().removeprefix("model.").removesuffix(".weight") == "layers.3.mlp.down_proj",
        hint="The mean square of the difference over that of the weights: relative to each matrix's own size.",
        right="It has a few weights that are far larger than the rest, and they set its rows' scales.",
        mistakes=[Mistake("lm_head", "The head is not quantized here. Look at the 28 matrices in the layers.")],
    ),
}
