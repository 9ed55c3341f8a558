"""The planner of chapter 03: a thin shell over figures.planned."""

import ipywidgets
from IPython.display import display

from course.classroom import style
from course.classroom.memory_math import figures
from course.memory import METHODS, OPTIMIZERS, PRECISIONS, SHARDINGS
from course.model_shape import ModelShape, known_models

DEFAULT = {
    "model": "llama-2-7b",
    "method": "lora",
    "optimizer": "adamw",
    "precision": "bf16",
    "batch": 1,
    "seq": 2048,
    "checkpointing": False,
    "devices": 1,
    "sharding": "ddp",
    "gpu_gib": 24,
}
ALT = "Stacked bars of the bytes alive at each moment of a training step, part by part, against the GPU's memory."


def planner():
    """Show the planner, with its default state as a picture; what cannot be is said below the controls."""
    models = [name for name in known_models() if ModelShape.from_config(name).family != "deepseek_v2"]
    powers = [2**n for n in range(18)]
    blocks = [("none", False), ("every block", True), ("every 2nd block", 2), ("every 4th block", 4)]
    options = {"model": models, "method": METHODS, "optimizer": list(OPTIMIZERS), "precision": PRECISIONS}
    options |= {"checkpointing": blocks, "sharding": SHARDINGS, "batch": powers[:9], "seq": powers[5:]}
    options |= {"devices": powers[:9], "gpu_gib": [8, 12, 16, 24, 32, 40, 48, 80, 141]}
    looks = {"layout": {"width": "320px"}, "style": {"description_width": "100px"}}
    controls = {}
    for name in DEFAULT:
        slides = name in {"batch", "seq", "devices", "gpu_gib"}
        kind, label = ipywidgets.SelectionSlider if slides else ipywidgets.Dropdown, name.replace("gpu_gib", "GPU GiB")
        controls[name] = kind(options=options[name], description=label, value=DEFAULT[name], **looks)
    picture, refusal = ipywidgets.Image(format="png", value=_png()), ipywidgets.Label()

    def change(_):
        try:
            picture.value = _png(**{name: control.value for name, control in controls.items()})
            refusal.value = ""
        except ValueError as error:
            refusal.value = f"{error}"

    for control in controls.values():
        control.observe(change, names="value")
    rows = [list(controls.values())[start : start + 3] for start in range(0, len(controls), 3)]
    return ipywidgets.VBox([*map(ipywidgets.HBox, rows), refusal, picture])


def show_planner():
    """The static figure of the default state, then the widget itself, where there is a kernel to drive it."""
    style.display_figure(figures.planned(**DEFAULT), ALT)
    display(planner())


def _png(**state):
    return style.png(figures.planned(**DEFAULT | state), ALT, dpi=80)  # in less time than at full size
