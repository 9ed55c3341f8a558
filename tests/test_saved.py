"""What autograd keeps: counted once for each storage, and equal to the formula that chapter 02 derives."""

import pytest
import torch
from fixtures import tiny_model
from torch import nn

from course.lab.saved import SavedTensors


def test_a_storage_counts_once_and_parameters_do_not():
    layer, x = nn.Linear(3, 4), torch.randn(5, 3)
    with SavedTensors(layer) as saved:
        (layer(x).exp() * layer(x[:2]).sum()).sum().backward()
    # x once for both calls, exp's result, which the product keeps too, and the sum
    assert saved.nbytes == 4 * (5 * 3 + 5 * 4 + 1)
    assert layer.weight.grad is not None


def test_gradients_are_those_without_the_hooks():
    model = tiny_model()
    ids = torch.arange(2, 14).view(2, 6)
    grads = []
    for context in (SavedTensors(model), torch.enable_grad()):
        model.zero_grad()
        with context:
            model(ids, labels=ids).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (8, 1)])
@pytest.mark.parametrize(("batch", "seq"), [(1, 7), (3, 32)])
def test_a_llama_block_keeps_what_the_formula_says(trained, heads, batch, seq):
    hidden, inner, head_size = 64, 160, 16
    model = tiny_model(
        hidden_size=hidden, intermediate_size=inner, head_dim=head_size, num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
    )  # fmt: skip
    block = model.model.layers[0].requires_grad_(trained)
    x = torch.randn(batch, seq, hidden, requires_grad=True)
    turns = model.model.rotary_emb(x, torch.arange(seq)[None])
    with SavedTensors(block) as saved:
        block(x, position_embeddings=turns)
    queries, keys = heads[0] * head_size, heads[1] * head_size
    numbers = 2 * hidden + 2 + 2 * queries + 2 * keys + heads[0] + 3 * inner
    numbers += trained * (4 * hidden + inner)
    assert saved.nbytes == 4 * (batch * seq * numbers + 2 * seq * head_size)
