"""The loss scale's slider: a control over `figures.scaled_gradients`."""

import ipywidgets
from IPython.display import display

from course.classroom.style import figure_with_alt
from course.classroom.training_in_low_precision import figures


def loss_scale(gradients, log2_scale=0):
    """Show the sizes of gradients (an array) against FP16's range; the slider multiplies the loss.

    The picture is an ordinary output below the slider, so that it stays when no kernel runs.
    """
    shares = figures.exponents(gradients)
    slider = ipywidgets.IntSlider(log2_scale, 0, 30, description="log₂ scale", layout={"width": "70%"})
    display(slider)

    def shown():
        lost, infinite = figures.lost_and_infinite(shares, slider.value)
        alt = f"Sizes of the gradients at a loss scale of 2 to the {slider.value}, against FP16's range: "
        alt += f"{lost:.1f} % lie below it and {infinite:.2g} % above."
        return figure_with_alt(figures.scaled_gradients(shares, slider.value), alt)

    picture = display(shown(), display_id=True)
    slider.observe(lambda change: picture.update(shown()), "value")
