"""Chapter 06: every cell runs, and the histogram follows the loss scale's slider."""

import pytest

pytestmark = pytest.mark.browser


def test_the_loss_scale(lab_page):
    lab_page.open("06_training_in_low_precision.ipynb")
    lab_page.run_all(seconds=1800)
    assert lab_page.errors() == []
    for number, figure in enumerate(lab_page.outputs("image/png").all()):
        assert figure.locator("img").evaluate("img => img.naturalWidth") > 600
        lab_page.screenshot(f"06-figure-{number}", figure)

    slider = lab_page.control("log₂ scale")
    cell = lab_page.page.locator(".jp-CodeCell").filter(has=slider)
    picture = cell.locator(".jp-OutputArea-output[data-mime-type='image/png'] img")
    lab_page.screenshot("06-slider", slider)
    for steps in (12, 10, -5):
        before = picture.get_attribute("src")
        lab_page.move("log₂ scale", steps)
        assert lab_page.redrawn(picture, before) != before
    lab_page.screenshot("06-slider-moved", slider)
