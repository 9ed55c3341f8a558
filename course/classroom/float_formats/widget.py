"""The bit explorer: controls over `figures.bit_explorer` and `figures.same_number`."""

import ipywidgets
from IPython.display import HTML, display

from course.classroom.float_formats import figures
from course.classroom.style import figure_with_alt
from course.floats import FORMATS, decode


def bit_explorer(value=0.1, name="bf16"):
    """Show a number in a format; typing a number, choosing a format or clicking a bit shows another.

    The picture and the table are ordinary outputs below the controls, so that they stay when no kernel runs.
    """
    number = ipywidgets.Text(f"{value!r}", description="number", continuous_update=False)
    choice = ipywidgets.Dropdown(options=[(figures.label(f), f) for f in FORMATS], value=name, description="format")
    bits = [ipywidgets.Button(layout={"width": "20px", "padding": "0", "margin": "1px"}) for _ in range(64)]
    row = ipywidgets.HBox(layout=ipywidgets.Layout(flex_flow="row wrap"))
    display(ipywidgets.VBox([ipywidgets.HBox([number, choice]), row]))
    outputs = []

    def show(change=None):
        try:
            value = float(number.value)
        except ValueError:
            number.value = change["old"]  # what is no number is taken back
            return
        fmt, (code, got) = FORMATS[choice.value], figures.held(value, choice.value)
        row.children = bits[: fmt.bits] if code is not None else []
        for place, button in enumerate(row.children):
            button.description = f"{code:0{fmt.bits}b}"[place]
            button.button_style = "primary" if fmt.signed <= place < fmt.bits - fmt.mantissa_bits else ""
        alt = f"The bits of {value:g} in {figures.label(fmt.name)}, which holds {got:g}, and its neighbours on a line."
        shown = figure_with_alt(figures.bit_explorer(value, fmt.name), alt), HTML(figures.same_number(value))
        if not outputs:
            outputs.extend(display(one, display_id=True) for one in shown)
        for output, one in zip(outputs, shown, strict=True):
            output.update(one)

    def flip(button):
        fmt, (code, _) = FORMATS[choice.value], figures.held(float(number.value), choice.value)
        number.value = repr(float(decode(code ^ 1 << fmt.bits - 1 - bits.index(button), fmt)))

    for button in bits:
        button.on_click(flip)
    number.observe(show, "value")
    choice.observe(show, "value")
    show()
