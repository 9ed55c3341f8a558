"""The rank explorer: two controls over `figures.explorer`."""

import ipywidgets
from IPython.display import display

from course.classroom.lora import figures
from course.classroom.style import figure_with_alt


def explorer(updates, rank=8):
    """Show an update of a weight and its nearest matrix of some rank; updates: name -> (out, in).

    The picture is an ordinary output below the controls, so that it stays when no kernel runs.
    """
    parts = {name: figures.parts_of(update) for name, update in updates.items()}
    matrix = ipywidgets.Dropdown(options=list(parts), description="matrix")
    slider = ipywidgets.SelectionSlider(options=figures.RANKS, value=rank, description="rank", layout={"width": "60%"})
    display(ipywidgets.VBox([matrix, slider]))

    def shown():
        whole = parts[matrix.value]
        _, error, numbers = figures.best(whole, slider.value)
        alt = f"The update of {matrix.value} as a picture, the nearest matrix of rank {slider.value}, and their "
        alt += f"difference: {numbers:,} numbers leave an error of {error:.0f} % of the update's size."
        return figure_with_alt(figures.explorer(whole, slider.value), alt)

    picture = display(shown(), display_id=True)
    for control in (matrix, slider):
        control.observe(lambda change: picture.update(shown()), "value")
