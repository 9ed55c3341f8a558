"""Chapter 12's stack builder, driven without a browser: its picture and its counts follow the sliders."""

import itertools
import statistics
import time

import pytest
from fixtures import a_tenth_of_a_second, catch_displayed

from course.classroom import style
from course.classroom.layer_surgery import figures, widget
from course.lab.models import load_model

STACKS = list(itertools.product(range(1, 7), range(6)))
LOSSES = {(end, begin): 0.7 + 0.1 * (end - begin) ** 2 for end, begin in STACKS}


@pytest.fixture
def explorer(monkeypatch):
    """What is shown, and its controls by name."""
    shown = catch_displayed(monkeypatch, widget)
    widget.stack(LOSSES, "shop-m")
    *controls, told = shown[0].thing.children
    return shown[1], {control.description: control for control in controls}, told


def test_picture_and_counts_follow_both_sliders(explorer):
    picture, controls, told = explorer
    seen = {picture.thing.data}
    for name, value, told_layers in (("ends before", 2, "7 layers"), ("begins at", 5, "3 layers")):
        controls[name].value = value
        seen.add(picture.thing.data)
        assert told.value.startswith(told_layers)
    assert len(seen) == 3 and picture.updates == 2


def test_the_whole_model_is_counted_as_it_is(explorer):
    _, controls, told = explorer
    controls["begins at"].value = controls["ends before"].value
    parameters = load_model("shop-m", device="cpu")[0].num_parameters()
    assert told.value == f"6 layers, {parameters:,} parameters, {2 * parameters / 1e6:.1f} MB in BF16"


@pytest.mark.parametrize(("end", "begin"), [(1, 0), (5, 1), (6, 5), (1, 5)])
def test_every_place_has_a_figure_that_is_fit_to_be_shown(end, begin):
    assert style.figure_problems(figures.stacks(LOSSES, end, begin), "one two three four five six") == []


def test_a_change_is_answered_within_a_tenth_of_a_second(explorer):
    control = explorer[1]["ends before"]

    def seconds(value):
        start = time.process_time()  # of this process, whatever else the machine is doing
        control.value = value
        return time.process_time() - start

    assert statistics.median(map(seconds, control.options)) < a_tenth_of_a_second()
