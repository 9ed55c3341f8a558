"""Chapter 11: every cell runs, and both explorers follow their controls."""

import pytest

pytestmark = pytest.mark.browser


def test_the_two_explorers(lab_page):
    lab_page.run_chapter("11_model_merging.ipynb")

    for first, moves in (
        ("angle", [("angle", 2), ("t", 1), ("length", -1)]),
        ("density", [("density", -2), ("model 2", 1)]),
    ):
        picture = lab_page.picture_of(first)
        lab_page.redrawn_by(picture, moves)
        lab_page.screenshot(f"11-explorer-{first}", picture)
