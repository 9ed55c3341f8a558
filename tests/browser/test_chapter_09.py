"""Chapter 09: every cell runs, and the storage explorer follows its controls."""

import pytest

pytestmark = pytest.mark.browser


def test_the_storage_explorer(lab_page):
    lab_page.open("09_serving_lora.ipynb")
    lab_page.run_all(seconds=900)
    assert lab_page.errors() == []
    for number, figure in enumerate(lab_page.outputs("image/png").all()):
        assert figure.locator("img").evaluate("img => img.naturalWidth") > 600
        lab_page.screenshot(f"09-figure-{number}", figure)

    control = lab_page.control("customers")
    cell = lab_page.page.locator(".jp-CodeCell").filter(has=control)
    picture = cell.locator(".jp-OutputArea-output[data-mime-type='image/png'] img")
    lab_page.screenshot("09-explorer", control)
    for name, steps in {"customers": 2, "rank": 3, "side": -3}.items():
        before = picture.get_attribute("src")
        lab_page.move(name, steps)
        assert lab_page.redrawn(picture, before) != before
    lab_page.screenshot("09-explorer-moved", control)
