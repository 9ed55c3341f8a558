"""Runs that are interrupted, killed or out of disk lose nothing."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from fixtures import equal, run, shop_examples, tiny_model, weights
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from course.lab import checkpoint, training
from course.lab.losses import weighted_loss


def stop_at(monkeypatch, step, error):
    """Make the forward pass of a step raise, once."""
    passes = iter(range(10**6))

    def loss(model, batch):
        if next(passes) == step:
            raise error
        return weighted_loss(model, batch)

    monkeypatch.setattr(training, "weighted_loss", loss)


def test_interrupted_run_is_usable_and_continues_to_the_same_weights(tmp_path, monkeypatch):
    settings = {"validation": shop_examples(5, seed=2), "patience": 5, "eval_every": 2, "accumulate": 2}
    whole, all_of_it = run(**settings)
    stop_at(monkeypatch, 2 * 3, KeyboardInterrupt())
    model, history = run(**settings, checkpoint_dir=tmp_path)
    assert history.stopped == "interrupted" and len(history.losses) == 3 and not model.training
    assert all(torch.isfinite(p).all() and p.grad is None for p in model.parameters())
    monkeypatch.undo()
    model, history = run(**settings, checkpoint_dir=tmp_path)
    assert (history.stopped, history.losses, history.validation) == (
        "finished",
        all_of_it.losses,
        all_of_it.validation,
    )
    assert history.tokens == all_of_it.tokens and history.peak_bytes == all_of_it.peak_bytes
    assert equal(weights(model), weights(whole))
    again, loaded = run(**settings, checkpoint_dir=tmp_path)  # nothing is left to do
    assert equal(weights(again), weights(whole)) and loaded.losses == history.losses


@pytest.fixture
def ctrl_c_heard():
    """Python's own handler of SIGINT: a test run in the background of a shell begins with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_end_of_the_optimizer_step(monkeypatch, ctrl_c_heard):
    step = torch.optim.AdamW.step
    reached = []

    def interrupted_step(self, *args):
        os.kill(os.getpid(), signal.SIGINT)
        step(self, *args)
        reached.append(True)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted_step)
    _, history = run()
    assert reached == [True] and len(history.losses) == 1 and history.stopped == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_trains_in_another_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(run(max_steps=2)[1]))
    thread.start()
    thread.join()
    assert len(results[0].losses) == 2


KILLED_RUN = """
import sys, torch
from fixtures import run
model, history = run(epochs=30, checkpoint_dir=sys.argv[1], checkpoint_every=3)
"""


def test_killed_run_continues_to_the_same_weights(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    whole, history = run(epochs=30)
    kills = 0
    for wait in (0.0, 0.3, random.random()):
        process = subprocess.Popen([sys.executable, "-c", KILLED_RUN, tmp_path], env=environment)
        while not (tmp_path / "training.safetensors").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills
    model, resumed = run(epochs=30, checkpoint_dir=tmp_path, checkpoint_every=3)
    assert resumed.losses == history.losses
    assert equal(weights(model), weights(whole))
    assert [file.name for file in tmp_path.iterdir()] == ["training.safetensors"]


def test_checkpoint_of_another_run_is_refused(tmp_path):
    run(checkpoint_dir=tmp_path, max_steps=2)
    with pytest.raises(
        ValueError,
        match=r"belongs to another run: learning_rate was 0\.003 and is 0\.001; seed was 0 and is 3",
    ):
        run(checkpoint_dir=tmp_path, max_steps=2, learning_rate=1e-3, seed=3)
    with pytest.raises(ValueError, match="another run: examples was"):
        run(shop_examples(17), checkpoint_dir=tmp_path, max_steps=2)
    with pytest.raises(ValueError, match="another run: model was"):
        run(model=tiny_model(num_hidden_layers=1), checkpoint_dir=tmp_path, max_steps=2)
    base = get_peft_model(tiny_model(seed=1), LoraConfig(r=2, target_modules="all-linear"))
    other = get_peft_model(tiny_model(seed=2), LoraConfig(r=2, target_modules="all-linear"))
    run(model=base, checkpoint_dir=tmp_path / "lora", max_steps=2)
    with pytest.raises(ValueError, match="another run: model was"):  # equal shapes, other frozen weights
        run(model=other, checkpoint_dir=tmp_path / "lora", max_steps=2)
    (tmp_path / "training.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="is no checkpoint or is damaged"):
        run(checkpoint_dir=tmp_path, max_steps=2)


def test_checkpoint_holds_tensors_and_json_only(tmp_path):
    model, _ = run(checkpoint_dir=tmp_path, max_steps=2)
    saved = load_file(tmp_path / "training.safetensors")
    assert torch.equal(saved["weights/lm_head.weight"], model.lm_head.weight)
    assert {name.split("/")[0] for name in saved} == {"weights", "step", "exp_avg", "exp_avg_sq"}


def test_full_disk_before_the_first_step(tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: Usage)
    model = tiny_model()
    needed = 3 * sum(p.nbytes for p in model.parameters())
    before = weights(model)
    with pytest.raises(OSError, match=f"takes {needed:,} bytes and 1,000 are free; nothing was trained"):
        run(model=model, checkpoint_dir=tmp_path)
    assert equal(weights(model), before)


def test_full_disk_in_the_middle_loses_nothing(tmp_path):
    whole, history = run(max_steps=6)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # writing more to one file fails
    try:
        with pytest.warns(RuntimeWarning, match="No checkpoint was written to .* There is none from before.* goes on"):
            model, unsaved = run(max_steps=6, checkpoint_dir=tmp_path, checkpoint_every=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert unsaved.losses == history.losses and equal(weights(model), weights(whole))
    assert list(tmp_path.iterdir()) == []


def test_failed_checkpoint_leaves_the_last_one(tmp_path):
    run(max_steps=2, checkpoint_dir=tmp_path)
    good = (tmp_path / "training.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.warns(RuntimeWarning, match="The one before it is still whole"):
            run(max_steps=2, checkpoint_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "training.safetensors").read_bytes() == good
