"""Chapter 03: the planner's controls move, and its picture follows."""

import pytest

pytestmark = pytest.mark.browser


def test_the_planner(lab_page):
    lab_page.open("03_memory_math.ipynb")
    lab_page.run_all(seconds=600)
    assert lab_page.errors() == []
    picture = lab_page.page.locator("img.jupyter-widgets.widget-image")
    for control, value in [
        ("model", "llama-3-8b"),
        ("method", "qlora"),
        ("optimizer", "sgd"),
        ("batch", 2),
        ("seq", -3),
        ("checkpointing", "every block"),
        ("devices", 1),
        ("sharding", "zero3"),
        ("GPU GiB", 1),
    ]:
        before = picture.get_attribute("src")
        lab_page.move(control, value)
        lab_page.redrawn(picture, before)
    lab_page.screenshot("03-planner", picture)
