"""The exercises of chapter 06: reference answers, and the hints that typical mistakes deserve."""

import math
from numbers import Real

import numpy as np
from torch import Tensor

from course.classroom.exercises import Exercise, FunctionExercise, Mistake, OpenExercise


def scales(scale, overflows, interval, reset=True, patience=0, back=0.5, count_overflow=False):
    """Reference of 06.3; other arguments than the first three make the mistakes."""
    given, good = [], 0
    for overflow in overflows:
        if overflow:
            scale, good = scale * back, 0 if reset else good + count_overflow
        else:
            good += 1
            if good == interval + patience:
                scale, good = scale * 2, 0
        given.append(scale)
    return given


def clipped(gradient, scale, most):
    """Reference of 06.4."""
    gradient = gradient / scale
    norm = np.linalg.norm(gradient)
    return gradient * min(1.0, most / norm)


def clipped_first(gradient, scale, most):
    return gradient * min(1.0, most / np.linalg.norm(gradient)) / scale


def trained(weight, spacing, target, rate, steps, rounds=round, keeps_rounded=False, sees_kept=False):
    """Reference of 06.5; other arguments than the first five make the mistakes."""
    for _ in range(steps):
        seen = weight if sees_kept else rounds(weight / spacing) * spacing
        weight -= rate * 2 * (seen - target)
        weight = _rounded(weight, spacing) if keeps_rounded else weight
    return rounds(weight / spacing) * spacing


def _rounded(weight, spacing):
    return round(weight / spacing) * spacing


def _share(low, high):
    """Whether an answer is a number in this range."""
    return lambda x: isinstance(x, Real | Tensor | np.ndarray) and bool(low <= x < high)


CHECKS = {
    "06.1": Exercise(
        reference=2**17,
        tolerance=0,
        hint="FP16's largest number is 65,504. Double the scale as long as a quarter times it stays below.",
        right="A quarter of it is 2¹⁵. Doubled once more it would be 2¹⁶, which FP16 does not have.",
        mistakes=[
            Mistake(2**18, "A quarter of that is 65,536, and FP16 ends a little below."),
            Mistake(2**16, "That is where GradScaler begins. There is room for more."),
            Mistake(4 * 65504, "Close to the edge, but it is no power of two, and would change the gradients' digits."),
            Mistake(17, "That is the power. The question asks for the scale itself."),
        ],
    ),
    "06.2": Exercise(
        reference=2**5,
        tolerance=0,
        hint="FP16 rounds to zero what is at most half of its smallest number, 2⁻²⁴. Write 10⁻⁹ as a power of two.",
        right="It is then just above 2⁻²⁵ and is rounded up, to the smallest number, with an error of 7 %.",
        mistakes=[
            Mistake(2**6, "That lifts it over 2⁻²⁴. Rounding to nearest saves it one doubling earlier."),
            Mistake(2**4, "It is still less than half of the smallest number."),
            Mistake(2**16, "That keeps all of its digits. Here it only has to be more than zero."),
            Mistake(5, "That is the power. The question asks for the scale itself."),
        ],
    ),
    "06.3": FunctionExercise(
        reference=scales,
        cases=[
            (1024.0, [False] * 5, 2),
            (8.0, [True, True, False, False, False, True], 3),
            (4.0, [False, False, True, False, False, False, True], 3),
            (2.0, [False, True, False, True, False, False], 2),
        ],
        hint="Count the steps without overflow; halve and start the count again, or double and start it again.",
        right="The same as torch's, step for step.",
        mistakes=[
            Mistake(lambda s, o, n: scales(s, o, n, reset=False), "Steps in a row: an overflow begins a new count."),
            Mistake(lambda s, o, n: scales(s, o, n, patience=1), "It doubles one step too late."),
            Mistake(lambda s, o, n: scales(s, o, n, back=1.0), "After an overflow the scale has to come down."),
            Mistake(lambda s, o, n: scales(s, o, 1), "It doubles after every good step. Wait for `interval` of them."),
            Mistake(lambda s, o, n: [s, *scales(s, o, n)[:-1]], "That is the scale before each step, not after it."),
        ],
    ),
    "06.4": FunctionExercise(
        reference=clipped,
        cases=[
            (np.array([300.0, 400.0]), 1000.0, 1.0),
            (np.array([3000.0, -4000.0]), 1000.0, 1.0),
            (np.array([8.0, 6.0, 0.0]), 0.5, 4.0),
            (np.array([3.0, 4.0]), 0.25, 4.0),
            (np.array([0.3, -0.4]), 1000.0, 1.0),
        ],
        hint="Undo the scale, then look at the norm, then shorten if it is too long.",
        right="In this order the scale cannot be seen in the result. That is what unscale_ is for.",
        mistakes=[
            Mistake(clipped_first, "The norm that you clip by is the scaled one. Divide by the scale first."),
            Mistake(lambda g, s, m: clipped(g, 1.0, m), "The gradient is still scaled."),
            Mistake(lambda g, s, m: clipped(g, 1 / s, m), "Backward has multiplied by the scale already. Divide."),
            Mistake(lambda g, s, m: g / s, "This is not clipped."),
            Mistake(lambda g, s, m: (g / s) * (m / np.linalg.norm(g / s)), "A short gradient must stay as it is."),
            Mistake(lambda g, s, m: np.clip(g / s, -m, m), "Clip the norm of the whole, which keeps its direction."),
        ],
    ),
    "06.5": FunctionExercise(
        reference=trained,
        cases=[  # no weight comes so near to the middle of two levels that another order of the sums would matter
            (0.0, 1.0, -1.6, 0.3, 3),
            (0.9, 1.0, -0.7, 0.3, 40),
            (0.0, 0.5, 3.3, 0.3, 1),
            (0.2, 0.5, -0.7, 0.1, 24),
        ],
        hint="Forward with the rounded weight, and move the one that was never rounded.",
        right="The weight that is kept collects the small updates until they make a step.",
        mistakes=[
            Mistake(
                lambda *a: trained(*a, keeps_rounded=True), "You round what is kept, so small updates are absorbed."
            ),
            Mistake(
                lambda *a: trained(*a, sees_kept=True),
                "The gradient belongs to the rounded weight: that is what the model computed with.",
            ),
            Mistake(lambda *a: trained(*a, rounds=math.floor), "Round to the nearest multiple, which may lie above."),
            Mistake(lambda w, s, t, r, n: trained(w, s, _rounded(t, s), r, n), "The target stays as it is."),
            Mistake(lambda w, s, t, r, n: trained(w, s, t, r, n + 1), "That is one step too many."),
            Mistake(lambda w, s, t, r, n: _rounded(w, s), "Nothing is trained here: a step's derivative is 0."),
            Mistake(lambda w, s, t, r, n: trained(w, s, t, -r, n), "Against the gradient, not along it."),
            Mistake(lambda w, s, t, r, n: trained(w, s, t, r / 2, n), "The square's derivative has a factor of two."),
        ],
    ),
    "06.6": Exercise(
        reference=(16 - 8) * 7e9,
        tolerance=1e-3,
        hint="Per parameter: weight, gradient, two averages, in BF16; against FP32 master weights and FP32 averages.",
        right="56 GB, on top of the 56 GB that are left. The price is the noise of rounding by chance.",
        mistakes=[
            Mistake(16 * 7e9, "That is what mixed precision takes. The question asks for the difference."),
            Mistake(4 * 7e9, "That is the master copy alone. The averages are half as wide, too."),
            Mistake(6 * 7e9, "There are two averages, and each of them goes from four bytes to two."),
            Mistake((16 - 8) * 7, "That looks like GB; the question asks for bytes."),
        ],
    ),
    "06.7": OpenExercise(
        reference=27.8,
        accepts=_share(24, 28.8),  # 27.2 to 27.9 where the weights began 10⁻⁶ or 10⁻³ of their size off
        hint="Two gradients of one batch, FP32 and FP16: count the places that are zero in the second alone.",
        right="More than before training: this model is nearly sure of each token, so more of its gradients are tiny.",
        mistakes=[
            Mistake(13.0, "So much is lost in a model that is less trained. Take `finetuned`, of QAT.", _share(5, 17)),
            Mistake(0.3, "That looks like a share from 0 to 1; the question asks for %.", _share(0.1, 0.7)),
            Mistake(2.1, "That is what is zero in FP32 as well. Was FP16 switched on?", _share(0.7, 5)),
            Mistake(20.7, "Is that from the sizes in FP32? Let the backward pass run in FP16.", _share(18, 23)),
            Mistake(29.3, "Leave out the places that are zero in FP32 as well.", _share(28.8, 33)),
            Mistake(97.0, "Is the loss divided by the number of graded tokens alone?", _share(70, 101)),
            Mistake("more", "That is the guess. Now measure: a share in %.", lambda x: isinstance(x, str)),
        ],
    ),
}
