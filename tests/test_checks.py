"""The bank of wrong answers of every chapter: the reference passes, and each mistake gets its own hint."""

import inspect
import math
import re

import notebook_rules as rules
import numpy as np
import pytest
import torch

from course.classroom import records
from course.classroom.exercises import Exercise, FunctionExercise, Mistake, OpenExercise, judge
from course.classroom.notebook import number

ALL = [(name, exercise) for chapter in records.chapters() for name, exercise in records.exercises(chapter).items()]
every_exercise = pytest.mark.parametrize(("name", "exercise"), ALL, ids=[name for name, _ in ALL])


def test_every_chapter_notebook_has_its_folder():
    chapters = {path.stem[:2]: path.stem[3:] for path in rules.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")}
    assert chapters and records.chapters() == chapters


@every_exercise
def test_the_reference_is_right(name, exercise):
    assert judge(exercise, exercise.reference).right is True


@every_exercise
def test_each_mistake_is_wrong_and_gets_its_own_hint(name, exercise):
    assert exercise.mistakes, "an exercise declares its typical mistakes"
    hints = [mistake.hint for mistake in exercise.mistakes]
    assert len({exercise.hint, *hints}) == len(hints) + 1, "two mistakes share a hint"
    for mistake in exercise.mistakes:
        assert judge(exercise, mistake.example) == (False, f"not yet. {mistake.hint}")


@every_exercise
def test_no_hint_gives_the_answer_away(name, exercise):
    for hint in [exercise.hint, *(mistake.hint for mistake in exercise.mistakes)]:
        assert not leaks(exercise, hint), hint


@every_exercise
@pytest.mark.parametrize("left", [None, ...])
def test_an_open_exercise_is_no_mistake(name, exercise, left):
    assert judge(exercise, left).right is None


class Hostile:
    """An answer whose every use fails."""

    def _fail(self, *args):
        raise RuntimeError("no")

    __eq__ = __len__ = __float__ = __repr__ = __str__ = __iter__ = __call__ = __bool__ = __getattr__ = _fail
    __hash__ = None


STRANGE = [
    "",
    "forty-two",
    b"x",
    True,
    [],
    {},
    {1: 2},
    float("nan"),
    float("inf"),
    -(10**5000),
    1j,
    object(),
    Hostile(),
    print,
    int,
]


@every_exercise
@pytest.mark.parametrize("answer", STRANGE, ids=range(len(STRANGE)))
def test_a_strange_answer_gets_a_sentence(name, exercise, answer):
    verdict = judge(exercise, answer)
    assert verdict.right is not True and len(verdict.message) < 700


def leaks(exercise, hint):
    """Whether the text of the right answer stands in the hint."""
    right = exercise.reference
    if isinstance(exercise, FunctionExercise):
        body = inspect.getsource(right).splitlines()[1:]
        return any(line.strip() in hint for line in body if len(line.strip()) > 10)
    if isinstance(right, bool) or not isinstance(right, int | float | str):
        return repr(right) in hint
    forms = {right} if isinstance(right, str) else {str(right), number(right), f"{right:g}"}
    return any(re.search(rf"(?<![\w.,-]){re.escape(form)}(?![\w]|[.,]\d)", hint, re.IGNORECASE) for form in forms)


def test_a_leak_is_found():
    assert leaks(Exercise(reference=31.2, hint=""), "Is it 31.2?")
    assert leaks(Exercise(reference=31_200_000_000, hint=""), "Close to 31,200,000,000 bytes.")
    assert leaks(Exercise(reference="purple", hint=""), "Look for “Purple”.")
    assert leaks(FunctionExercise(reference=doubled, cases=[(1,)], hint=""), "Try return number * 2 there.")
    assert not leaks(Exercise(reference=2, hint=""), "Multiply by 2.5, or 1,200, or 12.")
    assert not leaks(Exercise(reference="red", hint=""), "You tired of it.")


def doubled(number):
    return number * 2


DOUBLE = FunctionExercise(
    reference=doubled,
    cases=[(1,), (2.5,), (0,)],
    hint="Add the number to itself.",
    mistakes=[Mistake(lambda number: number**2, "That is the square.")],
)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda number: number + number, "right."),
        (lambda x: x * x, "That is the square."),
        (lambda x: 3 * x, "The number is wrong. Add"),
        (lambda x: -2 * x, "Right size, wrong sign. Add"),
        (lambda x: (x and 2 * x) or None, "A value is missing"),
        (lambda x: None, "not answered yet"),
        (lambda x: 1 / x, "ZeroDivisionError: division by zero when called with (0)"),
        (lambda: 1, "TypeError"),
        (lambda x: exit(), "SystemExit"),
        (lambda x: str(x), "The answer is a number; yours is a str."),
        (doubled(2), "The answer is a function, named and not called; yours is an int."),
    ],
)
def test_a_function_is_run_on_its_cases(answer, said):
    assert said in judge(DOUBLE, answer).message


def test_a_case_is_not_changed_by_the_answer():
    exercise = FunctionExercise(reference=sorted, cases=[([2, 1],)], hint="Sort.")
    assert judge(exercise, lambda values: values.sort() or values).right
    assert exercise.cases == [([2, 1],)]


def test_arrays_are_compared_by_shape_then_values():
    import numpy as np
    import torch

    exercise = Exercise(reference=np.array([[1.0, 2.0]]), hint="Think.")
    assert judge(exercise, torch.tensor([[1.0, 2.0]], requires_grad=True)).right
    assert judge(exercise, torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)).right
    assert judge(exercise, [[1, 2]]).right
    assert judge(exercise, np.array([[1.0, 3.0]])).message == "not yet. Right shape, wrong values. Think."
    assert judge(exercise, np.array([[1.0, np.nan]])).message == "not yet. Right shape, but some values are NaN. Think."
    assert judge(exercise, np.array([1.0, 2.0])).message == "not yet. Wrong shape: yours is (2,). Think."
    assert judge(exercise, "12").right is False
    ragged = (np.array([[1.0, 2.0]]), np.array([1.0]))
    assert judge(exercise, ragged).message == "not yet. The answer is one array; yours is a tuple. Think."


def test_a_number_may_come_in_an_array_of_one():
    import numpy as np
    import torch

    exercise = Exercise(reference=-16, tolerance=0, hint="Think.")
    assert judge(exercise, torch.tensor([-16.0])).right and judge(exercise, np.array([[-16]])).right
    assert judge(exercise, torch.ones(2)).message == "not yet. The answer is a number; yours is a Tensor. Think."
    assert judge(exercise, -(10**5000)).message == "not yet. Your number is infinite or too large to hold. Think."


def test_results_may_come_in_any_order_where_chance_decides():
    exercise = FunctionExercise(reference=lambda x: x, cases=[(0,), (1,)], any_order=True, hint="Think.")
    assert judge(exercise, lambda x: 1 - x).right
    assert judge(exercise, lambda x: 1).message == "not yet. The number is wrong. Think."
    assert judge(exercise, lambda x: x or None).message.startswith("not yet. A value is missing")
    assert judge(exercise, lambda x: None).right is None


STOCHASTIC = {  # three that are right: the random number may be added, or be what a step up has to be below or above
    "the sum rounded down": (lambda v, s, u: math.floor(v / s + u) * s, "right."),
    "up if below the rest": (lambda v, s, u: (math.floor(v / s) + (u < v / s % 1)) * s, "right."),
    "up if above 1 - rest": (lambda v, s, u: (math.floor(v / s) + (u > 1 - v / s % 1)) * s, "right."),
    "a fair coin": (lambda v, s, u: math.ceil(v / s) * s if u > 0.5 else math.floor(v / s) * s, "A fair coin."),
    "the wrong way round": (lambda v, s, u: (math.floor(v / s) + (u > v / s % 1)) * s, "The farther neighbour"),
    "no rounding": (lambda v, s, u: v, "The number is wrong."),
}


@pytest.mark.parametrize(("answer", "said"), STOCHASTIC.values(), ids=STOCHASTIC)
def test_stochastic_rounding_is_judged_by_its_odds(answer, said):
    assert said in judge(dict(ALL)["04.5"], answer).message


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("02.5", lambda g, x, w: (g @ w, 2 * g.T @ x), "Right shape, wrong values."),
        ("02.5", lambda g, x, w: g @ w, "Two gradients are asked for"),
        ("02.6", 4 * 1024 * (10 * 2048 + 4 * 5632), "a few numbers more"),
        ("02.6", 176.3, "in MB"),
        ("02.6", 168.13, "in MiB"),
        ("02.7", 20.53, "in MB"),
        ("04.2", 3.99, "The number is wrong."),
        ("04.4", lambda s, e, m: (-1) ** s * (1 + m / 8) * 2.0 ** (e - 7) if e else m / 512, "sign bit do in field 0"),
        ("04.6", 1.97, "The number is wrong."),
        ("04.6", 1.99, "The number is wrong."),
        ("06.4", lambda g, s, m: g * s * min(1.0, m / np.linalg.norm(g * s)), "multiplied by the scale already"),
        ("06.5", lambda *case: one_weight(*case, math.floor, round), "The number is wrong."),
        ("06.5", lambda *case: one_weight(*case, round, math.floor), "The number is wrong."),
        ("06.7", 13.8, "less trained"),  # of another finetune
        ("06.7", 20.7, "the sizes in FP32"),
        ("06.7", 50, "Not there yet."),
        ("06.7", "less", "Now measure"),
        ("07.1", 32 * 2 * 2 * 4096 * 64, "have a bias"),
        ("07.1", 32 * (2 * 4096 * 64 + 64 + 4096), "Each layer has two adapters"),
        ("07.1", 32 * 2 * (4096 * 64 + 64), "The number is wrong."),  # the way down alone
        ("07.2", 32 * 20 * 4096 * 2, "the values are missing"),
        ("07.2", 10.5, "asks for bytes"),
        ("07.2", 32 * 2 * 20 * 4096 * 4, "BF16 has two bytes"),
        ("07.3", lambda w, f, inputs: w * f if inputs else f * w, "could not be broadcast"),
        ("07.3", lambda w, f, inputs: w * f if w.shape[1] == len(f) else w * f[:, None], "A square says nothing"),
        ("07.3", lambda w, f, inputs: w + f if inputs else w + f[:, None], "what is added is a bias"),
        ("07.4", lambda x, down, up: np.maximum(x @ down.T, 0) @ up.T, "has to be added again"),
        ("07.4", lambda x, down, up: x + (x @ down.T) @ up.T, "Without the curve"),
        ("07.4", lambda x, down, up: up @ np.maximum(down @ x.T, 0), "Wrong shape"),
        ("07.4", lambda x, down, up: x + up @ np.maximum(down @ x, 0), "Your function stopped"),
        ("07.5", lambda soft, table: np.argmax(soft @ table.T, axis=1), "favours the long rows"),
        ("07.5", lambda soft, table: np.linalg.norm(soft[:, None] - table, axis=2).argmin(axis=1), "by distance"),
        ("07.5", lambda soft, table: cosines(soft, table).max(axis=1), "Those are the cosines"),
        ("07.5", lambda soft, table: table[cosines(soft, table).argmax(axis=1)], "Wrong shape"),
        ("07.6", 29, "That is the top layer"),
        ("07.6", 73, "what the adapters keep"),
        ("07.6", 0.75, "from 0 to 1"),
        ("07.6", 41.4, "looks like MB"),
        ("07.6", "75 %", "The answer is a number"),
        ("08.1", 16 * 4096 * 4 * 32, "Half of it"),
        ("08.1", 16 * (4096 + 4096) * 4, "That is one layer"),
        ("08.1", 4 * 4096 * 4096 * 32, "the frozen matrices themselves"),
        ("08.2", lambda update, share: counted(update, share, power=1), "Square them first"),
        ("08.2", lambda update, share: counted(update, share) - 1, "One too few"),
        ("08.2", lambda update, share: counted(update / update.norm(), 1 - share), "where the rest is reached"),
        ("08.3", lambda a, b, alpha: alpha * b @ a, "not yet divided"),
        ("08.3", lambda a, b, alpha: alpha / a.shape[0] * a.T @ b.T, "Turn it round"),
        ("08.3", lambda a, b, alpha: alpha / a.shape[0] ** 0.5 * b @ a, "That is rsLoRA"),
        ("08.3", lambda a, b, alpha: alpha / a.shape[0] * a @ b, "Your function stopped"),
        ("08.4", 140, "a little more than the matrix"),
        ("08.4", 512 * 192 / (512 + 192), "a whole number"),
        ("08.4", 192, "the largest rank the matrix can have"),
        ("08.5", lambda w, old, new, s: w + s * new[1] @ new[0], "The old adapter is still"),
        ("08.5", lambda w, old, new, s: w - old[1] @ old[0] + new[1] @ new[0], "multiplied by the scaling"),
        ("08.5", lambda w, old, new, s: w - old[1] @ old[0] + s * new[1] @ new[0], "The old one was scaled, too"),
        ("08.6", 16 / 64**0.5, "That is the scaling"),
        ("08.6", 16, "a quarter only"),
        ("08.7", 0.6, "from 0 to 1"),
        ("08.7", 31, "a count of letters"),  # of 50
        ("08.7", torch.tensor(94.0), "As good as with both"),
        ("08.7", 0, "Was B frozen?"),
        ("09.1", 5120 * 13824 / (16 * (5120 + 13824)), "one matrix against one adapter"),
        ("09.1", 0.0243, "the inverse"),
        ("09.2", 4096, "A alone is as large"),
        ("09.2", 0.5, "the share of 4096"),
        ("09.3", lambda *case: one_by_one(*case, scaled=lambda scaling, i, row: 1), "Where is the scaling?"),
        ("09.3", lambda *case: one_by_one(*case, of=lambda i, row: 0), "Every row gets the first"),
        ("09.3", lambda *case: one_by_one(*case, base=0), "Add the base"),
        ("09.3", lambda *case: one_by_one(*case, scaled=lambda s, i, row: s[i % len(s)]), "Right shape, wrong values."),
        ("09.4", lambda prompts, pad: filled(prompts, pad, behind=True), "put padding in front"),
        ("09.4", lambda prompts, pad: filled(prompts, pad, counts=lambda t: int(t != pad)), "Mask by place"),
        ("09.4", lambda prompts, pad: filled(prompts, pad)[0], "Return two lists"),
        ("09.5", lambda waiting, context, most: sum(p + a <= context for p, a in waiting[:most]), "number is wrong."),
        ("09.5", lambda waiting, context, most: min(len(waiting), most), "Look at the lengths"),
        ("09.5", lambda *case: from_the_front(*case, fits=lambda sums, longest: sum(sums)), "Do not add the rows up"),
        ("09.6", 0.01, "what exact arithmetic gives"),
        ("09.6", torch.tensor(0.01).bfloat16().item(), "That is 0.01 in BF16"),
        ("09.6", torch.tensor(3.01).bfloat16(), "That is the merged weight"),
        ("09.7", 0.08, "Give two counts"),
        ("09.7", [1_769_472, 141_000], "First those that change"),
        ("09.7", (141_000, 884_736), "two codes each"),
        ("09.7", (1_628_000, 1_769_472), "those that stay"),
    ],
)
def test_what_learners_gave(name, answer, said):
    verdict = judge(dict(ALL)[name], answer)
    assert verdict.right is False and said in verdict.message


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("07.1", 33_820_672.0),
        ("07.2", np.int64(10_485_760)),
        ("07.3", lambda w, f, inputs: w @ np.diag(f) if inputs else np.diag(f) @ w),
        ("07.4", lambda x, down, up: (x.T + up @ np.maximum(down @ x.T, 0)).T),
        ("07.4", lambda x, down, up: [row + up @ np.clip(down @ row, 0, None) for row in x]),
        ("07.5", lambda soft, table: cosines(soft, table).argmax(axis=1)),
        ("07.5", lambda soft, table: [max(range(len(table)), key=lambda i: cosines([s], table)[0, i]) for s in soft]),
        ("07.6", 75),
        ("07.6", torch.tensor(75.2)),
        ("08.1", 16 * (4096 + 4096) * 128),
        ("08.2", lambda update, share: counted(update, share)),
        ("08.3", lambda a, b, alpha: (b * alpha / b.shape[1]) @ a),
        ("08.4", 512 * 192 // (512 + 192)),
        ("08.5", lambda w, old, new, s: w + s * (new[1] @ new[0] - old[1] @ old[0])),
        ("08.6", 16 * 64**0.5),
        ("08.7", 58),
        ("09.1", 41),
        ("09.2", 2048.0),
        ("09.3", lambda *case: one_by_one(*case)),
        ("09.4", lambda prompts, pad: filled(prompts, pad)),
        ("09.5", lambda *case: from_the_front(*case)),
        ("09.6", torch.tensor(3.01).bfloat16() - 3),
        ("09.7", [137_000, 1_769_472]),
    ],
)
def test_what_learners_gave_rightly(name, answer):
    verdict = judge(dict(ALL)[name], answer)
    assert verdict.right is True, verdict.message


def cosines(soft, table):
    """Of each row of the one with each row of the other, by torch."""
    pair = torch.as_tensor(np.array(soft))[:, None], torch.as_tensor(table)[None]
    return torch.nn.functional.cosine_similarity(*pair, dim=-1).numpy()


def counted(update, share, power=2):
    """A learner's 08.2, in a loop."""
    sizes = torch.linalg.svdvals(update) ** power
    reached = 0
    for place, size in enumerate(sizes):
        reached += size
        if reached >= share * sizes.sum():
            return place + 1


def one_by_one(x, weight, a, b, scaling, rows, base=1, scaled=lambda s, i, row: s[row], of=lambda i, row: row):
    """A learner's 09.3, in a loop over the rows."""
    out = []
    for i, row in enumerate(rows):
        adapter = of(i, row)
        out.append(base * x[i] @ weight.T + scaled(scaling, i, adapter) * x[i] @ a[adapter].T @ b[adapter].T)
    return np.stack(out)


def filled(prompts, pad, behind=False, counts=None):
    """A learner's 09.4, which fills up the lists that it was given."""
    length, mask = max(len(prompt) for prompt in prompts), []
    for prompt in prompts:
        ones, zeros = [1] * len(prompt), [0] * (length - len(prompt))
        mask.append(ones + zeros if behind else zeros + ones)
        while len(prompt) < length:
            prompt.insert(len(prompt) if behind else 0, pad)
    return prompts, [[counts(token) for token in prompt] for prompt in prompts] if counts else mask


def from_the_front(waiting, context, most, fits=lambda sums, longest: sum(longest)):
    """A learner's 09.5."""
    batch, sums, longest = 0, [0, 0], [0, 0]
    for request in waiting[:most]:
        sums = [total + size for total, size in zip(sums, request, strict=True)]
        longest = [max(pair) for pair in zip(longest, request, strict=True)]
        if fits(sums, longest) > context:
            break
        batch += 1
    return batch


def one_weight(weight, spacing, target, rate, steps, seen, given):
    """A learner's 06.5, with a way to round in the loop and one to round what is returned."""
    for _ in range(steps):
        weight -= 2 * rate * (seen(weight / spacing) * spacing - target)
    return given(weight / spacing) * spacing


def test_an_answer_of_06_7_may_be_a_tensor():
    exercise = dict(ALL)["06.7"]
    assert judge(exercise, torch.tensor(27.7)).right and judge(exercise, np.float32(27.7)).right
    assert judge(exercise, torch.tensor(12.4)).right is False


@pytest.mark.parametrize(
    ("right", "same", "other"),
    [
        (100, 100.9, 101.1),
        (0, 0.005, 0.5),
        (True, True, 1),
        ("BF16", " bf16 ", "fp16"),
        ([1, [2, 3]], (1, [2, 3]), [1, [2, 4]]),
        ([1, 2], [1, 2], [1, 2, 3]),
        ({"a": 1}, {"a": 1.001}, {"b": 1}),
        ({"x", "y"}, ["y", "x"], ["x"]),
    ],
)
def test_values_are_compared_by_kind(right, same, other):
    exercise = Exercise(reference=right, hint="Think.")
    assert judge(exercise, same).right is True
    assert judge(exercise, other).right is False


def test_an_open_question_accepts_what_the_predicate_accepts():
    exercise = OpenExercise(
        reference=7,
        accepts=lambda answer: answer > 5,
        hint="Larger.",
        mistakes=[Mistake(-1, "Not below zero.", when=lambda answer: answer < 0)],
    )
    assert judge(exercise, 6).right and judge(exercise, 7).right
    assert judge(exercise, 2).message == "not yet. Not there yet. Larger."
    assert judge(exercise, -3).message == "not yet. Not below zero."
    assert judge(exercise, "six").right is False
