"""The exercises of chapter 08: reference answers, and the hints that typical mistakes deserve."""

import math
from numbers import Real

import numpy as np
import torch

from course.classroom.exercises import Exercise, FunctionExercise, Mistake, OpenExercise


def change(a, b, alpha, scale=lambda alpha, rank: alpha / rank):
    """Reference of 08.3; another scale makes the mistakes."""
    return scale(alpha, len(a)) * b @ a


def directions(update, share, power=2, more=0, smallest_first=False):
    """Reference of 08.2; other arguments than the first two make the mistakes."""
    sizes = torch.linalg.svdvals(update).sort(descending=not smallest_first)[0] ** power
    return int((sizes.cumsum(0) / sizes.sum() < share).sum()) + 1 + more


def swapped(weight, old, new, scaling, off=-1, on=1):
    """Reference of 08.5; other signs and factors make the mistakes. old and new: (A, B)."""
    return weight + scaling * (off * old[1] @ old[0] + on * new[1] @ new[0])


def _dice(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _adapter(rank, seed):
    return _dice(rank, 5, seed=seed), _dice(4, rank, seed=seed + 1)


def _share(low, high):
    """Whether an answer is a number in this range."""
    return lambda x: isinstance(x, Real | torch.Tensor | np.ndarray) and bool(low <= x < high)


LOW = _dice(6, 3, seed=1) @ _dice(3, 5, seed=2) + 0.05 * _dice(6, 5, seed=3)
CHECKS = {
    "08.1": Exercise(
        reference=16 * (4096 + 4096) * 4 * 32,
        tolerance=0,
        hint="Each matrix gets rank times in numbers of A, and out times rank of B. Then count matrices and layers.",
        right="That is a quarter of a percent of the model, and not even the highest rank in use.",
        mistakes=[
            Mistake(16 * 8192 * 4, "That is one layer. The model has 32."),
            Mistake(16 * 4096 * 4 * 32, "Half of it. Is the rank 16? Are A, B and all four matrices counted?"),
            Mistake(16 * 8192 * 32, "That is for one matrix a layer; here are four."),
            Mistake(4096**2 * 4 * 32, "Those are the frozen matrices themselves."),
            Mistake(2 * 16 * 8192 * 4 * 32, "Too many by a factor of two: A and B are both counted already."),
        ],
    ),
    "08.2": FunctionExercise(
        reference=directions,
        cases=[
            (torch.diag(torch.tensor([3.0, 2.0, 1.0])), 0.9),
            (torch.diag(torch.tensor([3.0, 2.0, 1.0])), 0.6),
            (LOW, 0.95),
            (_dice(6, 5, seed=4), 0.5),
            (_dice(12, 10, seed=4), 0.6),
        ],
        tolerance=0,
        hint="Square the singular values, add them up from the largest, and count until the share is reached.",
        right="torch.linalg.svdvals sorts them for you, so the first ones are the best ones.",
        mistakes=[
            Mistake(lambda u, s: directions(u, s, power=1), "Energy is the sum of squares. Square them first."),
            Mistake(lambda u, s: directions(u, s, more=-1), "One too few: with these the share is not reached yet."),
            Mistake(lambda u, s: directions(u, s, more=1), "One too many: without the last it is reached as well."),
            Mistake(lambda u, s: directions(u, s, smallest_first=True), "Start at the largest, not at the smallest."),
            Mistake(lambda u, s: 1, "One is always enough here: is a share compared with a percentage?"),
            Mistake(
                lambda u, s: int((torch.linalg.svdvals(u) ** 2 > (1 - s) * (u**2).sum()).sum()), "Add them up first."
            ),
            Mistake(lambda u, s: len(torch.linalg.svdvals(u)), "Those are all directions. Count until it is enough."),
            Mistake(lambda u, s: directions(u, 1 - s), "That is where the rest is reached: 1 − share."),
        ],
    ),
    "08.3": FunctionExercise(
        reference=change,
        cases=[(*_adapter(2, 5), 8.0), (*_adapter(3, 7), 1.0), (*_adapter(1, 9), 4.0)],
        hint="B times A, in this order, has the shape of the weight; then the scaling.",
        right="The rank is the number of A's rows, so nobody has to pass it.",
        mistakes=[
            Mistake(lambda a, b, alpha: change(a, b, alpha, lambda x, r: x), "Alpha is not yet divided by the rank."),
            Mistake(lambda a, b, alpha: change(a, b, alpha, lambda x, r: 1), "Where is the scaling?"),
            Mistake(
                lambda a, b, alpha: change(a, b, alpha, lambda x, r: x / math.sqrt(r)),
                "That is rsLoRA, which divides by the root of the rank. Here it is the rank itself.",
            ),
            Mistake(lambda a, b, alpha: change(a, b, alpha, lambda x, r: r / x), "The scaling is upside down."),
            Mistake(lambda a, b, alpha: change(a, b, alpha, lambda x, r: x / a.size(1)), "That divides by A's width."),
            Mistake(lambda a, b, alpha: change(a, b, alpha).T, "Turn it round: rows are outputs, as in the weight."),
        ],
    ),
    "08.4": Exercise(
        reference=139,
        tolerance=0,
        hint="r · (in + out) numbers against in · out. Find the largest whole r for which the first is smaller.",
        right="Far below 192, where the rank itself ends: near full rank, two factors are a waste.",
        mistakes=[
            Mistake(140, "With that it is a little more than the matrix itself."),
            Mistake(192, "That is the largest rank the matrix can have. A and B are larger than it long before."),
            Mistake(98304 / 704, "A rank is a whole number.", lambda rank: rank % 1),
            Mistake(138, "One more, and A and B are still smaller than the matrix."),
            Mistake(512, "The rank cannot pass the shorter side, and the limit lies below that."),
            Mistake(191, "One below the full rank still takes far more numbers than the matrix."),
        ],
    ),
    "08.5": FunctionExercise(
        reference=swapped,
        cases=[
            (_dice(4, 5, seed=11), _adapter(2, 12), _adapter(2, 14), 2.0),
            (_dice(4, 5), _adapter(1, 3), _adapter(3, 5), 0.5),
        ],
        hint="Take off what was added, scaling included, then add the new one.",
        right="Two thin products a layer: that is all that a change of customers costs.",
        mistakes=[
            Mistake(lambda w, o, n, s: swapped(w, o, n, s, off=0), "The old adapter is still in the weight."),
            Mistake(lambda w, o, n, s: swapped(w, o, n, s, off=1), "That adds the old one a second time."),
            Mistake(lambda w, o, n, s: swapped(w, o, n, s, on=0), "That takes the old one off. Where is the new one?"),
            Mistake(lambda w, o, n, s: swapped(w, o, n, 1), "Each product has been multiplied by the scaling."),
            Mistake(
                lambda w, o, n, s: swapped(w, o, n, s, off=-1 / s), "The old one was scaled, too, when it came in."
            ),
            Mistake(lambda w, o, n, s: swapped(w, n, o, s), "The two have changed places."),
            Mistake(lambda w, o, n, s: swapped(0 * w, o, n, s, off=0), "That is the new product alone, not a weight."),
        ],
    ),
    "08.6": Exercise(
        reference=128,
        tolerance=1e-6,
        hint="rsLoRA multiplies by alpha / √rank, LoRA by alpha / rank. Set the two equal.",
        right="A scaling of 2 both times. rsLoRA is this choice of alpha, made for you.",
        mistakes=[
            Mistake(2, "That is the scaling. The question asks for the alpha that gives it."),
            Mistake(16, "With the same alpha LoRA multiplies by a quarter only."),
            Mistake(1024, "That is alpha times rank. Plain LoRA divides by the rank, once."),
            Mistake(8, "That is the root of the rank."),
            Mistake(0.25, "That is LoRA's scaling for an alpha of 16."),
        ],
    ),
    "08.7": OpenExercise(
        reference=62.0,
        accepts=_share(35, 85),
        hint="Freeze lora_A after add_lora, train as before, and give the share of right answers in %.",
        right="Behind the run in which both learn, and still most of the way, with an A that never moved.",
        mistakes=[
            Mistake(0.0, "Nothing was learned. Was B frozen? While B is zero, A gets no gradient.", _share(0, 0.0001)),
            Mistake(0.6, "That looks like a share from 0 to 1; the question asks for %.", _share(0.3, 1.01)),
            Mistake(
                20.0, "Too low. Is it a count of letters? Was the rate 0.01, and the base fresh?", _share(1.01, 35)
            ),
            Mistake(90.0, "As good as with both learning. Is each lora_A frozen, after add_lora?", _share(85, 101)),
        ],
    ),
}
