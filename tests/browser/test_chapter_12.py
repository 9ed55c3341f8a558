"""Chapter 12: every cell runs, and the stack builder follows its sliders."""

import re

import pytest

pytestmark = pytest.mark.browser


def test_the_stack_builder(lab_page):
    lab_page.run_chapter("12_layer_surgery.ipynb")

    picture = lab_page.picture_of("ends before")
    lab_page.redrawn_by(picture, (("ends before", -2), ("begins at", 3)))
    lab_page.page.get_by_text(re.compile(r"^5 layers, [\d,]+ parameters")).wait_for()
    lab_page.screenshot("12-explorer", picture)
