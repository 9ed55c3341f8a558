"""Chapter 08: every cell runs, and the rank explorer follows its controls."""

import pytest

pytestmark = pytest.mark.browser


def test_the_rank_explorer(lab_page):
    lab_page.open("08_lora.ipynb")
    lab_page.run_all(seconds=900)
    assert lab_page.errors() == []
    for number, figure in enumerate(lab_page.outputs("image/png").all()):
        assert figure.locator("img").evaluate("img => img.naturalWidth") > 600
        lab_page.screenshot(f"08-figure-{number}", figure)

    cell = lab_page.page.locator(".jp-CodeCell").filter(has=lab_page.control("rank"))
    picture = cell.locator(".jp-OutputArea-output[data-mime-type='image/png'] img")
    lab_page.screenshot("08-explorer", picture)
    for control, value in [("rank", 3), ("rank", -6), ("matrix", "layers.2.self_attn.q_proj")]:
        before = picture.get_attribute("src")
        lab_page.move(control, value)
        lab_page.redrawn(picture, before)
    lab_page.screenshot("08-explorer-moved", picture)
