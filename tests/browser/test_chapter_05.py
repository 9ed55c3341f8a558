"""Chapter 05 in the browser: every cell runs, and the explorer answers to each of its controls."""

import pytest

pytestmark = pytest.mark.browser


def test_the_quantization_explorer(lab_page):
    lab_page.run_chapter("05_quantization.ipynb", seconds=1800)

    picture = lab_page.picture_of("group size")
    lab_page.redrawn_by(picture, [("bits", -1), ("group size", -2), ("levels", "affine"), ("outlier", 5)])
    lab_page.screenshot("05-explorer", picture)
