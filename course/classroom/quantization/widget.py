"""The quantization explorer: four controls over `figures.explorer`."""

import ipywidgets
from IPython.display import display

from course.classroom.quantization import figures
from course.classroom.style import figure_with_alt

GROUPS = (16, 32, 64, 128, 256, 512)


def explorer(bits=4, group_size=64, symmetric=True, outlier=8):
    """Show a row of weights and the levels of its groups; each control changes them.

    The picture is an ordinary output below the controls, so that it stays when no kernel runs.
    """
    controls = {
        "bits": ipywidgets.IntSlider(bits, 2, 8, description="bits"),
        "group_size": ipywidgets.SelectionSlider(options=GROUPS, value=group_size, description="group size"),
        "symmetric": ipywidgets.Dropdown(
            options=[("symmetric", True), ("affine", False)], value=symmetric, description="levels"
        ),
        "outlier": ipywidgets.IntSlider(outlier, 0, 30, 2, description="outlier"),
    }
    display(ipywidgets.VBox([*controls.values()]))

    def picture():
        state = {name: control.value for name, control in controls.items()}
        *_, error, stored = figures.explored(**state)
        alt = f"A histogram of 512 weights, and the levels of its groups: {state['bits']} bits in groups of "
        alt += f"{state['group_size']} leave an error of {error:.2g} % at {stored:.2f} bits a weight."
        return figure_with_alt(figures.explorer(**state), alt)

    shown = display(picture(), display_id=True)
    for control in controls.values():
        control.observe(lambda change: shown.update(picture()), "value")
