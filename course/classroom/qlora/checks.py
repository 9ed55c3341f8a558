"""The exercises of chapter 10: reference answers, and the hints that typical mistakes deserve."""

from statistics import NormalDist

import numpy as np
import torch

from course.classroom.exercises import Exercise, FunctionExercise, Mistake, OpenExercise

WEIGHTS_70B = 80 * (2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 8192 * 28672)  # of Llama 2 70B's matrices
SAVED = (32 / 64 - 8 / 64 - 32 / (64 * 256)) / 8 * WEIGHTS_70B  # bytes, by double quantization
WEIGHTS_7B = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)  # of LLaMA 7B's
WEIGHTS_13B = 40 * (4 * 5120 * 5120 + 3 * 5120 * 13824)
BLOCKS = 4 * (4 * 192 * 192 + 3 * 192 * 512) // 64  # of shop-s


def normal(bits, furthest, negative=-1, scaled=True, even=False, mirrored=False, zeros=0):
    """Reference of 10.2; other arguments than the first two make the mistakes."""
    half, at = 2 ** (bits - 1), NormalDist().inv_cdf
    place = (lambda p: 2 * p - 1) if even else at
    up = [place(0.5 + (furthest - 0.5) * i / half) for i in range(1, half + 1)]
    less = half + negative
    down = [-place(0.5 + (furthest - 0.5) * i / less) for i in range(1, less + 1)]
    levels = sorted(up + down + [0.0] * (zeros or 1))
    levels = [level / up[-1] for level in levels] if scaled else levels
    return [-level for level in reversed(levels)] if mirrored else levels


def _unsorted(answer):
    """Whether these are NF4's levels in another order."""
    mine = sorted(answer(4, 0.9677083))
    return len(mine) == 16 and np.allclose(mine, normal(4, 0.9677083), atol=1e-4)


def back(gradient, codes, scale, levels):
    """Reference of 10.4: the weight is made of its codes again, and the gradient goes back through it."""
    block = codes.size // scale.size
    weight = levels[codes].reshape(-1, block) * scale[:, None]
    return gradient @ weight.reshape(codes.shape)


def _case(seed, side=8, block=4):
    """gradient (tokens, out), codes (out, in), scale (blocks,), levels (16,); square, so that no mistake stops."""
    dice = np.random.default_rng(seed)
    codes = dice.integers(0, 16, (side, side))
    scale, levels = 1 + dice.random(side * side // block), np.sort(dice.standard_normal(16))
    return dice.standard_normal((3, side)), codes, scale, levels


def _is_pair(x):
    """Whether an answer is a tuple, a list or an array of two."""
    return isinstance(x, tuple | list | np.ndarray | torch.Tensor) and np.shape(x) == (2,)


def _share(low, high, of=BLOCKS):
    """Whether an answer is (blocks, all blocks) and their share in this range, in %."""
    return lambda x: len(x) == 2 and x[1] == of and low <= 100 * x[0] / x[1] < high


CHECKS = {
    "10.1": Exercise(
        reference=4 + 8 / 32 + 32 / (32 * 256),
        tolerance=1e-4,
        hint="4 bits of code; 8 bits of scale for each 32 weights; 32 bits for each 256 of those scales.",
        right="Half the block costs an eighth of a bit more with quantized scales, and half a bit without.",
        mistakes=[
            Mistake(4 + 32 / 32, "Those are scales in FP32. Here they are quantized to 8 bits."),
            Mistake(4.25, "The scales of the scales are stored, too."),
            Mistake(4 + 8 / 64 + 32 / (64 * 256), "That is for blocks of 64."),
            Mistake(8 / 32 + 32 / (32 * 256), "Those are the scales alone. Add the codes."),
            Mistake(4 + 8 / 32 + 32 / 256, "256 scales share one number, and each of them stands for 32 weights."),
            Mistake((4 + 8 / 32 + 32 / (32 * 256)) / 8, "Those are bytes. Give bits."),
        ],
    ),
    "10.2": FunctionExercise(
        reference=normal,
        cases=[(4, 0.9677083), (3, 0.95), (2, 0.9), (5, 0.98)],
        hint="Quantiles at evenly spaced probabilities from 0.5 to `furthest`, one fewer below zero than above.",
        right="With 4 bits and 0.9677083 these are NF4's sixteen numbers.",
        mistakes=[
            Mistake(lambda b, f: normal(b, f, scaled=False), "Divide them by the largest."),
            Mistake(lambda b, f: normal(b, f, even=True), "Those are evenly spaced. Take quantiles."),
            Mistake(lambda b, f: normal(b, f, mirrored=True), "More levels belong above zero than below."),
            Mistake(lambda b, f: normal(b, f, negative=0), "That is one level too many for the bits."),
            Mistake(lambda b, f: normal(b, f, zeros=2)[1:], "Zero is there twice; the lowest is missing."),
            Mistake(lambda b, f: normal(b, f)[::-1], "Right numbers; sort them from the lowest up.", _unsorted),
        ],
    ),
    "10.3": Exercise(
        reference=SAVED / 1e9,
        tolerance=0.003,
        hint="Bits a weight before and after, times the weights, over 8 for bytes.",
        right="As much as an adapter of rank 64 in FP32, more or less.",
        mistakes=[
            Mistake(32 / 64 / 8 * WEIGHTS_70B / 1e9, "That is all that the scales take at first. Some of it stays."),
            Mistake((8 / 64 + 32 / (64 * 256)) / 8 * WEIGHTS_70B / 1e9, "That is what the scales still take."),
            Mistake((32 / 64 - 8 / 64) / 8 * WEIGHTS_70B / 1e9, "The scales of the scales take a little, too."),
            Mistake(8 * SAVED / 1e9, "Those are gigabits."),
            Mistake(SAVED / 2**30, "Those are GiB. Give GB, of 10⁹ bytes."),
            Mistake(SAVED, "Those are bytes. Give GB."),
        ],
    ),
    "10.4": FunctionExercise(
        reference=back,
        cases=[_case(seed) for seed in range(3)] + [_case(3, block=16)],
        hint="Look the codes up, times each block's scale, as (out, in); multiply the gradient with it.",
        right="The weight is made anew and may go at once: only its codes and scales were kept.",
        mistakes=[
            Mistake(lambda g, c, s, v: back(g, c.T, s, v), "Those codes are transposed."),
            Mistake(lambda g, c, s, v: g @ back(np.eye(len(c)), c, s, v).T, "Forward takes Wᵀ; backward takes W."),
            Mistake(lambda g, c, s, v: g @ v[c], "Where are the scales?"),
            Mistake(lambda g, c, s, v: back(g, c, s, np.arange(16)), "Codes are places in the table."),
            Mistake(lambda g, c, s, v: back(np.eye(len(c)), c, s, v), "That is the weight alone."),
            Mistake(lambda g, c, s, v: back(g, c, 1 / s, v), "Multiply by the scales, do not divide."),
            Mistake(lambda g, c, s, v: back(g, c, s[::-1], v), "The first scale belongs to the first block."),
            Mistake(lambda g, c, s, v: g @ (v[c] * np.resize(s, c.shape)), "Neighbours share a scale: do not tile."),
            Mistake(lambda g, c, s, v: g @ back(np.eye(len(c)), c.T, s, v).T, "Blocks lie along rows, not columns."),
        ],
    ),
    "10.5": Exercise(
        reference=2 * WEIGHTS_13B / 1e9,
        hint="Every matrix of the layers, restored in BF16, at two bytes a weight.",
        right="That is the 16-bit model which the four bits were to avoid.",
        mistakes=[
            Mistake(2 * WEIGHTS_7B / 1e9, "That is LLaMA 7B, as in the chapter. Here it is 13B."),
            Mistake(WEIGHTS_13B / 2e9, "Those are the codes. Autograd keeps what they were restored to."),
            Mistake(4 * WEIGHTS_13B / 1e9, "BF16 has two bytes."),
            Mistake(2 * 13_015_864_320 / 1e9, "Embedding and head are no 4-bit matrices. Leave them out."),
            Mistake(2 * 5120 * 5120 / 1e9, "That is one matrix of 280."),
            Mistake(2 * WEIGHTS_13B / 2**30, "Those are GiB. Give GB, of 10⁹ bytes."),
            Mistake(WEIGHTS_13B / 1e9, "Those are the weights, in billions. Give bytes."),
            Mistake(2 * WEIGHTS_13B, "Those are bytes. Give GB."),
        ],
    ),
    "10.6": Exercise(
        reference=2 * (0.16093020 - 0.07958030) / 2,
        hint="A number goes to another level once it is nearer to that. Which neighbour is closer? What is the scale?",
        right="Whatever an adapter asks for below that is undone by quantizing again.",
        mistakes=[
            Mistake(-2 * (0.16093020 - 0.07958030) / 2, "That is the change, which goes down. Give its size."),
            Mistake((0.16093020 - 0.07958030) / 2, "That is over the block's largest. Multiply by it."),
            Mistake(2 * (0.16093020 - 0.07958030), "That is the whole way. Half of it is enough to be nearer."),
            Mistake(2 * (0.24611230 - 0.16093020) / 2, "The other neighbour is closer."),
            Mistake(2 * 0.16093020, "That is the weight. By how much must it change?"),
        ],
    ),
    "10.7": OpenExercise(
        reference=(4283, BLOCKS),
        accepts=lambda x: _is_pair(x) and _share(15.3, 15.7)(x),
        hint="The sum of the squared errors of each block of 64, in both schemes. In how many is INT4's smaller?",
        right="On the whole NF4 is nearer, but a block that happens to be flat is better off with even steps.",
        mistakes=[
            Mistake(0.155, "Give two counts: the blocks, and all of them.", lambda x: not _is_pair(x)),
            Mistake((22645, BLOCKS), "Those are the blocks where NF4 is nearer.", _share(81, 83)),
            Mistake((23365, BLOCKS), "That counts where NF4 is nearer, or both are exact.", _share(84.4, 84.7)),
            Mistake((5003, BLOCKS), "Some blocks are all zeros, and there nobody is nearer.", _share(17.8, 18.4)),
            Mistake((903, BLOCKS), "INT4 needs a scale for each 64 as well: group_size=64.", _share(3, 4)),
            Mistake((1212, BLOCKS), "Those are absolute errors. Square them before you add.", _share(4.1, 4.7)),
            Mistake((23306, BLOCKS), "Those are the largest errors. Add up squares.", _share(84.1, 84.4)),
            Mistake((4607, BLOCKS), "That is NF4 with double quantization. Take plain NF4.", _share(16.5, 16.9)),
            Mistake((BLOCKS, 4283), "First those where INT4 is nearer, then all.", lambda x: x[0] == BLOCKS),
            Mistake((200, 576), "Count the blocks of all 28 matrices.", lambda x: x[1] < BLOCKS),
            Mistake((270_000, 64 * BLOCKS), "Those are weights. Add up a block first.", lambda x: x[1] > BLOCKS),
        ],
    ),
}
