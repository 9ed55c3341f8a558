"""Chapter 10: every cell runs, and the levels explorer follows its controls."""

import pytest

pytestmark = pytest.mark.browser


def test_the_levels_explorer(lab_page):
    lab_page.run_chapter("10_qlora.ipynb")

    picture = lab_page.picture_of("numbers")
    lab_page.screenshot("10-explorer", picture)
    lab_page.redrawn_by(picture, [("scheme", 2), ("block", -2), ("numbers", "uniform")])
    lab_page.screenshot("10-explorer-moved", picture)
