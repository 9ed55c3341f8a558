"""Chapter 09's storage explorer, driven without a browser: the picture follows the controls, and the numbers hold."""

import statistics
import time

import pytest
from fixtures import a_tenth_of_a_second, catch_displayed, tiny_model

from course.classroom import style
from course.classroom.serving_lora import figures, widget
from course.lora import LoRAConfig, add_lora, lora_state_dict

WORDS = "one two three four five"


def test_each_control_changes_the_picture(monkeypatch):
    shown = catch_displayed(monkeypatch, widget)
    widget.storage()
    controls, picture = {c.description: c for c in shown[0].thing.children}, shown[1]
    assert "100 customers" in repr(picture.thing) and "3.36 GB merged, 0.0467 GB apart" in repr(picture.thing)
    for name, value in {"customers": 1000, "rank": 64, "side": 1024}.items():
        before = repr(picture.thing)
        controls[name].value = value
        assert repr(picture.thing) != before
    assert picture.updates == 3


def test_what_is_held_is_what_the_tensors_hold():
    model = add_lora(tiny_model(), LoRAConfig(rank=4, alpha=8, target_modules=("q_proj",)))
    numbers = sum(p.numel() for name, p in lora_state_dict(model).items() if "layers.0" in name)
    merged, apart = figures.held(7, 4, 32)  # q_proj of the tiny model is 32 x 32
    assert merged == 7 * 2 * 32 * 32 and apart == 2 * 32 * 32 + 7 * 2 * numbers


@pytest.mark.parametrize("state", [(1, 1, 192), (1000, 256, 192), (100, 8, 4096), (1, 256, 512)])
def test_every_state_has_a_figure_that_is_fit_to_be_shown(state):
    fig = figures.storage(*state)
    assert style.figure_problems(fig, WORDS) == []
    merged, apart = figures.held(*state)
    title, times = fig.axes[0].get_title(loc="left"), f"{max(merged, apart) / min(merged, apart):.4g} times "
    assert times + ("fewer" if merged > apart else "as many") in title


def test_the_other_figures_are_fit_to_be_shown():
    assert style.figure_problems(figures.bars("A", "x (1/s)", "way", {"a": 1.0, "b": 2.0}, 1), WORDS) == []
    assert style.figure_problems(figures.drift({"BF16": [0.1, 0.2], "FP32": [1e-6, 1e-6]}, "A"), WORDS) == []


def test_a_move_is_answered_within_a_tenth_of_a_second():
    def seconds(rank):
        start = time.process_time()  # of this process, whatever else the machine is doing
        style.figure_with_alt(figures.storage(rank=rank), WORDS)
        return time.process_time() - start

    times = [seconds(rank) for rank in widget.CHOICES["rank"]]
    assert statistics.median(times) < a_tenth_of_a_second(), times
