"""Chapter 07's explorer, driven without a browser: what it says a method trains is what the method trains."""

import statistics
import time

import pytest
from fixtures import a_tenth_of_a_second, catch_displayed
from transformers import LlamaConfig, LlamaForCausalLM

from course.classroom import style
from course.classroom.parameter_efficient_finetuning import figures, widget
from course.lora import LoRAConfig, add_lora
from course.memory import training_memory
from course.peft_methods import (
    add_adapters,
    add_bitfit,
    add_ia3,
    add_prompt,
    train_top_layers,
    trainable_parameters,
)

SIZE = 4
ADD = {
    "full": lambda model: model,
    "LoRA": lambda model: add_lora(model, LoRAConfig(SIZE, SIZE)),
    "adapters": lambda model: add_adapters(model, SIZE),
    "BitFit": add_bitfit,
    "IA3": add_ia3,
    "prompt": lambda model: add_prompt(model, SIZE),
    "top layer": lambda model: train_top_layers(model, 1),
}


@pytest.mark.parametrize("name", ADD)
def test_the_count_is_what_the_method_trains(name):
    model = LlamaForCausalLM(LlamaConfig(**figures.llama(256, 2)))
    count, _ = figures.step(name, 256, 2, SIZE, 32)
    norm = 256 * (name == "top layer")  # the planner's partial finetuning trains the last norm, too
    assert count == trainable_parameters(ADD[name](model)) + norm


def test_the_bytes_are_the_planners():
    _, parts = figures.step("adapters", 512, 4, 16, 64)
    whole = training_memory(figures.llama(512, 4), "adapter", rank=16, batch=1, seq=64)
    assert sum(parts.values()) == whole.total and parts["weights"] == whole.weights


def test_each_slider_changes_the_picture(monkeypatch):
    shown = catch_displayed(monkeypatch, widget)
    widget.explorer()
    grid, picture = shown[0].thing, shown[1]
    assert "'full': 6557011968, 'adapters': 4456960, 'prompt': 32768" in repr(picture.thing)
    for slider, value in zip(grid.children, (512, 80, 64, 4096), strict=True):
        before = picture.updates
        slider.value = value
        assert picture.updates == before + 1 and f"'{slider.description}': {value}" in repr(picture.thing)


@pytest.mark.parametrize("width", widget.OPTIONS["width"])
def test_every_state_has_a_figure_that_is_fit_to_be_shown(width):
    for layers, size, tokens in ((2, 1, 32), (80, 512, 4096)):
        fig = figures.planned(width, layers, size, tokens)
        assert style.figure_problems(fig, "one two three four five") == []


def test_a_move_is_answered_within_a_tenth_of_a_second():
    def seconds(size):
        start = time.process_time()  # of this process, whatever else the machine is doing
        style.figure_with_alt(figures.planned(4096, 32, size, 512), "one two three four five")
        return time.process_time() - start

    assert statistics.median(seconds(2**n) for n in range(9)) < a_tenth_of_a_second()
