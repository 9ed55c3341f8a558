"""The exercises of chapter 09: reference answers, and the hints that typical mistakes deserve."""

import numpy as np

from course.classroom.exercises import Exercise, FunctionExercise, Mistake, OpenExercise

FULL, ADAPTER = 5120 * 13824, 16 * (5120 + 13824)  # of 09.1
WEIGHTS = 4 * (4 * 192 * 192 + 3 * 192 * 512)  # of the 28 matrices in 09.7


def mixed(x, weight, a, b, scaling, rows):
    """Reference of 09.3."""
    reduced = np.einsum("nsi,nri->nsr", x, a[rows])
    return x @ weight.T + np.einsum("nsr,nor->nso", reduced, b[rows]) * scaling[rows][:, None, None]


def padded(prompts, pad, right=False, mask_of=None, flip=False, kind=int):
    """Reference of 09.4; other arguments than the first two make the mistakes."""
    longest, ids, mask = max(map(len, prompts)), [], []
    for prompt in prompts:
        fill = [pad] * (longest - len(prompt))
        ids.append(prompt + fill if right else fill + prompt)
        kept = [kind(0)] * len(fill) + [kind(1)] * len(prompt)
        mask.append(kept[::-1] if right != flip else kept)
    return ids, [[mask_of(token) for token in row] for row in ids] if mask_of else mask


def taken(waiting, context, most, skips=False, alone=False, less=0, length=max):
    """Reference of 09.5; other arguments than the first three make the mistakes."""
    batch = []
    for request in waiting:
        together = [request] if alone else [*batch, request]
        prompt, answer = (length(column) for column in zip(*together, strict=True))
        if len(batch) < most and prompt + answer <= context - less:
            batch.append(request)
        elif not skips:
            break
    return len(batch)


def _case(seed, rows, adapters=3):
    """x (rows, seq, in), weight (out, in), a (adapters, rank, in), b (adapters, out, rank), scaling, rows."""
    dice = np.random.default_rng(seed)
    sizes = [(len(rows), 4, 6), (5, 6), (adapters, 2, 6), (adapters, 5, 2), (adapters,)]
    return *(dice.standard_normal(size) for size in sizes), np.array(rows)


def _counted(low=0, high=101, of=1):
    """Whether an answer is (codes that change, all codes) and their share in this range, in %. of: codes in one."""
    return lambda x: isinstance(x, tuple | list) and [*x[1:]] == [WEIGHTS // of] and low <= 100 * x[0] / x[1] < high


CHECKS = {
    "09.1": Exercise(
        reference=50 * FULL / (FULL + 50 * ADAPTER),
        hint="Count the numbers of 50 full matrices, then those of one matrix and 50 pairs of A and B. Divide.",
        right="Larger ranks and fewer customers save less; the limit is how many adapters one matrix weighs.",
        mistakes=[
            Mistake(FULL / ADAPTER, "That is one matrix against one adapter. The base is held as well, once."),
            Mistake(50 * FULL / (50 * ADAPTER + 50 * FULL), "All customers share one base."),
            Mistake((FULL + 50 * ADAPTER) / (50 * FULL), "That is the inverse."),
            Mistake(50 * FULL / (FULL + 50 * 16 * 13824), "Where is A? It reads 5120 numbers."),
            Mistake(50 * FULL / (FULL + 50 * 16 * 5120), "Where is B? It writes 13824 numbers."),
            Mistake(50 * FULL / (FULL + 50 * 8 * 18944), "The rank is 16 here."),
            Mistake(50, "So many, if adapters took nothing."),
        ],
    ),
    "09.2": Exercise(
        reference=2048,
        tolerance=0,
        hint="A has r × 4096 numbers and B has 4096 × r. Together they are to be 4096 × 4096.",
        right="From there on an adapter apart is larger than the matrix that it changes.",
        mistakes=[
            Mistake(4096, "With that rank A alone is as large as the matrix."),
            Mistake(1024, "Count again: there are two thin matrices, not four."),
            Mistake(256, "That is how many adapters of rank 8 the matrix weighs."),
            Mistake(8192, "That is the rank at which they are four times as large."),
            Mistake(0.5, "That is the share of 4096. Give the rank itself."),
        ],
    ),
    "09.3": FunctionExercise(
        reference=mixed,
        cases=[_case(0, [0, 1, 2]), _case(1, [2, 2, 0, 1]), _case(2, [1]), _case(3, [2, 0])],
        hint="x @ weight.T for all; then each row's own A, its own B and its own scaling.",
        right="np.einsum, torch.bmm or a loop over the rows: they all give each row its own adapter.",
        mistakes=[
            Mistake(lambda x, w, a, b, s, rows: mixed(x, w, a, b, np.ones_like(s), rows), "Where is the scaling?"),
            Mistake(
                lambda x, w, a, b, s, rows: mixed(x, w, a, b, s, np.arange(len(x)) % len(a)),
                "Row i takes the adapter rows[i], not the adapter i.",
            ),
            Mistake(lambda x, w, a, b, s, rows: mixed(x, w, a, b, s, rows * 0), "Every row gets the first adapter."),
            Mistake(
                lambda x, w, a, b, s, rows: mixed(x, w * 0, a, b, s, rows), "That is the change alone. Add the base."
            ),
            Mistake(
                lambda x, w, a, b, s, rows: mixed(x, w, a, b, s * 0, rows), "That is the base alone. Add the change."
            ),
            Mistake(
                lambda x, w, a, b, s, rows: sum(mixed(x, w / len(a), a, b, s, rows * 0 + i) for i in range(len(a))),
                "Every row gets all adapters. Each has one of its own.",
            ),
            Mistake(lambda x, w, a, b, s, rows: mixed(x, w, a, b, s**2, rows), "The scaling comes in twice."),
        ],
    ),
    "09.4": FunctionExercise(
        reference=padded,
        cases=[([[5, 6, 7], [8]], 0), ([[4], [4, 0, 9], [3, 3]], 0), ([[1, 2]], 9), ([[7, 7, 1], [7]], 7)],
        hint="Fill each list up in front to the length of the longest; the mask has a 0 for each token put in.",
        right="All rows end where the next token goes, and attention leaves out what was put in.",
        mistakes=[
            Mistake(lambda p, pad: padded(p, pad, right=True), "The next token goes at the end: put padding in front."),
            Mistake(
                lambda p, pad: (padded(p, pad)[0], [[1 - m for m in row] for row in padded(p, pad)[1]]),
                "The mask is the other way round: 1 is what attention may see.",
            ),
            Mistake(
                lambda p, pad: padded(p, pad, mask_of=lambda token: int(token != pad)),
                "A prompt may hold the padding's token itself, and that one counts. Mask by place, not by value.",
            ),
            Mistake(lambda p, pad: padded(p, pad, flip=True), "The mask's zeros do not stand where you padded."),
            Mistake(lambda p, pad: padded(p, pad, True, flip=True), "The mask fits. Put the padding in front, too."),
            Mistake(lambda p, pad: padded(p, pad)[::-1], "First the tokens, then the mask."),
            Mistake(lambda p, pad: padded(p, pad, kind=bool), "Write 1 and 0, not True and False."),
            Mistake(lambda p, pad: padded(p, pad, mask_of=lambda token: 1), "Attention would read the padding, too."),
            Mistake(lambda p, pad: padded(p, 0), "Pad with the token that is given."),
            Mistake(lambda p, pad: padded(p, pad)[0], "Return two lists: the tokens, and the mask."),
        ],
    ),
    "09.5": FunctionExercise(
        reference=taken,
        tolerance=0,
        cases=[
            ([(10, 5), (3, 40), (20, 2)], 50, 8),
            ([(10, 5), (3, 40), (45, 2), (2, 2)], 50, 8),
            ([(5, 5)] * 6, 50, 4),
            ([(30, 20), (1, 1)], 50, 8),
            ([(30, 5), (10, 20), (10, 21), (1, 1)], 50, 8),
            ([(60, 5), (1, 1)], 50, 8),
            ([], 50, 8),
        ],
        hint="Take from the front as long as the longest prompt and the longest answer fit together.",
        right="Nobody is overtaken: a request that does not fit now is the first one of the next batch.",
        mistakes=[
            Mistake(
                lambda w, c, m: taken(w, c, m, alone=True),
                "Rows of a batch are as long as its longest prompt, and go on for its longest answer.",
            ),
            Mistake(
                lambda w, c, m: taken(w, c, m, length=sum),
                "Do not add the rows up: only the longest prompt and the longest answer count.",
            ),
            Mistake(lambda w, c, m: taken(w, c, m, skips=True), "Whoever waits longest goes first: stop there."),
            Mistake(lambda w, c, m: taken(w, c, 99), "There is a limit to the rows of a batch."),
            Mistake(lambda w, c, m: taken(w, c, m, less=1), "What fills the context to the last token fits."),
            Mistake(lambda w, c, m: len(w), "Not all of them fit together."),
            Mistake(lambda w, c, m: min(len(w), m), "Look at the lengths, too."),
        ],
    ),
    "09.6": Exercise(
        reference=0.015625,
        tolerance=0.005,
        hint="BF16's numbers between 2 and 4 are 2⁻⁶ apart. Round 3.01 to one of them, then take 3 off.",
        right="The weight comes back half as large again. A small weight under a large change loses its digits.",
        mistakes=[
            Mistake(
                0.01001, "That is 0.01 in BF16. The sum with 3 has fewer digits.", lambda x: 0.01 < float(x) < 0.0101
            ),
            Mistake(0.01, "That is what exact arithmetic gives back."),
            Mistake(0.0, "The sum is rounded to the nearest number, and that is above it.", lambda x: x == 0),
            Mistake(0.0078125, "Between 2 and 4 the spacing is twice that."),
            Mistake(3.015625, "That is the merged weight. Take the change off again."),
            Mistake(0.03125, "That is one step of the numbers above 4."),
        ],
    ),
    "09.7": OpenExercise(
        reference=(141_000, WEIGHTS),
        accepts=_counted(5, 12),
        hint="Unpacked codes of the base and of the merged weight, matrix by matrix: how many differ, of all?",
        right="All other weights keep their code: they move with their block's scale, not with the adapter.",
        mistakes=[
            Mistake(8.0, "Give two counts: the codes that change, and all.", lambda x: not isinstance(x, tuple | list)),
            Mistake((200_000, WEIGHTS // 2), "Packed bytes hold two codes each. Use `unpacked()`.", _counted(of=2)),
            Mistake((WEIGHTS, 141_000), "First those that change, then all.", lambda x: x[0] == WEIGHTS > x[1]),
            Mistake((3_000, 192 * 192), "Count the codes of all 28 matrices together.", lambda x: x[1] < WEIGHTS),
            Mistake((0, WEIGHTS), "Was the change added before you quantized again?", lambda x: x[0] == 0),
            Mistake((299_000, WEIGHTS), "Start from the NF4 base: restore it, then add.", _counted(12, 40)),
            Mistake((1_550_000, WEIGHTS), "Did you count those that stay, or compare restored weights?", _counted(60)),
        ],
    ),
}
