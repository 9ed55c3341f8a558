"""Chapter 07: every cell runs, and the explorer's picture follows each of its sliders."""

import pytest

pytestmark = pytest.mark.browser


def test_the_explorer(lab_page):
    lab_page.run_chapter("07_parameter_efficient_finetuning.ipynb")

    width = lab_page.control("width")
    picture = lab_page.picture_of("width")
    lab_page.screenshot("07-explorer", width)
    lab_page.redrawn_by(picture, (("tokens", 3), ("width", -2), ("layers", 2), ("size", 3)))
    lab_page.screenshot("07-explorer-moved", width)
