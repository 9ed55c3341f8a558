"""The stepper of chapter 02: walk through a graph, forward and backward, one node at a time."""

import ipywidgets
from IPython.display import display

from course.classroom.backpropagation import figures
from course.classroom.style import figure_with_alt


def stepper(result):
    """Show the graph of the Value `result` with all gradients, and below it controls that walk through it.

    The picture is an ordinary output that a step replaces, so that the page shows it without a kernel too.
    """
    last = figures.number_of_steps(result)
    slider = ipywidgets.IntSlider(last, 0, last, description="step")
    buttons = [ipywidgets.Button(description=name) for name in ("one back", "one on")]

    def picture():
        fig = figures.expression(result, slider.value)
        return figure_with_alt(fig, f"The graph after step {slider.value} of {last}. {fig.axes[0].get_title('left')}.")

    shown = display(picture(), display_id=True)
    slider.observe(lambda change: shown.update(picture()), names="value")
    for button, move in zip(buttons, (-1, 1), strict=True):
        button.on_click(lambda _, move=move: setattr(slider, "value", slider.value + move))
    display(ipywidgets.HBox([buttons[0], slider, buttons[1]]))
    return slider
