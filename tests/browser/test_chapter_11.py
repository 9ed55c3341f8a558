"""Chapter 11: every cell runs, and both explorers follow their controls."""

import pytest

pytestmark = pytest.mark.browser


def test_the_two_explorers(lab_page):
    lab_page.open("11_model_merging.ipynb")
    lab_page.run_all(seconds=900)
    assert lab_page.errors() == []
    for number, figure in enumerate(lab_page.outputs("image/png").all()):
        assert figure.locator("img").evaluate("img => img.naturalWidth") > 600
        lab_page.screenshot(f"11-figure-{number}", figure)

    for first, moves in (
        ("angle", [("angle", 2), ("t", 1), ("length", -1)]),
        ("density", [("density", -2), ("model 2", 1)]),
    ):
        cell = lab_page.page.locator(".jp-CodeCell").filter(has=lab_page.control(first))
        picture = cell.locator(".jp-OutputArea-output[data-mime-type='image/png'] img")
        for control, value in moves:
            before = picture.get_attribute("src")
            lab_page.move(control, value)
            lab_page.redrawn(picture, before)
        lab_page.screenshot(f"11-explorer-{first}", picture)
