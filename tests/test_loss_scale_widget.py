"""Chapter 06's slider, driven without a browser: it changes the picture, whose title is what the numbers say."""

import statistics
import time

import numpy as np
import pytest
from fixtures import a_tenth_of_a_second, catch_displayed

from course.classroom import style
from course.classroom.training_in_low_precision import figures, widget

GRADIENTS = 2.0 ** np.arange(-40, -2, 0.25)  # the largest is just below 2⁻²


def test_the_slider_changes_the_picture(monkeypatch):
    shown = catch_displayed(monkeypatch, widget)
    widget.loss_scale(GRADIENTS)
    slider, picture = shown[0].thing, shown[1]
    assert "39.5 % lie below it and 0 % above" in repr(picture.thing)
    slider.value = 15
    assert "2 to the 15" in repr(picture.thing) and "0.0 % lie below it and 0 % above" in repr(picture.thing)
    slider.value = 19
    assert "and 2.6 % above" in repr(picture.thing)


def test_what_is_lost_is_what_a_cast_to_fp16_loses():
    values = np.random.default_rng(0).standard_cauchy(50_000) * 2.0**-22
    shares = figures.exponents(values)
    for power in (0, 8, 30, 36):
        with np.errstate(over="ignore"):
            cast = (values * 2.0**power).astype(np.float16)
        lost, infinite = figures.lost_and_infinite(shares, power)
        assert lost == pytest.approx(100 * np.mean(cast == 0), abs=0.01)
        assert infinite == pytest.approx(100 * np.mean(np.isinf(cast)), abs=0.01)


@pytest.mark.parametrize("power", range(0, 31, 5))
def test_every_state_has_a_figure_that_is_fit_to_be_shown(power):
    fig = figures.scaled_gradients(figures.exponents(GRADIENTS), power)
    assert style.figure_problems(fig, "one two three four five") == []


def test_a_move_is_answered_within_a_tenth_of_a_second():
    shares = figures.exponents(GRADIENTS)

    def seconds(power):
        start = time.process_time()  # of this process, whatever else the machine is doing
        style.figure_with_alt(figures.scaled_gradients(shares, power), "one two three four five")
        return time.process_time() - start

    assert statistics.median(seconds(power) for power in range(9)) < a_tenth_of_a_second()
