"""Two explorers: SLERP against the straight line, and TIES on eight weights of three models."""

import ipywidgets
from IPython.display import display

from course.classroom.model_merging import figures
from course.classroom.style import figure_with_alt

ANGLES, LENGTHS = (10, 30, 60, 90, 120, 150), (0.5, 1.0, 1.5)
SHARES, WEIGHTS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0), (0.0, 0.5, 1.0, 2.0)


def _explorer(controls, picture):
    """Controls, and below them a picture of their values, an ordinary output that stays when no kernel runs."""
    display(ipywidgets.VBox([*controls.values()]))
    shown = display(picture(), display_id=True)
    for control in controls.values():
        control.observe(lambda change: shown.update(picture()), "value")


def _slider(options, value, name):
    return ipywidgets.SelectionSlider(options=options, value=value, description=name)


def slerp(angle=90, t=0.5, length=1.0):
    """Show the line and the arc between two vectors; angle in degrees, length of the second."""
    steps = _slider((0.0, 0.25, 0.5, 0.75, 1.0), t, "t")
    controls = {"angle": _slider(ANGLES, angle, "angle"), "t": steps, "length": _slider(LENGTHS, length, "length")}

    def picture():
        state = {name: control.value for name, control in controls.items()}
        *_, line, arc = figures.between(**state)
        sizes = (f"{(point @ point) ** 0.5:.3f}" for point in (line, arc))
        alt = f"From a to b, {state['angle']} degrees apart: a straight line and an arc. "
        alt += "At t = {:g} the line is {} long and the arc {}.".format(state["t"], *sizes)
        return figure_with_alt(figures.arc(**state), alt)

    _explorer(controls, picture)


def ties(density=0.5):
    """Show TIES step by step; a density for all, a weight for each of the three models."""
    controls = {"density": _slider(SHARES, density, "density")}
    controls |= {f"model {i}": _slider(WEIGHTS, 1.0, f"model {i}") for i in (1, 2, 3)}

    def picture():
        share, *weights = (control.value for control in controls.values())
        trimmed, _, agree, merged = figures.ties_steps(share, weights)
        alt = f"TIES on eight weights of three models with density {share:g} and weights {weights}: "
        alt += f"{int((trimmed == 0).sum())} are trimmed, {int(((trimmed != 0) & ~agree).sum())} overruled; merged are "
        alt += ", ".join(f"{x:+.2g}" for x in merged.tolist())
        return figure_with_alt(figures.ties(share, weights), alt)

    _explorer(controls, picture)
