"""Chapter 07: every cell runs, and the explorer's picture follows each of its sliders."""

import pytest

pytestmark = pytest.mark.browser


def test_the_explorer(lab_page):
    lab_page.open("07_parameter_efficient_finetuning.ipynb")
    lab_page.run_all(seconds=900)
    assert lab_page.errors() == []
    for number, figure in enumerate(lab_page.outputs("image/png").all()):
        assert figure.locator("img").evaluate("img => img.naturalWidth") > 600
        lab_page.screenshot(f"07-figure-{number}", figure)

    width = lab_page.control("width")
    cell = lab_page.page.locator(".jp-CodeCell").filter(has=width)
    picture = cell.locator(".jp-OutputArea-output[data-mime-type='image/png'] img")
    lab_page.screenshot("07-explorer", width)
    for name, steps in (("tokens", 3), ("width", -2), ("layers", 2), ("size", 3)):
        before = picture.get_attribute("src")
        lab_page.move(name, steps)
        assert lab_page.redrawn(picture, before) != before
    lab_page.screenshot("07-explorer-moved", width)
