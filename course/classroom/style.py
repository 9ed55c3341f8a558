"""The one figure style: readable in greyscale and by colour-blind readers, titled, labelled, with alt text.

fig, ax = style.subplots()
ax.plot(steps, losses)
ax.set(title="The loss halves in 20 steps", xlabel="optimizer step (count)", ylabel="loss (nats per token)")
style.display_figure(fig, alt="Loss against optimizer step. It falls from 4.2 to 0.1 ...")
"""

import base64
import html
import io
import re

import matplotlib as mpl
from cycler import cycler
from matplotlib.category import StrCategoryConverter
from matplotlib.figure import Figure

# Okabe and Ito (2008), darkest first; the yellow is left out because it is too light on white.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = [(0, gaps) for gaps in [(), (5, 2), (1, 1.5), (7, 2, 1, 2), (3, 1), (5, 1, 1, 1, 1, 1), (9, 3)]]
HATCHES = ("", "//", "..", "xx", "oo", "--", "++")

STYLE = {
    "figure.figsize": (7.0, 3.8),
    "figure.constrained_layout.use": True,
    "savefig.dpi": 110,
    "axes.prop_cycle": cycler(color=COLORS) + cycler(linestyle=DASHES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "font.size": 10.5,
    "lines.linewidth": 1.8,
}


def subplots(rows=1, columns=1, *, size=None, layout=None, **kwargs):
    """Return (figure, axes) in the course's style, as pyplot's subplots; size is (width, height) in inches.

    layout "none" leaves the places of the axes to the caller, and draws a figure once where it is drawn twice else.

    The figure is not registered with pyplot: nothing shows it twice, and nothing has to close it.
    """
    mpl.rcParams.update(STYLE)  # for what is drawn later too: line widths are read when a line is added
    fig = Figure(figsize=size, layout=layout)
    return fig, fig.subplots(rows, columns, **kwargs)


def png(fig, alt, dpi=None):
    """The figure as PNG bytes, alt text inside."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Description": alt, "Software": None}, dpi=dpi or STYLE["savefig.dpi"])
    return buffer.getvalue()


def figure_with_alt(fig, alt):
    """The figure as an object for IPython's `display`: a picture with alt text.

    Strict nbval does not compare the image/png; it does compare the text/plain, which is the alt text.
    Raises ValueError with all that `figure_problems` finds.
    """
    if problems := figure_problems(fig, alt):
        raise ValueError(f"figure: {'; '.join(problems)}")
    return _Picture(base64.b64encode(png(fig, alt)).decode(), alt)


def display_figure(fig, alt):
    """Show a figure in the notebook, and below it the alt text to unfold.

    JupyterLab 4.6 drops a picture's alt text, so there it is found in the fold; nbconvert keeps it.
    """
    from IPython.display import HTML, display

    display(figure_with_alt(fig, alt))
    display(HTML(f"<details><summary>This figure in words</summary>{html.escape(alt)}</details>"))


class _Picture:
    def __init__(self, data, alt):
        self.data, self.alt = data, alt

    def __repr__(self):
        return f"Figure: {self.alt}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = {"image/png": self.data, "text/plain": repr(self)}
        return bundle, {"image/png": {"alt": self.alt}}


def figure_problems(fig, alt):
    """What a figure lacks, as a list of sentences; empty when it is fit to be shown.

    Each axis has a label, and the label its unit in brackets, such as (seconds), (count) or (share), unless
    the axis carries names; a logarithmic axis says so; lines in one plot differ in dash or marker.
    """
    lacking = len((alt or "").split()) < 5
    problems = [f"alt text of at least five words is needed; got {alt!r}"] if lacking else []
    shown = [ax for ax in fig.axes if ax.get_visible()]
    titles = [ax.get_title(place) for ax in shown for place in ("left", "center", "right")]
    if not any([fig.get_suptitle(), *titles]):
        problems.append("no title that states the finding")
    for ax in (ax for ax in shown if ax.axison):
        problems += _axis_problems("x", ax.xaxis) + _axis_problems("y", ax.yaxis)
        named = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
        # get_linestyle calls every custom dash "--", so the pattern itself is asked for
        looks = [(line._unscaled_dash_pattern, line.get_marker()) for line in named]
        if len(set(looks)) < len(looks):
            problems.append("two lines have the same dash and marker: in greyscale they look alike")
    return problems


def _axis_problems(name, axis):
    label = axis.get_label_text()
    if not axis.get_visible() or not len(axis.get_ticklocs()):
        return []
    if not label:
        return [f"the {name} axis has no label"]
    names = isinstance(axis.get_converter(), StrCategoryConverter)
    if not names and not re.search(r"\(.+\)|\[.+\]", label):
        return [f"the {name} label {label!r} has no unit in brackets, such as (seconds), (count) or (share)"]
    if axis.get_scale() == "log" and "log" not in label:
        return [f"the {name} axis is logarithmic and its label {label!r} does not say log"]
    return []
