"""Chapter 02, run in the browser; its stepper walks through the graph by slider and by buttons."""

import pytest

pytestmark = pytest.mark.browser


def test_the_chapter_and_its_stepper(lab_page):
    lab_page.open("02_backpropagation.ipynb")
    lab_page.run_all(seconds=600)
    assert lab_page.errors() == []
    pictures = lab_page.outputs("image/png")
    assert pictures.count() == 5
    for place, name in enumerate(["graph", "stepper", "losses", "kept", "arrangements"]):
        assert pictures.nth(place).locator("img").evaluate("img => img.naturalWidth") > 600
        lab_page.screenshot(f"02-{name}", pictures.nth(place))

    seen = {source(pictures)}
    for move in (
        lambda: lab_page.move("step", -3),
        lambda: lab_page.page.get_by_role("button", name="one back").click(),
        lambda: lab_page.page.get_by_role("button", name="one on").click(),
        lambda: lab_page.move("step", -5),
    ):
        before = source(pictures)
        move()
        seen.add(lab_page.redrawn(pictures.nth(1).locator("img"), before))
    assert len(seen) == 4  # where it began, step 7, step 6, step 7 again, step 2
    lab_page.screenshot("02-stepper-forward", pictures.nth(1))


def source(pictures):
    return pictures.nth(1).locator("img").get_attribute("src")
