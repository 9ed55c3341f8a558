"""Chapter 00, run in the browser as a newcomer does."""

import re

import pytest

pytestmark = pytest.mark.browser


def test_the_first_finetune(lab_page):
    lab_page.open("00_start_here.ipynb")
    lab_page.run_all(seconds=600)
    assert lab_page.errors() == []
    curve = lab_page.outputs("image/png").first
    assert curve.locator("img").evaluate("img => img.naturalWidth") > 600
    assert "loss" in lab_page.outputs("text/html").locator("details").first.text_content().lower()
    lab_page.screenshot("00-loss-curve", curve)
    answers = lab_page.outputs().filter(has_text=re.compile(r'\{"\w+": '))
    assert answers.count() > 0
    lab_page.screenshot("00-answers", answers.last)
