"""The planner of chapter 03: a thin shell over figures.planned."""

import ipywidgets
from IPython.display import display

from course.classroom import style
from course.classroom.memory_math import figures
from course.memory import METHODS, OPTIMIZERS, PRECISIONS
from course.model_shape import MOE, ModelShape, known_models

DEFAULT = {
    "model": "llama-2-7b",
    "method": "lora",
    "optimizer": "adamw",
    "precision": "bf16",
    "batch": 1,
    "seq": 2048,
    "checkpointing": False,
    "gpu_gib": 24,
}
ALT = "Stacked bars of the bytes alive at each moment of a training step, part by part, against the GPU's memory."


def planner():
    """Show the planner, with its default state as a picture."""
    models = [name for name in known_models() if ModelShape.from_config(name).family not in MOE]
    powers = [2**n for n in range(18)]
    controls = {
        "model": ipywidgets.Dropdown(options=models, description="model"),
        "method": ipywidgets.Dropdown(options=METHODS, description="method"),
        "optimizer": ipywidgets.Dropdown(options=list(OPTIMIZERS), description="optimizer"),
        "precision": ipywidgets.Dropdown(options=PRECISIONS, description="precision"),
        "batch": ipywidgets.SelectionSlider(options=powers[:9], description="batch"),
        "seq": ipywidgets.SelectionSlider(options=powers[5:], description="seq"),
        "checkpointing": ipywidgets.Checkbox(description="checkpointing"),
        "gpu_gib": ipywidgets.SelectionSlider(options=[8, 12, 16, 24, 32, 40, 48, 80, 141], description="GPU GiB"),
    }
    for name, control in controls.items():
        control.value = DEFAULT[name]
    picture = ipywidgets.Image(format="png", value=_png())

    def change(_):
        picture.value = _png(**{name: control.value for name, control in controls.items()})

    for control in controls.values():
        control.observe(change, names="value")
    rows = list(controls.values())[:4], list(controls.values())[4:]
    return ipywidgets.VBox([*map(ipywidgets.HBox, rows), picture])


def show_planner():
    """The static figure of the default state, then the widget itself, where there is a kernel to drive it."""
    style.display_figure(figures.planned(**DEFAULT), ALT)
    display(planner())


def _png(**state):
    return style.png(figures.planned(**DEFAULT | state), ALT)
