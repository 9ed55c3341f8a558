"""Chapter 10's levels explorer, driven without a browser: the picture follows the controls, and the numbers hold."""

import math
import statistics
import time

import pytest
import torch
from fixtures import a_tenth_of_a_second, catch_displayed

from course.classroom import style
from course.classroom.qlora import figures, widget
from course.quantization import NF4_CODE

WORDS = "one two three four five"
WEIGHTS = {"a matrix": torch.randn(96, 64, generator=torch.Generator().manual_seed(0))}


def test_each_control_changes_the_picture(monkeypatch):
    shown = catch_displayed(monkeypatch, widget)
    widget.levels(WEIGHTS)
    controls, picture = {c.description: c for c in shown[0].thing.children}, shown[1]
    assert "a matrix" in repr(picture.thing) and "levels of NF4" in repr(picture.thing)
    for name, value in {"numbers": "uniform", "scheme": "INT4", "block": 16}.items():
        before = repr(picture.thing)
        controls[name].value = value
        assert repr(picture.thing) != before
    assert picture.updates == 3


@pytest.mark.parametrize("scheme", widget.CHOICES["scheme"])
@pytest.mark.parametrize("block", widget.CHOICES["block"])
def test_every_state_has_a_figure_that_is_fit_to_be_shown(scheme, block):
    for name in widget.DRAWN[: 4 if block == 64 else 1]:
        numbers = figures.samples(name, 2**12)
        fig = figures.explorer(numbers, name, scheme, block)
        assert style.figure_problems(fig, WORDS) == []
        error = figures.judged(numbers, scheme, block)[0]
        assert f"error {error:.1f} %" in fig.axes[0].get_title(loc="left")


def test_levels_are_those_that_are_used():
    assert figures.levels("NF4") == NF4_CODE.tolist()
    assert len(figures.levels("INT4")) == 15 and len(figures.levels("FP4")) == 15  # −8, and a second zero
    for scheme in figures.SCHEMES:
        assert figures.levels(scheme)[0] == -1 and figures.levels(scheme)[-1] == 1


def test_the_information_of_even_and_of_single_codes():
    assert figures.judged(NF4_CODE.repeat(64), "NF4", 16)[1] == pytest.approx(4)
    assert figures.judged(torch.ones(64), "NF4") == (0, 0)
    halves = torch.tensor([1.0, -1.0]).repeat(64)
    assert figures.judged(halves, "INT4") == (pytest.approx(0), pytest.approx(1))


@pytest.mark.parametrize(
    ("kind", "spread", "kurtosis"), [("normal", 1, 3), ("uniform", 1 / math.sqrt(3), 1.8), ("Laplace", math.sqrt(2), 6)]
)
def test_samples_have_the_moments_of_their_distribution(kind, spread, kurtosis):
    numbers = figures.samples(kind, 2**18)
    assert numbers.mean().abs() < 0.01 and numbers.std() == pytest.approx(spread, rel=0.01)
    assert (numbers / numbers.std()).pow(4).mean() == pytest.approx(kurtosis, rel=0.05)


def test_the_heavy_tails_are_heavy():
    numbers = figures.samples("Student's t", 2**18)
    assert numbers.isfinite().all() and (numbers.abs() > 12.92).float().mean() == pytest.approx(
        0.001, rel=0.2
    )  # a table


def test_the_other_figures_are_fit_to_be_shown():
    assert style.figure_problems(figures.bars("A", "x (1/s)", "way", {"a": [1.0], "b": [2.0, 3.0]}, 1), WORDS) == []
    fig = figures.lines("A", "x (count)", "y (s)", {"BF16": [(1, 0.1), (2, 0.2)], "FP32": [(1, 1e-6), (2, 1e-6)]})
    assert style.figure_problems(fig, WORDS) == []


def test_a_move_is_answered_within_a_tenth_of_a_second():
    numbers = figures.samples("normal")

    def seconds(block):
        start = time.process_time()  # of this process, whatever else the machine is doing
        style.figure_with_alt(figures.explorer(numbers, "normal", "NF4", block), WORDS)
        return time.process_time() - start

    times = [seconds(block) for block in widget.CHOICES["block"]]
    assert statistics.median(times) < a_tenth_of_a_second(), times
