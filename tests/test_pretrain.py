"""The base models' maker: tokenizer, optimizer, exact resume after a kill, and the models that are bundled."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from course.lab import pretrain
from course.lab.pretrain import Muon, Recipe, row, train_tokenizer
from course.lab.shop import document

TINY = Recipe(64, 3, 4, 64, stages=(("copies", 32, 2, 4), ("copying", 32, 2, 2), ("document", 64, 1, 6)), context=64)
LAST = (("copying", 32, 1, 1), ("document", 32, 1, 1))

SCRIPT = """
import sys
from pathlib import Path
from course.lab.pretrain import Recipe, pretrain, train_tokenizer
import torch
torch.set_num_threads(1)
recipe = Recipe(64, 3, 4, 64, stages=(("copies", 32, 2, 4), ("copying", 32, 2, 2), ("document", 64, 1, 6)), context=64)
pretrain(recipe, train_tokenizer(300), Path(sys.argv[1]), checkpoint_every=2)
"""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(300)


def test_words_are_the_same_tokens_after_a_space_and_after_a_quote(tokenizer):
    def words(text):
        return [token for token in tokenizer.tokenize(text) if token.isascii() and token.isalpha()]

    assert words("a copper kettle") == ["a", *words('"copper kettle"')] == ["a", *words("(copper kettle)")]


def test_digits_are_split_and_every_text_comes_back(tokenizer):
    assert tokenizer.tokenize("48213") == list("48213")
    assert tokenizer.decode([tokenizer.pad_token_id, tokenizer.eos_token_id]) == "<|pad|><|end|>"
    assert len(tokenizer.encode("<|prefix|><|suffix|><|middle|>")) == 3


@settings(deadline=None)  # a slow moment of the machine is no fault
@given(st.text())
def test_encoding_loses_nothing(text):
    tokenizer = _tokenizer()
    if not any(special in text for special in pretrain.SPECIAL):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def _tokenizer(cache=[]):  # noqa: B006 — hypothesis runs the test many times
    if not cache:
        cache.append(train_tokenizer(300))
    return cache[0]


def test_the_tokenizer_is_the_same_whenever_it_is_trained(tokenizer):
    assert train_tokenizer(300).get_vocab() == tokenizer.get_vocab()


def test_a_row_is_full_and_starts_with_a_document(tokenizer):
    ids = row(tokenizer, 200, document, "pretrain", 0, 5, 1)
    assert len(ids) == 200 and ids == row(tokenizer, 200, document, "pretrain", 0, 5, 1)
    assert ids != row(tokenizer, 200, document, "pretrain", 0, 6, 1)


def test_muon_agrees_with_torchs():
    """torch computes in bfloat16, whose steps are 2**-8 of the value: so the two agree to about a hundredth."""
    torch.manual_seed(0)
    start = [torch.randn(24, 40), torch.randn(24, 40), torch.randn(64, 16)]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.01),
    )
    for _ in range(5):
        grads = [torch.randn_like(p) for p in start]
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for p, grad in zip(parameters, grads, strict=True):
                p.grad = grad.clone()
            optimizer.step()
    for p, q, before in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.02 * (q - before).norm()


def test_stages_and_learning_rate():
    assert (TINY.steps, TINY.tokens) == (12, 6 * 64 + 6 * 64)
    first, second, third = ("copies", 32, 2), ("copying", 32, 2), ("document", 64, 1)
    assert [TINY.stage(step) for step in (0, 3, 4, 6, 11)] == [first, first, second, third, third]
    with pytest.raises(ValueError, match="past the recipe's 12 steps"):
        TINY.stage(12)
    ends = ("close_reading", 32, 2, 200), ("older_letters", 32, 2, 100)
    recipe = Recipe(64, 3, 4, 64, stages=(*[("document", 32, 2, 250)] * 4, *ends))
    factors = [recipe.lr_factor(step) for step in range(1300)]
    assert factors[0] == 1 / 50 and factors[49:601] == [1.0] * 552 and factors[800] == 0.5 and factors[999] == 0.05
    assert max(factors[1000:1200]) == factors[1049] == 0.5 * 151 / 200 and factors[1199] == 0.5 / 200
    assert max(factors[1200:]) == factors[1249] == 0.5 * 51 / 100 and factors[1299] == 0.5 / 100


def _start(path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_killed_run_ends_with_the_same_weights(tmp_path):
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    assert _start(whole).wait() == 0
    process, deadline = _start(killed), time.monotonic() + 60
    while not killed.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = load_file(killed)
    assert _start(killed).wait() == 0
    expected, got = load_file(whole), load_file(killed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert any(not torch.equal(first[name], got[name]) for name in first)  # the kill came before the end


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, tokenizer):
    path = tmp_path / "x.safetensors"
    pretrain.pretrain(Recipe(64, 3, 4, 64, stages=(("copies", 32, 1, 2), *LAST)), tokenizer, path)
    with pytest.raises(ValueError, match="belongs to another recipe"):
        pretrain.pretrain(Recipe(64, 3, 4, 64, stages=(("copies", 32, 1, 3), *LAST)), tokenizer, path)


def test_an_unknown_name_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        pretrain.main(["shop-x"])
    assert "names: got 'shop-x', known are shop-s" in capsys.readouterr().err
