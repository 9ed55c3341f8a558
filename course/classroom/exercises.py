"""How a chapter declares its exercises, and how an answer to one of them is judged.

An exercise holds a reference answer and a bank of typical mistakes. A mistake is an example of a wrong answer
with the hint that fits it, so the bank that recognizes a mistake is also the bank that the tests run.
"""

import contextlib
import copy
import math
import numbers
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Verdict(NamedTuple):
    """`right` is None when there is no answer yet."""

    right: bool | None
    message: str


@dataclass(frozen=True)
class Mistake:
    """A typical wrong answer and the hint it deserves.

    An answer is this mistake when `when(answer)` holds, or, without `when`, when it behaves like `example`.
    """

    example: Any
    hint: str
    when: Callable[[Any], bool] | None = None


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """A question with one right value: a number, a text, a list, a dict, an array or tensor.

    hint: for a wrong answer that no mistake fits. right: a sentence on what a right answer has shown.
    tolerance: how far a number may be off, as a share of the reference; absolute where the reference is 0.
    """

    reference: Any
    hint: str
    mistakes: Sequence[Mistake] = ()
    tolerance: float = 0.01
    right: str = ""

    def outcome(self, answer):
        """What is compared: the answer itself here, what it returns in a FunctionExercise."""
        return answer

    def difference(self, outcome):
        """How `outcome` differs from what is right, in words that do not show it; "" when it is right."""
        return difference(outcome, self.outcome(self.reference), self.tolerance)

    def fits(self, mistake, answer, outcome):
        """Whether the answer is this mistake."""
        if mistake.when:
            with contextlib.suppress(TypeError):  # an answer of another kind is another mistake
                return bool(mistake.when(answer))
            return False
        return not difference(outcome, self.outcome(mistake.example), self.tolerance)


@dataclass(frozen=True, kw_only=True)
class FunctionExercise(Exercise):
    """A question whose answer is a function, compared with the reference by what both return.

    cases: tuples of arguments, copied before each call.
    any_order: only what is returned counts, and how often, not for which case: for answers that depend on chance.
    """

    cases: Sequence[tuple]
    tolerance: float = 1e-4
    any_order: bool = False

    def outcome(self, answer):
        if not callable(answer):
            raise Unfit(f"The answer is a function, named and not called; yours is {a(answer)}.")
        results = [_call(answer, case) for case in self.cases]
        with contextlib.suppress(TypeError):  # what has no order is no number, and is told so later
            return sorted(results) if self.any_order else results
        return results


@dataclass(frozen=True, kw_only=True)
class OpenExercise(Exercise):
    """A question with many right answers: those that `accepts`. `reference` is one of them."""

    accepts: Callable[[Any], bool]

    def difference(self, outcome):
        return "" if self.accepts(outcome) else "Not there yet."


class Unfit(Exception):
    """An answer that cannot be compared; the message says why."""


def judge(exercise, answer):
    """The Verdict on `answer`. Never raises, whatever the answer is or does, except for KeyboardInterrupt."""
    try:
        if _unanswered(answer):
            return Verdict(None, "not answered yet.")
        outcome = exercise.outcome(answer)
        if isinstance(exercise, FunctionExercise) and all(map(_unanswered, outcome)):
            return Verdict(None, "not answered yet: the function returns nothing.")
        said = exercise.difference(outcome)
        if not said:
            return Verdict(True, f"right. {exercise.right}".strip())
        hint = next((m.hint for m in exercise.mistakes if exercise.fits(m, answer, outcome)), None)
        return Verdict(False, f"not yet. {hint or f'{said} {exercise.hint}'}")
    except Unfit as why:
        return Verdict(False, f"not yet. {why} {exercise.hint}")
    except (Exception, SystemExit) as error:  # whatever an answer is or does, the notebook goes on
        told = f"This answer, {a(answer)}, could not be compared: {_told(error)}."
        return Verdict(False, f"not yet. {told} {exercise.hint}")


def difference(mine, right, tolerance):
    """How `mine` differs from `right`, in words that do not show `right`; "" when they agree."""
    given, mine, right = a(mine), _plain(mine), _plain(right)
    if mine is None or mine is ...:
        return "A value is missing: is there a `return` on every path?"
    if isinstance(right, bool | np.bool_):
        if not isinstance(mine, bool | np.bool_):
            return f"The answer is True or False; yours is {given}."
        return "" if mine == right else "It is the other way round."
    if isinstance(right, numbers.Real):
        return _number_difference(mine, right, tolerance, given)
    if isinstance(right, str):
        if not isinstance(mine, str):
            return f"The answer is a text; yours is {given}."
        same = " ".join(mine.split()).lower() == " ".join(right.split()).lower()
        return "" if same else "The text differs."
    if isinstance(right, dict):
        if not isinstance(mine, dict):
            return f"The answer is a dict; yours is {given}."
        if mine.keys() != right.keys():
            return "The keys differ."
        return _first(difference(mine[key], right[key], tolerance) for key in right)
    if isinstance(right, set):
        return "" if set(mine) == right else "The set has other members."
    if isinstance(right, np.ndarray):
        return _array_difference(mine, right, tolerance, given)
    if isinstance(right, list | tuple):
        if isinstance(mine, str | dict | set) or not hasattr(mine, "__len__"):
            return f"The answer is a list; yours is {given}."
        if len(mine) != len(right):
            return f"The length is wrong: yours is {len(mine)}."
        return _first(difference(one, other, tolerance) for one, other in zip(mine, right, strict=True))
    if type(mine) is not type(right):
        return f"The answer has another type; yours is {given}."
    return "" if mine == right else "The value is wrong."


def a(thing):
    """The type of a thing with its article: "a str", "an int"."""
    name = type(thing).__name__
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def _number_difference(mine, right, tolerance, given):
    if isinstance(mine, np.ndarray) and mine.size == 1:
        mine = mine.item()
    if isinstance(mine, bool | np.bool_) or not isinstance(mine, numbers.Real):
        return f"The answer is a number; yours is {given}."
    mine = _as_float(mine)
    if math.isnan(mine):
        return "Your number is NaN, which is not a number."
    if math.isclose(mine, right, rel_tol=tolerance, abs_tol=tolerance if right == 0 else 0.0):
        return ""
    if math.isinf(mine):
        return "Your number is infinite or too large to hold."
    if math.isclose(-mine, right, rel_tol=tolerance):
        return "Right size, wrong sign."
    return "The number is wrong."


def _array_difference(mine, right, tolerance, given):
    try:
        mine = np.asarray(mine)
    except ValueError:  # parts of different shapes
        return f"The answer is one array; yours is {given}."
    if mine.dtype.kind not in "biuf":
        return "The answer is an array of numbers; yours holds something else."
    if mine.shape != right.shape:
        return f"Wrong shape: yours is {mine.shape}."
    if np.isnan(mine).any() and not np.isnan(right).any():
        return "Right shape, but some values are NaN."
    smallest = tolerance * float(np.abs(right).max(initial=0.0, where=np.isfinite(right)))
    if np.allclose(mine, right, rtol=tolerance, atol=smallest or tolerance, equal_nan=True):
        return ""
    return "Right shape, wrong values."


def _first(differences):
    return next(filter(None, differences), "")


def _plain(value):
    """Tensors become arrays, and arrays of one value without dimensions become numbers."""
    if hasattr(value, "detach"):  # a tensor, without importing torch
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    return value.item() if isinstance(value, np.ndarray | np.generic) and value.ndim == 0 else value


def _as_float(number):
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _unanswered(answer):
    return answer is None or answer is ...


def _call(function, case):
    try:
        return function(*copy.deepcopy(case))
    except (Exception, SystemExit) as error:  # a learner's function may raise anything
        shown = ", ".join(repr(value) for value in case)
        called = f" when called with ({shown})" if len(shown) <= 80 else ""
        raise Unfit(f"Your function stopped with {_told(error)}{called}.") from None


def _told(error):
    return traceback.format_exception_only(error)[-1].strip().rstrip(".: ")
