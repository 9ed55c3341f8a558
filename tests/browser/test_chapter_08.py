"""Chapter 08: every cell runs, and the rank explorer follows its controls."""

import pytest

pytestmark = pytest.mark.browser


def test_the_rank_explorer(lab_page):
    lab_page.run_chapter("08_lora.ipynb")

    picture = lab_page.picture_of("rank")
    lab_page.screenshot("08-explorer", picture)
    lab_page.redrawn_by(picture, [("rank", 3), ("rank", -6), ("matrix", "layers.2.self_attn.q_proj")])
    lab_page.screenshot("08-explorer-moved", picture)
