"""Chapter 05 in the browser: every cell runs, and the explorer answers to each of its controls."""

import pytest

pytestmark = pytest.mark.browser


def test_the_quantization_explorer(lab_page):
    lab_page.open("05_quantization.ipynb")
    lab_page.run_all(seconds=1800)
    assert lab_page.errors() == []
    for number, figure in enumerate(lab_page.outputs("image/png").all()):
        assert figure.locator("img").evaluate("img => img.naturalWidth") > 600
        lab_page.screenshot(f"05-figure-{number}", figure)

    cell = lab_page.page.locator(".jp-CodeCell").filter(has=lab_page.control("group size"))
    picture = cell.locator(".jp-OutputArea-output[data-mime-type='image/png'] img")
    for control, value in [("bits", -1), ("group size", -2), ("levels", "affine"), ("outlier", 5)]:
        before = picture.get_attribute("src")
        lab_page.move(control, value)
        lab_page.redrawn(picture, before)
    lab_page.screenshot("05-explorer", picture)
