"""The exercises of chapter 12: reference answers, and the hints that typical mistakes deserve."""

import math

from course.classroom.exercises import Exercise, FunctionExercise, Mistake


def slices(layers, length, step, end_in=False, drop=0, beyond=False):
    """Reference of 12.3; other settings make the mistakes."""
    firsts = range(0, layers if beyond else layers - length + 1, step)
    made = [(first, first + length - end_in) for first in firsts]
    return made[: len(made) - drop]


def routed(scores, k, renormalized=True, by_rank=False, even=False, all_of_them=False):
    """Reference of 12.4; other settings make the mistakes."""
    order = sorted(range(len(scores)), key=lambda expert: -scores[expert])
    chosen = order if all_of_them else order[:k]
    total = sum(math.exp(scores[expert]) for expert in (chosen if renormalized else order))
    shares = {expert: 1 / len(chosen) if even else math.exp(scores[expert]) / total for expert in chosen}
    return [shares.get(expert, 0.0) for expert in (order if by_rank else range(len(scores)))]


CHECKS = {
    "12.1": Exercise(
        reference=60,
        tolerance=0,
        hint="Two copies, and each has lost 10 layers.",
        right="Half as deep again, as SOLAR's 48 are of 32.",
        mistakes=[
            Mistake(80, "Those are two whole copies. Ten layers are dropped from each."),
            Mistake(70, "Ten layers are dropped from each copy, not from one."),
            Mistake(30, "That is one copy. There are two."),
            Mistake(50, "From each of the two copies ten are dropped; add what is left of both."),
        ],
    ),
    "12.2": Exercise(
        reference=2 * (48 * 0.218 + 0.262),
        hint="48 layers and the embeddings, two bytes a number.",
        right="Mistral 7B takes 14.5 GB: half as deep again is not quite half as large again.",
        mistakes=[
            Mistake(48 * 0.218 + 0.262, "Those are billions of parameters. BF16 has two bytes a number."),
            Mistake(2 * 48 * 0.218, "Embeddings and head are there as well, once."),
            Mistake(2 * (32 * 0.218 + 0.262), "That is Mistral with its 32 layers."),
            Mistake(3 * (32 * 0.218 + 0.262), "The layers grow by half; embeddings and head do not."),
            Mistake(4 * (48 * 0.218 + 0.262), "That is FP32. BF16 has two bytes a number."),
            Mistake(2e9 * (48 * 0.218 + 0.262) / 2**30, "Those are GiB. A GB is 10⁹ bytes."),
        ],
    ),
    "12.3": FunctionExercise(
        reference=slices,
        cases=[(80, 16, 8), (6, 2, 1), (12, 4, 4)],
        hint="The first begins at 0, each next one `step` later, and the last one that still fits ends at `layers`.",
        right="With 80, 16 and 8 that is nearly Goliath: nine slices, here of 144 layers.",
        mistakes=[
            Mistake(lambda n, m, s: slices(n, m, s, end_in=True), "The end is not included: 0 to 16 are 16 layers."),
            Mistake(lambda n, m, s: slices(n, m, s, drop=1), "The last slice is missing: it ends at the last layer."),
            Mistake(lambda n, m, s: slices(n, m, s, beyond=True), "The last ones reach beyond the last layer."),
            Mistake(lambda n, m, s: slices(n, m, m), "Each begins `step` layers after the one before, not `length`."),
            Mistake(lambda n, m, s: [(f, m) for f, _ in slices(n, m, s)], "Give the first layer and the end."),
        ],
    ),
    "12.4": FunctionExercise(
        reference=routed,
        cases=[([1.0, 3.0, 2.0, -1.0], 2), ([0.5, 0.1, 2.0], 1), ([0.3, -0.2, 0.1, 0.9], 3)],
        hint="Find the k largest scores, take the softmax over them, and put the results at their experts' places.",
        right="They sum to 1, and that is why copies answer as the dense model does.",
        mistakes=[
            Mistake(
                lambda s, k: routed(s, k, renormalized=False),
                "The weights of the chosen do not sum to 1: take the softmax over them alone.",
            ),
            Mistake(lambda s, k: routed(s, k, all_of_them=True), "Only k experts are chosen; the others have 0."),
            Mistake(lambda s, k: routed(s, k, even=True), "Not all chosen count alike: the softmax decides."),
            Mistake(lambda s, k: routed(s, k, by_rank=True), "One weight an expert, in the experts' order."),
        ],
    ),
    "12.5": Exercise(
        reference=11.8,
        hint="What is not feed-forward is there once; of the feed-forward networks a token meets two.",
        right="And all eight take 40.6 billion of memory, whichever are met.",
        mistakes=[
            Mistake(40.6, "Those are all eight. A token goes to two of them."),
            Mistake(14, "Attention, norms and embeddings are not doubled, only the feed-forward networks."),
            Mistake(56, "Only the feed-forward networks are copied, and a token meets two copies."),
            Mistake(9.6, "Those are the two experts. What is not feed-forward is met as well."),
            Mistake(7, "That is the dense model: one feed-forward network for each token. Here it is two."),
        ],
    ),
    "12.6": Exercise(
        reference=3,
        tolerance=0,
        hint="For layer n, stack the slices 0 to n and n + 1 to 6 (none that is empty), and compare the losses.",
        right="Its loss is 1.1 nats instead of 0.75. The first layer is the one that nothing can do without.",
        mistakes=[
            Mistake(0, "That one costs most: without it, the others read bare embeddings."),
            Mistake(5, "The last layer prepares what the head reads, and costs much."),
            Mistake(2, "Costly here. Did you count layers from 0?"),
            Mistake(4, "Near: it is the second. Compare once more."),
            Mistake(1, "It comes third. Did you try all six?"),
        ],
    ),
}
