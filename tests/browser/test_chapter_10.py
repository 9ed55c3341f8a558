"""Chapter 10: every cell runs, and the levels explorer follows its controls."""

import pytest

pytestmark = pytest.mark.browser


def test_the_levels_explorer(lab_page):
    lab_page.open("10_qlora.ipynb")
    lab_page.run_all(seconds=900)
    assert lab_page.errors() == []
    for number, figure in enumerate(lab_page.outputs("image/png").all()):
        assert figure.locator("img").evaluate("img => img.naturalWidth") > 600
        lab_page.screenshot(f"10-figure-{number}", figure)

    cell = lab_page.page.locator(".jp-CodeCell").filter(has=lab_page.control("numbers"))
    picture = cell.locator(".jp-OutputArea-output[data-mime-type='image/png'] img")
    lab_page.screenshot("10-explorer", picture)
    for control, value in [("scheme", 2), ("block", -2), ("numbers", "uniform")]:
        before = picture.get_attribute("src")
        lab_page.move(control, value)
        lab_page.redrawn(picture, before)
    lab_page.screenshot("10-explorer-moved", picture)
