"""The exercises of chapter 11: reference answers, and the hints that typical mistakes deserve."""

import math

import numpy as np

from course.classroom.exercises import Exercise, FunctionExercise, Mistake, OpenExercise


def average(models, weights, divide=True):
    """Reference of 11.2; other settings make the mistakes."""
    total = sum(weights) if divide else 1
    return {name: sum(w * m[name] for w, m in zip(weights, models, strict=True)) / total for name in models[0]}


def arc(a, b, t, unit=True, swap=False, straight=False):
    """Reference of 11.3; other settings make the mistakes."""
    t = 1 - t if swap else t
    if straight:
        return (1 - t) * a + t * b
    cosine = _unit(a) @ _unit(b) if unit else a @ b
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / (math.sin(angle) or 1)


def forget(model, taught, base, scale, sign=-1, whole=False):
    """Reference of 11.6; other settings make the mistakes."""
    return {name: model[name] + sign * scale * (taught[name] - (0 if whole else base[name])) for name in model}


def _arrays(seed, count):
    dice = np.random.default_rng(seed)
    return [{"w": dice.normal(size=(2, 3)), "b": dice.normal(size=3)} for _ in range(count)]


def _vectors(seed, longer=1.0):
    dice = np.random.default_rng(seed)
    return dice.normal(size=5), longer * dice.normal(size=5)


def _unit(vector):
    return vector / np.linalg.norm(vector)


def _pair(test):
    """Whether an answer is two numbers that fit."""
    return lambda x: isinstance(x, tuple | list) and len(x) == 2 and bool(test(float(x[0]), float(x[1])))


CHECKS = {
    "11.1": Exercise(
        reference=56,
        tolerance=0,
        hint="Bytes of one model, times how many are stored: once for the merged one, and for the ensemble?",
        right="And it runs once a token where the ensemble runs five times.",
        mistakes=[
            Mistake(70, "That is the ensemble itself. How much smaller is the merged model?"),
            Mistake(14, "That is the merged model itself."),
            Mistake(28, "BF16 has two bytes a number."),
            Mistake(56e9 / 2**30, "Those are GiB. A GB is 10⁹ bytes."),
        ],
    ),
    "11.2": FunctionExercise(
        reference=average,
        cases=[(_arrays(0, 2), [1, 1]), (_arrays(1, 3), [0.5, 2, 1]), (_arrays(2, 2), [3, -1])],
        hint="For each name: add weight times tensor over the models, then divide by the sum of the weights.",
        right="With the numbers of examples as weights, this is a round of federated averaging.",
        mistakes=[
            Mistake(lambda m, w: average(m, w, divide=False), "The sum is not yet divided by the sum of the weights."),
            Mistake(lambda m, w: average(m, [1] * len(m)), "Where are the weights? That is the plain average."),
            Mistake(lambda m, w: average(m, [x / len(m) for x in w], False), "Divide by the sum of the weights."),
            Mistake(lambda m, w: average(m, w)["w"], "Return all tensors by name, as a dict."),
        ],
    ),
    "11.3": FunctionExercise(
        reference=arc,
        cases=[(*_vectors(0), 0.5), (*_vectors(1, 2.0), 0.25), (*_vectors(2, 0.5), 0.9)],
        hint="The angle is that of the directions; then sin((1 − t) θ) / sin θ and sin(t θ) / sin θ.",
        right="mergekit does the same to each tensor of two models.",
        mistakes=[
            Mistake(lambda a, b, t: arc(a, b, t, straight=True), "That is the straight line."),
            Mistake(lambda a, b, t: arc(a, b, t, unit=False), "arccos wants a cosine: divide by both lengths."),
            Mistake(lambda a, b, t: arc(a, b, t, swap=True), "At t = 0 it is a, at t = 1 it is b."),
            Mistake(lambda a, b, t: arc(_unit(a), _unit(b), t), "That is for vectors of length 1."),
        ],
    ),
    "11.4": Exercise(
        reference=[-0.55, 0.7, 0.0, -0.6],
        tolerance=1e-6,
        hint="Keep the two largest of each row, add the columns for the signs, average what has the elected sign.",
        right="In the fourth column one model's −0.6 wins over another's 0.5, though it is one against one.",
        mistakes=[
            Mistake([-0.1, 0.7, 0.0, -0.05], "Those average all that was kept. Where is the election?"),
            Mistake([-0.1, 0.7 / 3, 0.0, -0.1 / 3], "That is the average after the trim, without an election."),
            Mistake([-1.1 / 3, 0.7 / 3, 0.0, -0.2], "Divide by the number of those that agree, not by three."),
            Mistake([-1.1, 0.7, 0.0, -0.6], "Those are sums, not averages over those that agree."),
            Mistake([-0.55, 0.7, 0.2, -0.5], "Nothing was trimmed: each row keeps its two largest numbers."),
            Mistake([0.8, 0.7, 0.0, 0.5], "The sign of the sum is elected; the first column's is negative."),
        ],
    ),
    "11.5": Exercise(
        reference=math.sqrt(10),
        tolerance=0.01,
        hint="A tenth of the numbers, each ten times as large. The length is the root of the sum of squares.",
        right="The sum stays, and the length grows: that is why DARE ends at some density.",
        mistakes=[
            Mistake(10, "Each number that stays is ten times as large, but only a tenth of them stays."),
            Mistake(1, "That is what happens to the sum. The length is the root of the sum of squares."),
            Mistake(math.sqrt(0.1), "That is without the multiplication."),
        ],
    ),
    "11.6": FunctionExercise(
        reference=forget,
        cases=[(*_arrays(3, 3), 0.5), (*_arrays(4, 3), 1.0), (*_arrays(5, 3), 0.2)],
        hint="model − scale · (taught − base), for each name.",
        right="It needs no letter of what should stay, which is both its charm and its risk.",
        mistakes=[
            Mistake(lambda m, t, b, s: forget(m, t, b, s, sign=1), "That teaches it once more: the sign is plus."),
            Mistake(lambda m, t, b, s: forget(m, t, b, s, whole=True), "Subtract the task vector, not all of it."),
            Mistake(lambda m, t, b, s: forget(m, t, b, 1.0), "Where is the scale?"),
            Mistake(lambda m, t, b, s: forget(m, m, b, s), "The task vector is that of `taught`, not of the model."),
        ],
    ),
    "11.7": OpenExercise(
        reference=(98.0, 4.0),
        accepts=_pair(lambda yes, no: 70 <= yes <= 100 and 0 <= no < 60 and yes > no + 20),
        hint="dare(start, [expert], 0.3, 1, seed=0), and once more with a weight that takes the rescaling back.",
        right="The same numbers were kept both times. The layers want the sum, not the single weights.",
        mistakes=[
            Mistake(0.95, "Give two numbers: rescaled, then not.", lambda x: not isinstance(x, tuple | list)),
            Mistake((4.0, 98.0), "The other way round: first the rescaled one.", _pair(lambda a, b: b > a + 20)),
            Mistake((0.98, 0.04), "Those look like shares from 0 to 1; give %.", _pair(lambda a, b: max(a, b) <= 1)),
            Mistake((98.0, 98.0), "Twice the same. Is one weight the density?", _pair(lambda a, b: abs(a - b) < 20)),
        ],
    ),
}  # fmt: skip
