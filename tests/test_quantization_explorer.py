"""Chapter 05's explorer, driven without a browser: each control changes the picture, within a tenth of a second."""

import itertools
import statistics
import time

import pytest
from fixtures import a_tenth_of_a_second, catch_displayed

from course.classroom import style
from course.classroom.quantization import figures, widget


@pytest.fixture
def explorer(monkeypatch):
    shown = catch_displayed(monkeypatch, widget)
    widget.explorer()
    return {control.description: control for control in shown[0].thing.children}, shown[1]


def test_each_control_changes_the_picture(explorer):
    controls, picture = explorer
    seen = {picture.thing.data}
    for name, value in [("bits", 3), ("group size", 16), ("levels", False), ("outlier", 30)]:
        controls[name].value = value
        seen.add(picture.thing.data)
    assert len(seen) == 5 and picture.updates == 4
    assert "3 bits in groups of 16 leave an error" in repr(picture.thing)


def test_what_the_explorer_shows_is_what_the_chapter_says():
    def error(**state):
        state = {"bits": 4, "group_size": 64, "symmetric": True, "outlier": 0} | state
        return figures.explored(**state)[2]

    assert error(bits=5) < 0.6 * error()  # each bit halves it
    assert error(group_size=16) < error() < error(group_size=512)
    assert error(outlier=30) > 2 * error()
    assert error(outlier=30, group_size=16) < error(outlier=30) / 1.5  # smaller groups contain the damage
    assert error(symmetric=False) < error()


def test_every_state_has_a_figure_that_is_fit_to_be_shown():
    for state in itertools.product((2, 4, 8), widget.GROUPS, (True, False), (0, 30)):
        assert style.figure_problems(figures.explorer(*state), "one two three four five") == []


def test_a_change_is_answered_within_a_tenth_of_a_second(explorer):
    controls, _ = explorer

    def seconds(outlier):
        start = time.process_time()  # of this process, whatever else the machine is doing
        controls["outlier"].value = outlier
        return time.process_time() - start

    assert statistics.median(seconds(outlier) for outlier in range(10, 28, 2)) < a_tenth_of_a_second()
