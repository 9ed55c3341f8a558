"""Chapter 03's planner, driven without a browser: each control changes the picture, soon."""

import statistics
import time

import pytest
from fixtures import a_tenth_of_a_second

from course.classroom.memory_math import widget


@pytest.fixture(scope="module")
def planner():
    *rows, refusal, picture = widget.planner().children
    return {control.description: control for row in rows for control in row.children}, refusal, picture


def test_each_control_changes_the_picture(planner):
    controls, refusal, picture = planner
    changes = {"model": "llama-3-8b", "method": "full", "optimizer": "adafactor", "precision": "fp32", "batch": 8}
    changes |= {"seq": 512, "checkpointing": 2, "devices": 4, "sharding": "zero3", "GPU GiB": 80}
    assert changes.keys() == controls.keys()
    for name, value in changes.items():
        before = picture.value
        controls[name].value = value
        assert picture.value != before and refusal.value == "", name


def test_what_cannot_be_is_said_and_the_picture_stays(planner):
    controls, refusal, picture = planner
    controls["model"].value, before = "llama-2-7b", picture.value
    controls["method"].value = "bitfit"
    assert "biases" in refusal.value
    controls["method"].value = "lora"
    assert refusal.value == "" and picture.value != before


def test_sliders_are_as_wide_as_choices(planner):
    assert len({control.layout.width for control in planner[0].values()}) == 1


def test_a_change_answers_within_a_tenth_of_a_second(planner):
    """In seconds of the processor, so that other work on the machine does not count."""
    controls, _, picture = planner
    seconds = []
    for batch in (1, 2, 4, 8, 16, 32, 64):
        start = time.process_time()
        controls["batch"].value = batch
        seconds.append(time.process_time() - start)
    assert statistics.median(seconds) < a_tenth_of_a_second(), seconds
