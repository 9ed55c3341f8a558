"""Chapter 04 in the browser: every cell runs, and the bit explorer answers to each of its controls."""

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_the_bit_explorer(lab_page):
    lab_page.run_chapter("04_float_formats.ipynb", seconds=600)

    table = lab_page.outputs("text/html").filter(has_text="spacing there")
    cell = lab_page.page.locator(".jp-CodeCell").filter(has=table)
    number = lab_page.control("number").locator("input")
    picture = cell.locator(".jp-OutputArea-output[data-mime-type='image/png'] img")

    def shows(bits):
        """The picture has changed since the last call, and the table has these bits."""
        table.get_by_text(bits, exact=True).wait_for()
        assert picture.get_attribute("src") != shows.before
        shows.before = picture.get_attribute("src")

    shows.before = None
    shows("0 01111011 1001101")  # 0.1 in BF16
    lab_page.screenshot("04-explorer", number)
    number.fill("257")
    number.press("Enter")
    shows("0 10000111 0000000")
    lab_page.move("format", "FP8 E4M3")
    buttons = cell.locator("button.jupyter-button")
    expect(buttons).to_have_text(list("01111000"))  # 256
    buttons.last.click()
    expect(number).to_have_value("288.0")
    shows("0 1111 001")
    number.fill("no number")
    number.press("Enter")
    expect(number).to_have_value("288.0")
    lab_page.screenshot("04-explorer-moved", number)
