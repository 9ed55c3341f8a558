"""Chapter 04's bit explorer, driven without a browser: each control changes the picture and the table."""

import statistics
import time

import numpy as np
import pytest
from fixtures import a_tenth_of_a_second, catch_displayed

from course.classroom import style
from course.classroom.float_formats import figures, widget
from course.floats import FORMATS, decode, encode


@pytest.fixture
def explorer(monkeypatch):
    shown = catch_displayed(monkeypatch, widget)
    widget.bit_explorer(0.1, "bf16")
    (number, choice), row = shown[0].thing.children[0].children, shown[0].thing.children[1]
    return number, choice, row, *shown[1:]


def bits_of(row):
    return "".join(button.description for button in row.children)


def test_each_control_changes_picture_and_table(explorer):
    number, choice, row, picture, table = explorer
    assert bits_of(row) == f"{int(encode(0.1, 'bf16')):016b}" and "0 01111011 1001101" in table.thing.data
    before = picture.updates, table.updates
    number.value = "257"
    assert bits_of(row) == "0100001110000000" and "BF16, which holds 256" in repr(picture.thing)
    choice.value = "fp8_e4m3"
    assert bits_of(row) == "01111000"
    row.children[0].click()
    assert number.value == "-256.0" and bits_of(row) == "11111000"
    assert "-256" in repr(picture.thing) and "1 1111 000" in table.thing.data
    assert (picture.updates - 3, table.updates - 3) == before


def test_what_is_no_number_is_taken_back(explorer):
    number, choice, row, picture, table = explorer
    number.value = "one"
    assert number.value == "0.1" and bits_of(row) == f"{int(encode(0.1, 'bf16')):016b}"
    number.value, choice.value = "nan", "fp4_e2m1"
    assert bits_of(row) == "" and "no NaN" in table.thing.data
    number.value = "inf"
    assert bits_of(row) == "0111"  # saturated


@pytest.mark.parametrize("name", FORMATS)
def test_every_state_has_a_figure_that_is_fit_to_be_shown(name):
    ends = [FORMATS[name].max, FORMATS[name].smallest, 1e300, 0.0, -0.0, -1.3, np.inf, -np.inf, np.nan]
    for value in [*ends, 1e-300]:
        assert style.figure_problems(figures.bit_explorer(value, name), "one two three four five") == []
        assert figures.same_number(value).count("<tr>") == len(FORMATS) + 1


def test_a_click_is_answered_within_a_tenth_of_a_second():
    def seconds(code):
        start = time.process_time()  # of this process, whatever else the machine is doing
        value = float(decode(code, "bf16"))
        style.figure_with_alt(figures.bit_explorer(value, "bf16"), "one two three four five")
        figures.same_number(value)
        return time.process_time() - start

    assert statistics.median(seconds(code) for code in range(16_000, 16_009)) < a_tenth_of_a_second()
