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
    ],
)
def test_what_learners_gave(name, answer, said):
    verdict = judge(dict(ALL)[name], answer)
    assert verdict.right is False and said in verdict.message


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
