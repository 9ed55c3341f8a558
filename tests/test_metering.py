import gc
import json
import time

import pytest
import torch

from course.lab import metering
from course.lab.metering import load_measurement, measure, save_measurement

UNIT = 100 * 100 * 4  # bytes of the 100 x 100 fp32 matrices below


@pytest.fixture
def matrix():
    return torch.randn(100, 100)


def test_matmul_chain_frees_what_is_no_longer_used(matrix):
    with measure(include=matrix) as m:
        result = matrix
        for _ in range(5):
            result = result @ matrix  # the old and the new result live together, beside the matrix
    assert m.peak_bytes == 3 * UNIT


def test_kept_results_add_up(matrix):
    with measure() as m:
        kept = [matrix @ matrix for _ in range(5)]
    assert m.peak_bytes == len(kept) * UNIT


def test_included_tensors_count_once_and_leave_when_freed(matrix):
    copy = matrix.clone()
    with measure(include=[matrix, matrix.T, copy]) as m:
        del copy
        _ = matrix + 1
    assert m.peak_bytes == 2 * UNIT


def test_views_and_in_place_operations_take_nothing(matrix):
    with measure(include=matrix) as m:
        view = matrix.T[:50].reshape(50, 100)[:, 3]
        matrix.add_(1).mul_(2)
        view.zero_()
    assert m.peak_bytes == UNIT


def test_a_freed_tensor_makes_room(matrix):
    with measure() as m:
        large = torch.empty(300, 100)
        del large
        _ = torch.empty(200, 100)
    assert m.peak_bytes == 3 * UNIT


def test_backward_holds_what_forward_saved(matrix):
    matrix.requires_grad_()
    with measure(include=matrix) as m:
        out = matrix
        for _ in range(4):
            out = out.exp()  # saves its result for the backward pass
    assert m.peak_bytes == 5 * UNIT
    with measure(include=matrix) as m:
        out = matrix
        for _ in range(4):
            out = out.exp()
        out.backward(torch.ones_like(out))
    # The matrix, four results, the ones, and two gradients: one that goes into a node, one that comes out.
    assert m.peak_bytes == 8 * UNIT
    assert matrix.grad.nbytes == UNIT


def test_frozen_weights_need_no_gradient_memory():
    peaks = []
    for frozen in (False, True):
        layers = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(4)])
        layers[:3].requires_grad_(not frozen)
        with measure(include=layers) as m:
            layers(torch.ones(1, 64)).sum().backward()
        peaks.append(m.peak_bytes)
    assert peaks[0] - peaks[1] >= 3 * 64 * 64 * 4


def test_gradients_and_optimizer_states_are_included():
    layer = torch.nn.Linear(100, 100, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    with measure(include=[layer, optimizer]) as m:
        pass
    assert m.peak_bytes == 4 * UNIT + 4  # weight, gradient, two averages, and the number of the step


def test_results_are_the_same_while_counting(matrix):
    torch.manual_seed(0)
    plain = torch.nn.functional.scaled_dot_product_attention(*[matrix[None, None]] * 3, is_causal=True)
    with measure():
        counted = torch.nn.functional.scaled_dot_product_attention(*[matrix[None, None]] * 3, is_causal=True)
    assert torch.equal(plain, counted)


def test_seconds_alone():
    with measure(memory=False) as m:
        time.sleep(0.02)
    assert 0.02 <= m.seconds < 1
    assert m.peak_bytes is None


def test_an_error_passes_and_the_figures_are_there(matrix):
    with pytest.raises(ZeroDivisionError), measure() as m:
        _ = matrix + matrix
        _ = 1 / 0
    assert m.peak_bytes == UNIT
    assert m.seconds > 0
    gc.collect()


def test_what_cannot_be_counted():
    with pytest.raises(ValueError, match="include: str cannot be counted"), measure(include="model"):
        pass


def test_saved_measurement_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(metering, "DATA", tmp_path)
    path = save_measurement("lora-rank", {"exact": [0.1, 0.9]}, "python -m course.lab.pretrain shop-s")
    record = load_measurement("lora-rank")
    assert record["results"] == {"exact": [0.1, 0.9]}
    assert record["command"] == "python -m course.lab.pretrain shop-s"
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"]["cores"] >= 1 and record["hardware"]["cpu"]
    assert len(record["date"]) == len("2026-01-31")
    assert [file.name for file in path.parent.iterdir()] == ["lora-rank.json"]


def test_measurements_that_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(metering, "DATA", tmp_path)
    with pytest.raises(ValueError, match="'loss' do not fit JSON"):
        save_measurement("loss", float("nan"), "")
    with pytest.raises(ValueError, match="a path of this machine"):
        save_measurement("loss", 1.0, f"python {tmp_path.parent}/run.py")
    with pytest.raises(ValueError, match=r"'\.\./loss'; letters"):
        save_measurement("../loss", 1.0, "")
    save_measurement("loss", 1.0, "")
    with pytest.raises(ValueError, match=r"'lost' is not recorded; there are \['loss'\]"):
        load_measurement("lost")
    (tmp_path / "measurements" / "loss.json").write_text(json.dumps({"results": 1})[:-1])
    with pytest.raises(ValueError, match=r"loss\.json is damaged"):
        load_measurement("loss")
