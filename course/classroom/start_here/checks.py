"""The exercises of chapter 00: reference answers, and the hints that typical mistakes deserve."""

import json

from course.classroom.exercises import Exercise, FunctionExercise, Mistake, OpenExercise


def _parse(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _share(same):
    """The function that gives the share of answers that are the `same` as what was wanted."""
    return lambda outputs, wanted: sum(map(same, outputs, wanted)) / len(wanted)


def exact_share(outputs, wanted):
    """Reference of 00.4."""
    return sum(_parse(o) == _parse(w) for o, w in zip(outputs, wanted, strict=True)) / len(wanted)


def _values(text):
    record = _parse(text)
    return sorted(map(str, record.values())) if isinstance(record, dict) else record


def _holds(output, wanted):
    record = _parse(output)
    return isinstance(record, dict) and record.items() >= _parse(wanted).items()


def _until_it_breaks(outputs, wanted):
    try:
        return _share(lambda o, w: json.loads(o) == json.loads(w))(outputs, wanted)
    except ValueError:
        return 0.0


def _two_shares(answer):
    return (
        isinstance(answer, list | tuple)
        and len(answer) == 2
        and all(isinstance(share, float | int) and 0 <= share <= 1 for share in answer)
    )


def loss_weights(n_prompt, n_completion):
    """Reference of 00.3."""
    return [0] * n_prompt + [1] * (n_completion + 1)


CHECKS = {
    "00.1": Exercise(
        reference=4 * (576 + 1536),
        tolerance=0,
        hint="LoRA adds two matrices: A is (rank, inputs) and B is (outputs, rank). Count both.",
        right="Two thin matrices, 4 × 576 and 1,536 × 4, beside one of 1,536 × 576.",
        mistakes=[
            Mistake(
                576 * 1536,
                "That is the whole matrix, which full finetuning would train. LoRA leaves it frozen.",
            ),
            Mistake(4 * 576, "That is A alone. B turns the four numbers back into outputs and is trained too."),
            Mistake(4 * 1536, "That is B alone. A, which makes the four numbers, is trained too."),
            Mistake(4 * 576 * 1536, "The sizes of two matrices add up; they do not multiply with each other."),
            Mistake(4 * 4 * (576 + 1536), "The rank counts once in each matrix. You have it squared."),
            Mistake(8 * (576 + 1536), "That is rank 8, as in the chapter. The exercise asks for another rank."),
        ],
    ),
    "00.2": Exercise(
        reference=6 * 38,
        tolerance=0,
        hint="Count the batches in one epoch first. The last one may be smaller, but it is a step like the others.",
        right="38 batches an epoch, the last with 8 examples.",
        mistakes=[
            Mistake(6 * 600 / 16, "There is no half step. What happens to the examples that do not fill a batch?"),
            Mistake(6 * 37, "The last batch of an epoch is not full, and it is trained on all the same."),
            Mistake(6 * 600, "That counts examples. One step takes a batch of them."),
            Mistake(38, "That is one epoch."),
            Mistake(3 * 38, "That is the chapter's run of 3 epochs. The exercise asks for more of them."),
        ],
    ),
    "00.3": FunctionExercise(
        reference=loss_weights,
        cases=[(3, 2), (1, 4), (5, 1)],
        hint="One weight for each token of the prompt, then one for each token of the answer, then the end token.",
        right="The prompt is read, the answer and its end are learned.",
        mistakes=[
            Mistake(
                lambda p, c: [0] * p + [1] * c,
                "The end token is missing. A model that never learns to stop keeps on writing after its answer.",
            ),
            Mistake(
                lambda p, c: [1] * (p + c + 1),
                "This also trains on the prompt: the model would learn to write customers' letters.",
            ),
            Mistake(lambda p, c: [1] * (p + c), "This trains on the prompt, and the end token is missing."),
            Mistake(
                lambda p, c: [1] * p + [0] * (c + 1),
                "The other way round: this grades the letter and ignores the answer.",
            ),
            Mistake(
                lambda p, c: [0] * (p + c) + [1],
                "This grades the end token alone. The answer has to count too.",
            ),
        ],
    ),
    "00.4": FunctionExercise(
        reference=exact_share,
        cases=[
            (['{"a": 1, "b": 2}', "{}"], ['{"b": 2, "a": 1}', "{}"]),
            (['{"a":1}', '{"a": 2}', "a mug"], ['{"a": 1}', '{"a": 1}', '{"a": 1}']),
            (["{", '{"a": 1}'], ['{"a": 1}', '{"a": 1}']),
            (['{"to": null}', '{"a": 1, "b": 2}'], ['{"to": null}', '{"a": 2, "b": 1}']),
            (['{"a": 1}', '{"a": 2}'], ['{"a": 2}', '{"a": 1}']),
            (['{"a": 1, "b": 2}', '{"a": 1}', '{"a": "1"}'], ['{"a": 1}', '{"a": 1, "b": 2}', '{"a": 1}']),
            (['{"a": 1}\n\nGood morning', '{"a": 1}\n{"a": 1}'], ['{"a": 1}', '{"a": 1}']),
            (['{"a": "Red mug"}', '{"a": "redmug"}', '{"a": "red mug"}'], ['{"a": "red mug"}'] * 3),
        ],
        hint="Parse both texts, compare the objects, and divide the hits by the number of examples.",
        right="Objects are compared, so that spaces and the order of keys do not count.",
        mistakes=[
            Mistake(
                _share(lambda o, w: o == w),
                'This compares texts. {"a":1} and {"a": 1} are the same object: parse before you compare.',
            ),
            Mistake(
                lambda o, w: 100 * exact_share(o, w),
                "This is in percent. A share goes from 0 to 1.",
            ),
            Mistake(
                _share(lambda o, w: not isinstance(_parse(o), str)),
                "This counts what parses. An answer can be valid JSON and still be wrong.",
            ),
            Mistake(
                _share(lambda o, w: _values(o) == _values(w)),
                "This compares the values alone. The right values under the wrong keys are a wrong record.",
            ),
            Mistake(_share(_holds), "This lets an answer pass that holds more than was wanted."),
            Mistake(
                _share(lambda o, w: _parse(o.split("\n")[0]) == _parse(w)),
                "This reads the first line alone. An answer that goes on after its record is wrong.",
            ),
            Mistake(
                lambda o, w: round(exact_share(o, w), 2),
                "This rounds the share. Give it as it is.",
            ),
            Mistake(
                _share(lambda o, w: _parse(o.lower()) == _parse(w.lower())),
                "This takes Red and red for the same. Exact match compares texts as they are.",
            ),
            Mistake(
                _until_it_breaks,
                "One answer that is not JSON makes all the others wrong here. Catch the error for each answer apart.",
            ),
            Mistake(
                lambda o, w: _share(lambda one, _: any(_parse(one) == _parse(other) for other in w))(o, w),
                "This looks for each answer among all the records. Compare it with its own.",
            ),
            Mistake(
                lambda o, w: exact_share(o, w) * len(w),
                "This is the number of hits. Divide by the number of examples.",
            ),
        ],
    ),
    "00.5": Exercise(
        reference=116_736 * 4,
        tolerance=0,
        hint="Each trainable parameter is one FP32 number. How many bytes is that?",
        right="Less than half a megabyte. The base model's file is nine times as large, at two bytes a parameter.",
        mistakes=[
            Mistake(116_736, "That is the number of parameters. Each takes more than one byte."),
            Mistake(116_736 * 32, "That is in bits."),
            Mistake(116_736 * 8, "That would be a 64-bit format."),
            Mistake(0.466944, "That is in megabytes. The question asks for bytes."),
            Mistake(116_736 * 2, "That would be a 16-bit format. These adapters are trained in FP32."),
            Mistake(
                116_736 * 16,
                "That adds gradients and Adam's two averages. They are needed to train, not to keep.",
            ),
        ],
    ),
    "00.6": OpenExercise(
        reference=[0.97, 0.45],
        accepts=lambda shares: (
            _two_shares(shares)
            and 0.85 <= shares[0] <= 1
            and 0.2 < shares[1] < 0.75
            and all(abs(100 * share - round(100 * share)) < 1e-9 for share in shares)
        ),
        hint="Give a list of two shares from 0 to 1, each `.exact` of what `evaluate` returns, recommend first.",
        right="The form of a record needs few letters. What the shop's names for moods and subjects mean needs more.",
        mistakes=[
            Mistake(
                [0.45, 0.97],
                "Feedback better than recommend? Give the share of recommend first.",
                when=lambda x: _two_shares(x) and x[0] < 0.75 <= x[1],
            ),
            Mistake(
                [97.0, 45.0],
                "A share goes from 0 to 1; this looks like percent.",
                when=lambda x: len(x) == 2 and 1 < max(x) <= 100,
            ),
            Mistake(
                [0.97, 0.98],
                "Opinions as good as wishes? Train the second adapter on feedback, and score it on feedback.",
                when=lambda x: _two_shares(x) and min(x) >= 0.75,
            ),
            Mistake(
                [0.97, 0.0],
                "So few? Train each adapter on a fresh model for max_steps steps; score it on its own kind.",
                when=lambda x: _two_shares(x) and (x[0] < 0.85 or x[1] <= 0.2),
            ),
            Mistake(
                [0.975, 0.45],
                "Of 100 letters, the share is a whole number of hundredths. Score 100 test letters of each kind.",
                when=_two_shares,
            ),
            Mistake(0.97, "Give both shares, as a list.", when=lambda x: isinstance(x, float | int)),
        ],
    ),
}
