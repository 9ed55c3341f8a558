"""The exercises of chapter 04: reference answers, and the hints that typical mistakes deserve."""

import math

from course.classroom.exercises import Exercise, FunctionExercise, Mistake


def e4m3(sign, exponent, mantissa, first_leading=0, first_power=1):
    """Reference of 04.4; how exponent field 0 is read can be set, since that is where mistakes are made."""
    leading, power = (1, exponent) if exponent else (first_leading, first_power)
    return (-1) ** sign * (leading + mantissa / 8) * 2.0 ** (power - 7)


def stochastic(value, spacing, chance):
    """Reference of 04.5."""
    return math.floor(value / spacing + chance) * spacing


CHECKS = {
    "04.1": Exercise(
        reference=2048,
        tolerance=0,
        hint="Whole numbers are all there as long as the spacing is at most 1. Where does FP16's spacing become 2?",
        right="Eleven significant bits. Counting token positions or examples in FP16 goes wrong above it.",
        mistakes=[
            Mistake(65504, "That is FP16's largest number. Look at the spacing there."),
            Mistake(1024, "The ten bits of the mantissa are not all: the leading 1 is not stored, and counts."),
            Mistake(2047, "So far all is well. Is the next whole number really missing?"),
            Mistake(256, "That is where BF16's whole numbers end. FP16 has three more bits of mantissa."),
        ],
    ),
    "04.2": Exercise(
        reference=4,
        tolerance=0,
        hint="Compare 0.01 with half the spacing, from 1 upwards, one power of two at a time.",
        right="There half the spacing is 1/64, and 0.01 is below it.",
        mistakes=[
            Mistake(2, "There the whole spacing passes 0.01. An update counts once it is more than half a step."),
            Mistake(0.5, "That was the answer for 0.001."),
            Mistake(1.28, "The spacing grows by jumps, at powers of two. The answer is one of them."),
        ],
    ),
    "04.3": Exercise(
        reference=65520,
        tolerance=0,
        hint="What is the number halfway between FP16's largest and the one that would come next?",
        right="Half a step above the largest. The tie goes to the even neighbour, which is 2¹⁶ and does not exist.",
        mistakes=[
            Mistake(65504, "That is the largest number that FP16 holds, so it stays what it is."),
            Mistake(65505, "This is rounded to the nearest number, like any other, and that is the largest."),
            Mistake(65536, "That would be the next number. What is rounded up to it overflows too."),
        ],
    ),
    "04.4": FunctionExercise(
        reference=e4m3,
        cases=[(0, 7, 0), (1, 8, 4), (0, 0, 3), (1, 0, 5), (0, 1, 0), (0, 15, 6), (1, 2, 7)],
        hint="(−1)^sign · (1 + mantissa/8) · 2^(exponent − bias), and another rule where the exponent field is 0.",
        right="Subnormal numbers and the last exponent are where implementations differ.",
        mistakes=[
            Mistake(lambda s, e, m: e4m3(s, e, m, 1, 0), "Field 0 has no leading 1, or nothing could be zero."),
            Mistake(lambda s, e, m: e4m3(s, e, m, 0, 0), "Field 0 has field 1's spacing. Yours is half of it."),
            Mistake(lambda s, e, m: abs(e4m3(s, e, m)), "What does the sign bit do?"),
            Mistake(lambda s, e, m: e4m3(s if e else 0, e, m), "What does the sign bit do in field 0?"),
            Mistake(lambda s, e, m: e4m3(s, e, m) if e < 15 else math.inf, "FP8 E4M3 has no infinity."),
        ],
    ),
    "04.5": FunctionExercise(
        reference=stochastic,
        cases=[(v, s, (k + 0.5) / 20) for v, s in ((1.3, 1), (0.1, 0.25), (-1.3, 1)) for k in range(20)],
        any_order=True,  # whether a small or a large random number means up is free
        hint="Divide by the spacing, add the random number, round down, multiply.",
        right="Over many draws the result is the value itself, on average.",
        mistakes=[
            Mistake(lambda v, s, u: round(v / s + u) * s, "This is half a step too high on average. Round down."),
            Mistake(lambda v, s, u: math.floor(v / s) * s, "The random number has no say here."),
            Mistake(lambda v, s, u: int(v / s + u) * s, "int() rounds towards zero, which is up below zero."),
            Mistake(lambda v, s, u: (v // s + (u >= 0.5)) * s, "A fair coin. The nearer one should win more often."),
            Mistake(lambda v, s, u: (v // s + (u > v / s % 1)) * s, "The farther neighbour wins more often here."),
        ],
    ),
    "04.6": Exercise(
        reference=1 + 1000 / 1024,
        tolerance=2e-3,
        hint="Run the loop of this chapter with dtype=torch.float16.",
        right="Every update arrives, and each is cut to one whole step of 1/1024. FP16 loses 2 % of the way here.",
        mistakes=[
            Mistake(1.0, "That is BF16's result."),
            Mistake(2.0, "That is exact arithmetic. Run it."),
        ],
    ),
    "04.7": Exercise(
        reference=3,
        hint="Round the weights to each of the four formats, and compare the mean of the squared differences.",
        right="These weights are of similar size: they need precision more than range. Gradients are another matter.",
        mistakes=[
            Mistake(4, "The split that hardware offers is not the best one here. Measure all four."),
            Mistake(5, "That has the most range. Do weights of this size use it?"),
        ],
    ),
}
