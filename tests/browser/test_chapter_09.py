"""Chapter 09: every cell runs, and the storage explorer follows its controls."""

import pytest

pytestmark = pytest.mark.browser


def test_the_storage_explorer(lab_page):
    lab_page.run_chapter("09_serving_lora.ipynb")

    control = lab_page.control("customers")
    picture = lab_page.picture_of("customers")
    lab_page.screenshot("09-explorer", control)
    lab_page.redrawn_by(picture, {"customers": 2, "rank": 3, "side": -3}.items())
    lab_page.screenshot("09-explorer-moved", control)
