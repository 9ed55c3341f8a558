"""The storage explorer: three controls over `figures.storage`."""

import ipywidgets
from IPython.display import display

from course.classroom.serving_lora import figures
from course.classroom.style import figure_with_alt

CHOICES = {
    "customers": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    "rank": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "side": (192, 512, 1024, 2048, 4096, 8192),
}


def storage(customers=100, rank=8, side=4096):
    """Show the bytes of one matrix for many customers, merged and apart; each control changes them.

    The picture is an ordinary output below the controls, so that it stays when no kernel runs.
    """
    chosen = {"customers": customers, "rank": rank, "side": side}
    controls = {
        name: ipywidgets.SelectionSlider(options=options, value=chosen[name], description=name)
        for name, options in CHOICES.items()
    }
    display(ipywidgets.VBox([*controls.values()]))

    def picture():
        state = {name: control.value for name, control in controls.items()}
        merged, apart = (f"{size / 1e9:.3g} GB" for size in figures.held(**state))
        alt = f"Bytes against customers, for merged copies and for adapters apart. For {state['customers']} customers, "
        alt += f"a matrix of side {state['side']} and rank {state['rank']}: {merged} merged, {apart} apart."
        return figure_with_alt(figures.storage(**state), alt)

    shown = display(picture(), display_id=True)
    for control in controls.values():
        control.observe(lambda change: shown.update(picture()), "value")
