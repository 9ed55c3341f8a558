"""The classroom's outputs and the helpers of these tests, on a small notebook with a widget."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course.classroom import stored

pytestmark = pytest.mark.browser
ALT = "A line that rises from one to three."
CELLS = [
    """from course.classroom import notebook, style
from ipywidgets import interact

def figure(slope):
    fig, ax = style.subplots()
    for n in range(4):
        ax.plot([0, 1], [n, n + slope], label=f"start {n}")
    ax.legend()
    ax.set(title=f"The slope is {slope}", xlabel="x (count)", ylabel="y (count)")
    return fig""",
    f'style.display_figure(figure(2), "{ALT}")',
    "notebook.show(notebook.number)",
    'notebook.reveal(26e9, 31.2e9, "bytes")',
    f"""@interact(slope=(0, 5), colour=["dark", "light"])
def picture(slope=2, colour="dark"):
    style.display_figure(figure(slope), "{ALT}")
    print("slope", slope, colour)""",
]


@pytest.fixture
def opened(lab_page, workplace):
    """Open a notebook with the given code cells."""

    def opened(name, *sources):
        cells = [new_markdown_cell("# Small"), *map(new_code_cell, sources)]
        notebook = new_notebook(cells=cells, metadata=nbformat.from_dict(stored.METADATA))
        nbformat.write(notebook, workplace / "notebooks" / name)
        lab_page.open(name)

    return opened


def test_outputs_and_widgets(lab_page, opened):
    opened("small.ipynb", *CELLS)
    lab_page.run_all()
    assert lab_page.errors() == []
    picture = lab_page.outputs("image/png").first
    assert picture.locator("img").evaluate("img => img.naturalWidth") > 600
    words = lab_page.outputs("text/html").first.locator("details")
    assert words.text_content() == f"This figure in words{ALT}"
    lab_page.screenshot("machinery-figure", picture)
    assert "def number(value):" in lab_page.outputs("text/markdown").inner_text()
    assert "31,200,000,000 bytes (31.2 GB, 29.06 GiB)" in lab_page.page.inner_text(".jp-Notebook")

    before = lab_page.outputs("image/png").last.locator("img").get_attribute("src")
    lab_page.move("slope", 2)
    lab_page.page.get_by_text("slope 4 dark").wait_for()
    after = lab_page.outputs("image/png").last.locator("img").get_attribute("src")
    assert after != before
    lab_page.move("colour", "light")
    lab_page.page.get_by_text("slope 4 light").wait_for()
    lab_page.screenshot("machinery-widget", lab_page.control("slope"))


def test_a_failing_cell_is_seen(lab_page, opened):
    opened("failing.ipynb", "1 / 0", "print('never')")
    lab_page.run_all()
    assert len(lab_page.errors()) == 1 and "ZeroDivisionError" in lab_page.errors()[0]
