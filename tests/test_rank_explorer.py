"""Chapter 08's explorer, driven without a browser: each control changes the picture, within a tenth of a second."""

import statistics
import time

import pytest
import torch
from fixtures import a_tenth_of_a_second, catch_displayed

from course.classroom import style
from course.classroom.lora import figures, widget


def update(rows=512, seed=0):
    dice = torch.Generator().manual_seed(seed)
    thin = torch.randn(rows, 6, generator=dice) @ torch.randn(6, 192, generator=dice)
    return thin + torch.randn(rows, 192, generator=dice) / 5


@pytest.fixture
def explorer(monkeypatch):
    shown = catch_displayed(monkeypatch, widget)
    widget.explorer({"up": update(), "q": update(192, seed=1)})
    return shown[0].thing.children, shown[1]


def test_each_control_changes_the_picture(explorer):
    (matrix, slider), picture = explorer
    seen = {picture.thing.data}
    slider.value = 32
    seen.add(picture.thing.data)
    assert "rank 32" in repr(picture.thing) and "22,528 numbers" in repr(picture.thing)
    matrix.value = "q"
    seen.add(picture.thing.data)
    assert "12,288 numbers" in repr(picture.thing)
    assert len(seen) == 3 and picture.updates == 2


def test_the_nearest_matrix_is_the_truncated_decomposition():
    whole = update()
    parts = figures.parts_of(whole)
    for rank in (1, 5, 40):
        near, error, numbers = figures.best(parts, rank)
        assert torch.linalg.matrix_rank(near) == rank and numbers == rank * (512 + 192)
        assert error == pytest.approx(100 * ((whole - near).norm() / whole.norm()).item(), rel=1e-3)
        assert figures.energy(parts[1])[rank - 1] == pytest.approx(100 - error**2 / 100, rel=1e-3)
    assert figures.best(parts, 192)[1] == 0


@pytest.mark.parametrize("rank", figures.RANKS)
def test_every_state_has_a_figure_that_is_fit_to_be_shown(rank):
    fig = figures.explorer(figures.parts_of(update()), rank)
    assert style.figure_problems(fig, "one two three four five") == []


def test_a_change_is_answered_within_a_tenth_of_a_second(explorer):
    (_, slider), _ = explorer

    def seconds(rank):
        start = time.process_time()  # of this process, whatever else the machine is doing
        slider.value = rank
        return time.process_time() - start

    assert statistics.median(map(seconds, figures.RANKS)) < a_tenth_of_a_second()
