"""The stack builder: where two slices of one model are joined, and what the model then loses."""

import ipywidgets
from IPython.display import display

from course.classroom.layer_surgery import figures
from course.classroom.style import figure_with_alt
from course.model_shape import ModelShape


def stack(losses, model, end=5, begin=1):
    """Show a stack of two slices of a bundled model; losses: (end, begin) -> nats a token of each stack."""
    shape, layers = ModelShape.from_config(model), max(end for end, _ in losses)
    rest = shape.parameters - layers * shape.block_parameters(shape.blocks[0])
    ends = ipywidgets.SelectionSlider(options=range(1, layers + 1), value=end, description="ends before")
    begins = ipywidgets.SelectionSlider(options=range(layers), value=begin, description="begins at")
    told = ipywidgets.Label()

    def picture():
        count = ends.value + layers - begins.value
        parameters = rest + count * shape.block_parameters(shape.blocks[0])
        loss = losses[ends.value, begins.value]
        told.value = f"{count} layers, {parameters:,} parameters, {2 * parameters / 1e6:.1f} MB in BF16"
        alt = f"Losses of all stacks of two slices. From 0 to {ends.value} and from {begins.value} to {layers}: "
        alt += f"{told.value}, {loss:.2f} nats a token."
        return figure_with_alt(figures.stacks(losses, ends.value, begins.value), alt)

    first = picture()
    display(ipywidgets.VBox([ends, begins, told]))
    shown = display(first, display_id=True)
    for control in (ends, begins):
        control.observe(lambda change: shown.update(picture()), "value")
