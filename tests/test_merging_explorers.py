"""Chapter 11's explorers, driven without a browser: pictures follow the controls, and their numbers are right."""

import itertools
import statistics
import time

import numpy as np
import pytest
import torch
from fixtures import a_tenth_of_a_second, catch_displayed

from course.classroom import style
from course.classroom.model_merging import figures, widget
from course.merging import linear, slerp, ties

SIX = "one two three four five six"


@pytest.mark.parametrize(("angle", "t", "length"), itertools.product(widget.ANGLES, (0.25, 0.5, 1.0), widget.LENGTHS))
def test_line_and_arc_are_linear_and_slerp(angle, t, length):
    a, b, line, arc = figures.between(angle, t, length)
    pair = [{"w": torch.tensor(end)} for end in (a, b)]
    assert np.allclose(line, linear(pair, [1 - t, t])["w"], atol=1e-6)
    assert np.allclose(arc, slerp(*pair, t)["w"], atol=1e-6)
    if length == 1:
        assert np.hypot(*arc) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("density", widget.SHARES)
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 0.5, 1.0), (0.0, 1.0, 0.5), (0.0, 0.0, 0.0)])
def test_the_table_shows_what_ties_does(density, weights):
    base, models = {"w": torch.zeros(8)}, [{"w": row} for row in figures.MODELS]
    merged = ties(base, models, density, list(weights))["w"]
    assert torch.allclose(figures.ties_steps(density, weights)[3], merged, atol=1e-6)
    assert style.figure_problems(figures.ties(density, weights), SIX) == []


def test_each_control_changes_its_picture(monkeypatch):
    for show in (widget.slerp, widget.ties):
        shown = catch_displayed(monkeypatch, widget)
        show()
        picture, seen = shown[1], {shown[1].thing.data}
        controls = shown[0].thing.children
        for control in controls:
            control.value = next(value for value in reversed(control.options) if value != control.value)
            seen.add(picture.thing.data)
        assert len(seen) == 1 + len(controls) and picture.updates == len(controls)


@pytest.mark.parametrize("angle", widget.ANGLES)
def test_every_angle_has_a_figure_that_is_fit_to_be_shown(angle):
    assert style.figure_problems(figures.arc(angle, 0.25, 1.5), SIX) == []


@pytest.mark.parametrize("show", [widget.slerp, widget.ties])
def test_a_change_is_answered_within_a_tenth_of_a_second(monkeypatch, show):
    shown = catch_displayed(monkeypatch, widget)
    show()
    control = shown[0].thing.children[0]

    def seconds(value):
        start = time.process_time()  # of this process, whatever else the machine is doing
        control.value = value
        return time.process_time() - start

    assert statistics.median(map(seconds, control.options)) < a_tenth_of_a_second()
