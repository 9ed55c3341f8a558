"""Chapter 12: every cell runs, and the stack builder follows its sliders."""

import pytest

pytestmark = pytest.mark.browser


def test_the_stack_builder(lab_page):
    lab_page.open("12_layer_surgery.ipynb")
    lab_page.run_all(seconds=900)
    assert lab_page.errors() == []
    for number, figure in enumerate(lab_page.outputs("image/png").all()):
        assert figure.locator("img").evaluate("img => img.naturalWidth") > 600
        lab_page.screenshot(f"12-figure-{number}", figure)

    cell = lab_page.page.locator(".jp-CodeCell").filter(has=lab_page.control("ends before"))
    picture = cell.locator(".jp-OutputArea-output[data-mime-type='image/png'] img")
    for control, value in (("ends before", -2), ("begins at", 3)):
        before = picture.get_attribute("src")
        lab_page.move(control, value)
        lab_page.redrawn(picture, before)
    assert cell.get_by_text("5 layers", exact=False).count()
    lab_page.screenshot("12-explorer", picture)
