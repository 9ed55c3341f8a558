"""The exercises of chapter 02: reference answers, and the hints that typical mistakes deserve."""

import math

import torch

from course.classroom.exercises import Exercise, FunctionExercise, Mistake

H, F, A = 2048, 5632, 32  # the block that 02.6 asks about
ONE_TOKEN = 10 * H + 4 * F + A + 2


def two_sided(f, x, h):
    """Reference of 02.3."""
    return (f(x + h) - f(x - h)) / (2 * h)


def sigmoid_backward(output, arriving):
    """Reference of 02.4."""
    return arriving * output * (1 - output)


def linear_backward(arriving, x, weight):
    """Reference of 02.5."""
    return arriving @ weight, arriving.T @ x


def kept_by(trained):
    """Bytes that shop-s keeps when these of its blocks are trained, on 4 texts of 128 tokens."""
    passing, own = 6 * 192 + 3 * 512 + 4 + 2, 4 * 192 + 512
    blocks = (4 - min(trained)) * passing + len(trained) * own
    return 4 * (512 * (blocks + 2048) + 2 * 128 * 48 + 1) + 8 * 513


def _cube(x):
    return x**3


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CHECKS = {
    "02.1": Exercise(
        reference=-16,
        tolerance=0,
        hint="Go back from the loss: the square's slope first, then the difference's, then the product's.",
        right="The slope of the square is 2e, and from e to w it is x.",
        mistakes=[
            Mistake(16, "Look at the sign of e: is the prediction too high or too low?"),
            Mistake(-4, "That is the gradient of e. It still has to pass the product."),
            Mistake(-8, "On the way to w lie a square and a product. One slope has lost a factor 2."),
            Mistake(-12, "That is the gradient of x. By one factor, a product's slope is the other factor."),
            Mistake(4, "That is the loss itself."),
        ],
    ),
    "02.2": Exercise(
        reference=24,
        tolerance=0,
        hint="Find every path from a to the result. Multiply the slopes along each, and add the paths up.",
        right="One path goes through u and one is direct.",
        mistakes=[
            Mistake(12, "That is one path. a is used twice, and both uses count."),
            Mistake(9, "That is the gradient of b. Which paths lead from a?"),
            Mistake(36, "That is the result itself."),
            Mistake(144, "Slopes multiply along a path. Where paths meet, they add."),
        ],
    ),
    "02.3": FunctionExercise(
        reference=two_sided,
        cases=[(_cube, 2.0, 0.5), (math.exp, 1.0, 0.1), (abs, 0.0, 1e-3)],
        hint="Nudge x up by h and down by h, and divide the difference of the results by the distance between the two.",
        right="Up and down alike, so that the error shrinks with the square of h.",
        mistakes=[
            Mistake(lambda f, x, h: (f(x + h) - f(x)) / h, "This nudges up only: its error shrinks no faster than h."),
            Mistake(lambda f, x, h: (f(x + h) - f(x - h)) / h, "How far apart are the two places where you call f?"),
            Mistake(lambda f, x, h: (f(x + h) - f(x - h)) / 2, "The distance between the two places depends on h."),
            Mistake(lambda f, x, h: (f(x - h) - f(x + h)) / (2 * h), "Right size, wrong sign: which comes first?"),
        ],
    ),
    "02.4": FunctionExercise(
        reference=sigmoid_backward,
        cases=[(0.5, 1.0), (0.9, 2.0), (0.2, -3.0)],
        hint="Write the slope of 1 / (1 + e⁻ˣ) in terms of its own result, then multiply by what arrives.",
        right="The output is enough: the input need not be kept.",
        mistakes=[
            Mistake(lambda out, arriving: out * (1 - out), "That is the slope. What arrives is missing."),
            Mistake(lambda out, arriving: arriving * (1 - out**2), "That is the slope of tanh."),
            Mistake(lambda out, arriving: arriving * out, "That is the slope of exp."),
            Mistake(
                lambda out, arriving: sigmoid_backward(1 / (1 + math.exp(-out)), arriving),
                "You are given the sigmoid's output, not its input.",
            ),
        ],
    ),
    "02.5": FunctionExercise(
        reference=linear_backward,
        cases=[(_random(5, 3), _random(5, 4), _random(3, 4)), (_random(2, 2), _random(2, 2), _random(2, 2))],
        hint="Each gradient has the shape of what it belongs to: x (batch, in), weight (out, in).",
        right="The gradient of x needs the weight, and that of the weight needs x.",
        mistakes=[
            Mistake(lambda g, x, w: (g.T @ x, g @ w), "Both are there, in the other order: that of x comes first."),
            Mistake(lambda g, x, w: (g @ w, x.T @ g), "The second is (in, out). The weight is (out, in)."),
            Mistake(lambda g, x, w: (g @ w, g.T @ x / len(x)), "This averages. The gradients of the examples add up."),
            Mistake(lambda g, x, w: g @ w, "Two gradients are asked for: that of x, and that of the weight."),
        ],
    ),
    "02.6": Exercise(
        reference=4 * 1024 * ONE_TOKEN,
        tolerance=1e-5,
        hint="Count the numbers kept for one token with this chapter's formula, then all tokens, then bytes.",
        right="176 MB for the block, beside 205 MB of weights. At 2,048 tokens it is more than they are.",
        mistakes=[
            Mistake(1024 * ONE_TOKEN, "Those are numbers. Each is an FP32, of four bytes."),
            Mistake(2 * 1024 * ONE_TOKEN, "Two bytes each would be a 16-bit format. Here it is FP32."),
            Mistake(4 * ONE_TOKEN, "That is for one token."),
            Mistake(4 * 1024 * (ONE_TOKEN - 4 * H - F), "That is a frozen block. What do its weights need besides?"),
            Mistake(4 * 1024 * (ONE_TOKEN - A - 2), "Close. Two norms and each head keep a few numbers more."),
            Mistake(4 * 1024 * (ONE_TOKEN + 2 * 64), "That is with the cosines and sines. All blocks share those."),
            Mistake(176.3, "That is in MB. Give bytes.", when=lambda answer: 175 < answer < 178),
            Mistake(168.1, "That is in MiB. Give bytes.", when=lambda answer: 167 < answer < 169),
            Mistake(4 * (4 * H * H + 3 * H * F), "Those are the block's weights. They are there anyway."),
        ],
    ),
    "02.7": Exercise(
        reference=kept_by({2, 3}),
        tolerance=0.0005,
        hint="Freeze all, make blocks 2 and 3 trainable, and take .nbytes of the SavedTensors around loss_of.",
        right="Below the lowest trained block nothing is kept; above it, all that passes a gradient on.",
        mistakes=[
            Mistake(kept_by({3}), "That is the last block alone. The one below it is trained too."),
            Mistake(kept_by({0, 1}), "Those are the two lowest blocks. The upper two have the numbers 2 and 3."),
            Mistake(kept_by({1, 2}), "Blocks are counted from 0, so the upper two of four are not 1 and 2."),
            Mistake(kept_by({0, 1, 2, 3}), "That is all four blocks: freeze the model before you make two trainable."),
            Mistake(20.5, "That is in MB. Give bytes.", when=lambda answer: 20 < answer < 21),
            Mistake(19.6, "That is in MiB. Give bytes.", when=lambda answer: 19 < answer < 20),
        ],
    ),
}
