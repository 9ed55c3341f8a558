"""Chapter 06: every cell runs, and the histogram follows the loss scale's slider."""

import pytest

pytestmark = pytest.mark.browser


def test_the_loss_scale(lab_page):
    lab_page.run_chapter("06_training_in_low_precision.ipynb", seconds=1800)

    slider = lab_page.control("log₂ scale")
    lab_page.screenshot("06-slider", slider)
    lab_page.redrawn_by(lab_page.picture_of("log₂ scale"), [("log₂ scale", steps) for steps in (12, 10, -5)])
    lab_page.screenshot("06-slider-moved", slider)
