"""What a chapter calls: show the packaged source, reveal a measurement beside a guess, check an answer."""

import inspect
import math
import numbers
import re
import reprlib
import sys
from pathlib import Path
from textwrap import dedent

from course.classroom import exercises as judging
from course.classroom import records
from course.classroom.records import progress

__all__ = ["check", "progress", "reveal", "show"]

GIB_PER_GB = 2**30 / 1e9


def show(obj):
    """Show the source of a function, method, class or module, with its file and line.

    It is Markdown in a notebook, and text elsewhere. Raises TypeError for anything that has no Python source.
    """
    target = inspect.unwrap(obj.fget if isinstance(obj, property) else obj)
    try:
        lines, line = inspect.getsourcelines(target)
    except (TypeError, OSError):
        takes = "a function, method, class or module that is written in Python"
        raise TypeError(f"show: obj must be {takes}; got {reprlib.repr(obj)}, {judging.a(obj)}") from None
    source = dedent("".join(lines)).rstrip()
    fence = "`" * max([3] + [len(ticks) + 1 for ticks in re.findall(r"`{3,}", source)])
    heading = f"`{_relative_file(target)}`, line {max(line, 1)}"
    _display_markdown(f"{heading}\n\n{fence}python\n{source}\n{fence}", plain=f"{heading}\n\n{source}")


def reveal(guess, measured, unit="", *, says="Measured: {}.", digits=None):
    """Print what was measured, and in plain words how far off the guess was.

    guess: a number, or `...` or None when the learner left it open; whatever else it is, the run goes on.
    measured: a number, or a numpy or torch scalar. Raises TypeError when it is neither, ValueError for NaN.
    unit: any unit; "bytes", "%" (compared in points) and "seconds" are written out in full.
    says: the sentence that states the measurement, `{}` being the number; without `{}` no number is printed.
    digits: significant digits; with few, a number that varies a little from run to run prints the same.
    """
    value = _number(measured)
    if value is None:
        got = f"{reprlib.repr(measured)}, {judging.a(measured)}"
        raise TypeError(f"reveal: measured must be a number; got {got}")
    if math.isnan(value):
        raise ValueError("reveal: measured is NaN, which is not a number: look for the step that went wrong")
    value = _rounded(value, digits)
    lines = [says.format(quantity(value, unit))]
    if guess is not None and guess is not ...:
        lines.append(_compared(_number(guess), value, unit, guess, told="{}" in says, exact=digits is None))
    print(" ".join(lines))


def check(exercise_id, answer):
    """Print whether the answer to an exercise is right, or a hint that fits the mistake. Never raises.

    The record of solved exercises is kept in one local file, see `progress`.
    """
    known = records.exercises(exercise_id.partition(".")[0]) if isinstance(exercise_id, str) else {}
    if not known or exercise_id not in known:
        what, names = ("This chapter has", known) if known else ("The chapters are", records.chapters())
        print(f"There is no exercise {reprlib.repr(exercise_id)}. {what} {', '.join(names)}.")
        return
    verdict = judging.judge(known[exercise_id], answer)
    if verdict.right is not None:
        records.record(exercise_id, solved=verdict.right)
    print(f"{exercise_id}: {verdict.message}")


def quantity(value, unit=""):
    """A number with its unit: (31.2e9, "bytes") gives 31,200,000,000 bytes (31.2 GB, 29.06 GiB)."""
    size = abs(value)
    if unit == "bytes":
        text = f"{number(round(value) if math.isfinite(value) else value)} bytes"
        if size >= 1e9:
            return f"{text} ({number(value / 1e9)} GB, {number(value / 2**30)} GiB)"
        return f"{text} ({number(value / 1e6)} MB, {number(value / 2**20)} MiB)" if size >= 1e6 else text
    text = f"{number(value)} {'second' if value == 1 and unit == 'seconds' else unit}".rstrip()
    if unit == "seconds" and 0 < size < 0.1:
        return f"{text} ({number(value * 1000)} milliseconds)"
    if unit == "seconds" and size >= 120:
        return f"{text} ({number(value / 60)} minutes)" if size < 7200 else f"{text} ({number(value / 3600)} hours)"
    return text


def number(value):
    """Whole numbers in full with thousands separators, others to four significant digits."""
    if math.isinf(value):
        return "infinity" if value > 0 else "minus infinity"
    size = abs(value)
    if value == int(value) and size < 1e15:
        return f"{int(value):,}"
    if size >= 1e15 or size < 1e-4:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    decimals = max(0, 3 - math.floor(math.log10(size)))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def _compared(guess, value, unit, written, told, exact):
    """One sentence on how far off a guess is; the reader was `told` the value or not, `exact` or rounded."""
    if guess is None:
        return f"A guess is a number; yours is {judging.a(written)}, so there is nothing to compare."
    if math.isnan(guess):
        return "Your guess is NaN, which is not a number, so there is nothing to compare."
    said = f"Your guess of {number(guess)} {unit[:-1] if guess == 1 and unit == 'seconds' else unit}".rstrip()
    if guess == value and exact:
        return f"{said} is exactly right."
    if math.isinf(guess) or math.isinf(value):
        return f"{said} cannot be compared: one of the two is infinite or too large to hold."
    if guess == value or (told and number(guess) == number(value)):
        return f"{said} is right to the digits shown."
    high = "high" if guess > value else "low"
    if unit == "%":
        points = number(abs(guess - value))
        as_share = 0 < guess <= 1 < value and abs(100 * guess - value) < abs(guess - value)
        hint = f": the unit here is %, in which a share of {number(guess)} is {number(100 * guess)}" if as_share else ""
        return f"{said} is {points} {'point' if points == '1' else 'points'} too {high}{hint}."
    if value == 0:
        return f"{said} is too {high}: it is zero, so no ratio can be given."
    if guess == 0:
        return f"{said} is too {high}: it is not zero."
    if (guess < 0) != (value < 0):
        same = math.isclose(-guess, value, rel_tol=1e-6)
        return f"{said} has the wrong sign{', and the right size' if same else ''}."
    ratio = guess / value
    size = "large" if ratio > 1 else "small"
    factor = max(ratio, 1 / ratio) if ratio else math.inf
    if unit == "bytes" and math.isclose(factor, GIB_PER_GB, rel_tol=1e-3):
        return f"{said} is 7 % too {size}: that is the distance between a GB (10⁹) and a GiB (2³⁰)."
    if unit == "bytes" and factor >= 1e5:
        return f"{said} is {number(factor)} times too {size}: the unit here is bytes."
    if factor >= 2:
        return f"{said} is {number(_rounded(factor, 2))} times too {size}."
    percent = abs(ratio - 1) * 100
    return f"{said} is {'less than 1' if percent < 1 else number(_rounded(percent, 2))} % too {size}."


def _number(value):
    """The int or float in a number, numpy scalar or one-value tensor; infinite if too large, else None."""
    try:
        if hasattr(value, "item"):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return None
        return value if isinstance(value, int) and abs(value) < 10**15 else float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError):  # an array or tensor of several values
        return None


def _rounded(value, digits):
    if digits is None or value == 0 or math.isinf(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def _relative_file(target):
    """The source file as seen from the folder that holds its top-level package: course/lora.py."""
    file, module = Path(inspect.getsourcefile(target)), inspect.getmodule(target)
    if module is None or module.__name__ == "__main__":
        return "this notebook" if _in_notebook() else file.name
    folder = module.__name__.split(".")[: None if hasattr(module, "__path__") else -1]
    return "/".join([*folder, file.name])


def _in_notebook():
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return get_ipython() is not None and hasattr(get_ipython(), "kernel")


def _display_markdown(markdown, plain):
    if not _in_notebook():
        print(plain)
        return
    from IPython.display import Markdown, display

    display(Markdown(markdown))
