"""The levels explorer: three controls over `figures.explorer`."""

import ipywidgets
from IPython.display import display

from course.classroom.qlora import figures
from course.classroom.style import figure_with_alt

CHOICES = {"scheme": ("NF4", "FP4", "INT4"), "block": (8, 16, 32, 64, 128, 256, 512, 1024)}
DRAWN = ("normal", "uniform", "Laplace", "Student's t")


def levels(weights, scheme="NF4", block=64):
    """Show how numbers spread in their blocks, and a scheme's levels; controls choose numbers, scheme and block size.

    weights: name -> a tensor, to choose from beside samples of four distributions. The picture is an ordinary output
    below the controls, so that it stays when no kernel runs.
    """
    offered = {name: values.detach().reshape(-1)[: 2**16] for name, values in weights.items()}
    offered |= {name: figures.samples(name) for name in DRAWN}
    numbers = ipywidgets.Dropdown(options=list(offered), description="numbers")
    controls = [
        ipywidgets.SelectionSlider(options=CHOICES[name], value=value, description=name)
        for name, value in (("scheme", scheme), ("block", block))
    ]
    display(ipywidgets.VBox([numbers, *controls]))

    def picture():
        name, (chosen, size) = numbers.value, (control.value for control in controls)
        error = figures.judged(offered[name], chosen, size)[0]
        alt = f"A histogram of {name} over the largest of each block of {size}, and the levels of {chosen} as lines. "
        alt += f"The error is {error:.1f} % of the numbers' size."
        return figure_with_alt(figures.explorer(offered[name], name, chosen, size), alt)

    shown = display(picture(), display_id=True)
    for control in (numbers, *controls):
        control.observe(lambda change: shown.update(picture()), "value")
