"""The explorer of chapter 07: sliders over `figures.planned`."""

import ipywidgets
from IPython.display import display

from course.classroom.parameter_efficient_finetuning import figures
from course.classroom.style import figure_with_alt

DEFAULT = {"width": 4096, "layers": 32, "size": 8, "tokens": 512}
OPTIONS = {
    "width": [256, 512, 1024, 2048, 4096, 8192],
    "layers": [2, 4, 8, 16, 32, 48, 64, 80],
    "size": [2**n for n in range(10)],
    "tokens": [2**n for n in range(5, 13)],
}


def explorer():
    """Show what each method trains and what a step takes; sliders for the model, the method's size and the text."""
    sliders = {
        name: ipywidgets.SelectionSlider(options=OPTIONS[name], value=value, description=name)
        for name, value in DEFAULT.items()
    }
    display(ipywidgets.GridBox(list(sliders.values()), layout={"grid_template_columns": "repeat(2, 320px)"}))

    def shown():
        state = {name: slider.value for name, slider in sliders.items()}
        counts = {name: figures.step(name, **state)[0] for name in ("full", "adapters", "prompt")}
        alt = f"Bytes of a training step and trained numbers of each method, for {state}. Trained numbers: {counts}."
        return figure_with_alt(figures.planned(**state), alt)

    picture = display(shown(), display_id=True)  # an ordinary output, so that it stays when no kernel runs
    for slider in sliders.values():
        slider.observe(lambda change: picture.update(shown()), "value")
