"""The exercises of chapter 07: reference answers, and the hints that typical mistakes deserve."""

from math import erf

import numpy as np

from course.classroom.exercises import Exercise, FunctionExercise, Mistake

WIDTH, LAYERS = 4096, 32  # Llama-2-7B
CACHED = LAYERS * 2 * 20 * WIDTH  # keys and values of 20 virtual tokens
DICE = np.random.default_rng(0)
WEIGHT, DOWN, UP, ROWS = (DICE.normal(size=shape).round(2) for shape in ((3, 4), (2, 4), (4, 2), (5, 4)))
SQUARE, FACTORS = WEIGHT[:, :3], np.array([2.0, 0.5, -1.0, 3.0])
THREE = (WEIGHT, False), (SQUARE, True), (SQUARE, False)
TABLE = np.array([[3.0, 0.0], [0.2, 0.3], [0.0, -0.5], [-2.0, 0.1]])
SOFT = np.array([[0.3, -2.0], [-0.2, -0.1], [0.4, 0.5], [1.0, 0.4], [1.0, 0.6], [5.0, 6.0]])


def adapters(size=64, layers=LAYERS, places=2, biases=True):
    """Numbers of bottleneck adapters; 07.1's for the defaults."""
    return layers * places * (2 * WIDTH * size + biases * (WIDTH + size))


def folded(weight, factors, of_inputs, change=np.multiply):
    """Reference of 07.3."""
    return change(weight, factors if of_inputs else factors[:, None])


def adapted(x, down, up, curve=lambda narrow: np.maximum(narrow, 0)):
    """Reference of 07.4."""
    return x + curve(x @ down.T) @ up.T


def nearest(soft, table, choose=np.argmax):
    """Reference of 07.5."""
    return choose(_unit(soft) @ _unit(table).T, axis=1)


def _unit(rows, power=2):
    return rows / np.linalg.norm(rows, power, axis=1, keepdims=True)


def _gelu(narrow):
    return narrow * (1 + np.vectorize(erf)(narrow / 2**0.5)) / 2


CHECKS = {
    "07.1": Exercise(
        reference=adapters(),
        tolerance=0,
        hint="Count one adapter: two matrices and their two biases. Then count the adapters.",
        right="Half a percent of the model: 0.4 GB of FP32 gradients and averages instead of 81.",
        mistakes=[
            Mistake(adapters(places=1), "Each layer has two adapters, and each a way down and a way back up."),
            Mistake(adapters(biases=False), "Both linear layers of an adapter have a bias."),
            Mistake(adapters(layers=1), "That is one layer of the model."),
            Mistake(adapters(places=1) + LAYERS * (129 * 11_008 + 64), "Both stand where a row is 4,096 wide again."),
            Mistake(LAYERS * 4 * WIDTH * 65, "The bias of the way down is as long as the bottleneck."),
        ],
    ),
    "07.2": Exercise(
        reference=2 * CACHED,
        tolerance=0,
        hint="A key and a value for each virtual token in each layer, as wide as the model here, 2 bytes a number.",
        right="10.5 MB. A prompt of 20 tokens is stored in 0.16 MB, and takes the same 10.5 MB once it is read.",
        mistakes=[
            Mistake(CACHED, "Either the values are missing, or these are numbers and not bytes."),
            Mistake(20 * WIDTH * 2, "That is a soft prompt as it is stored: rows of the embedding alone."),
            Mistake(4 * CACHED, "BF16 has two bytes a number."),
            Mistake(2 * CACHED // LAYERS, "Every layer has its own keys and values."),
            Mistake(2 * CACHED / 1e6, "The question asks for bytes, not for millions of them.", lambda x: 9 < x < 11),
        ],
    ),
    "07.3": FunctionExercise(
        reference=folded,
        cases=[(WEIGHT, FACTORS, True), *((w, FACTORS[:3], i) for w, i in THREE)],
        hint="weight is (out, in). A factor of an output belongs to a row, a factor of an input to a column.",
        right="After this the model computes nothing more than before, which no bottleneck adapter can say.",
        mistakes=[
            Mistake(lambda w, f, i: folded(w, f, i, np.add), "Factors multiply; what is added is a bias."),
            Mistake(lambda w, f, i: folded(w, f, i, np.divide), "That divides by the factors."),
            Mistake(lambda w, f, i: w, "Nothing has changed: return the new weight."),
            Mistake(lambda w, f, i: w * f.mean(), "Each row, or column, has a factor of its own."),
            Mistake(lambda w, f, i: folded(w, 1 + f, i), "A factor of 1 leaves a row as it is, so add no 1 to it."),
            Mistake(lambda w, f, i: folded(w, f, len(w) != len(f)), "Ask `of_inputs`: a square fits either way."),
            Mistake(lambda w, f, i: folded(w, f, w.shape[1] == len(f)), "A square says nothing: ask `of_inputs`."),
        ],
    ),
    "07.4": FunctionExercise(
        reference=adapted,
        cases=[(ROWS, DOWN, UP), (ROWS[:1], DOWN, 0 * UP), (-ROWS, DOWN, UP)],
        hint="Down, the curve, up, and then the sum. Matrices are (out, in), as torch has them.",
        right="With `up` zero the rows pass unchanged: that is how it begins.",
        mistakes=[
            Mistake(lambda x, d, u: adapted(x, d, u) - x, "What came in has to be added again."),
            Mistake(lambda x, d, u: adapted(x, d, u, lambda n: n), "Without the curve, two matrices are only one."),
            Mistake(lambda x, d, u: np.maximum(adapted(x, d, u), 0), "What came in passes without a curve."),
            Mistake(lambda x, d, u: x + np.maximum(x @ d.T @ u.T, 0), "The curve comes before the way up."),
            Mistake(lambda x, d, u: adapted(x, d, u, _gelu), "The exercise asks for ReLU, not for GELU."),
            Mistake(lambda x, d, u: adapted(x, d, u, np.abs), "ReLU makes negative numbers zero."),
            Mistake(lambda x, d, u: x * (1 - x + adapted(x, d, u)), "An adapter adds. What multiplies is IA3."),
        ],
    ),
    "07.5": FunctionExercise(
        reference=nearest,
        cases=[(SOFT[:3], TABLE), (SOFT, TABLE), (3 * TABLE[::-1], TABLE)],
        hint="Divide each row of both by its length, multiply, and take the place of the largest in each row.",
        right="By the angle alone, so that a row's length does not decide.",
        mistakes=[
            Mistake(lambda s, t: (s @ t.T).argmax(axis=1), "That favours the long rows. Divide by the lengths."),
            Mistake(lambda s, t: ((s[:, None] - t) ** 2).sum(2).argmin(1), "That is nearest by distance, not angle."),
            Mistake(lambda s, t: (s @ _unit(t, 1).T).argmax(1), "A row's length is the root of its summed squares."),
            Mistake(lambda s, t: nearest(s, t, np.argmin), "A cosine is largest where the angle is smallest."),
            Mistake(lambda s, t: nearest(s, t, np.max), "Those are the cosines. Return the places of the words."),
        ],
    ),
    "07.6": Exercise(
        reference=75.2,
        tolerance=0.015,
        hint="Freeze a fresh model, let `model.model.layers[0]` train, and divide what both forward passes keep.",
        right="It trains as many numbers as the top layer, but backward has to come down through all the others.",
        mistakes=[
            Mistake(28.7, "That is the top layer. Was layer 0 meant to train?"),
            Mistake(71.3, "That is what the top layer does not keep.", when=lambda share: 70.4 < share < 72.4),
            Mistake(73.0, "That is what the adapters keep, not layer 0.", when=lambda share: 72.4 < share < 73.6),
            Mistake(97.2, "So much is kept when all layers train. Freeze the model before you let one of them."),
            Mistake(24.8, "That is the share that it does not keep."),
            Mistake(0.752, "That is a share from 0 to 1. The question asks for %."),
            Mistake(41.4, "That looks like MB. Divide by what full finetuning keeps."),
            Mistake(69.5, "Is the embedding trained there, and not the lowest layer?"),
        ],
    ),
}
