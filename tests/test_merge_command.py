"""`python -m course merge`: mergekit's recorded results from its own files, what it refuses, and that it dies well."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from fixtures import tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from course.__main__ import main
from course.lab.data import DataError
from course.lab.merge import RECIPE, checkpoints, merge
from course.lab.merge.recipe import read_recipe
from course.merging import slerp

RECORDED = Path(__file__).parent / "mergekit"
ROOT = Path(__file__).parents[1]


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The three recorded models as folders, and the current folder beside them."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "a", "b"):
        folder = tmp_path / f"tiny_{name}"
        folder.mkdir()
        (folder / "config.json").write_text((RECORDED / "config.json").read_text())
        (folder / "tokenizer.json").write_text("{}")
        (folder / "model.safetensors").symlink_to(RECORDED / f"{name}.safetensors")
    return tmp_path


def recipe(folder, **told):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


@pytest.mark.parametrize("name", ["linear", "slerp", "ta", "ties", "ties_nn", "pass"])
def test_mergekits_files_give_mergekits_results(models, name, capsys):
    assert main(["merge", str(RECORDED / f"{name}.yml"), "--out", "merged"]) == 0
    assert "merged holds the merged model" in capsys.readouterr().out
    ours, theirs = load_file("merged/model.safetensors"), load_file(RECORDED / f"out_{name}.safetensors")
    assert ours.keys() == theirs.keys()
    assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) < 2e-7
    model = AutoModelForCausalLM.from_pretrained("merged")
    assert model.config.num_hidden_layers == (3 if name == "pass" else 2)
    assert torch.equal(model.state_dict()["model.norm.weight"], ours["model.norm.weight"])
    assert Path("merged/tokenizer.json").exists() and Path("merged", RECIPE).exists()


def test_a_gradient_over_layers_and_filters(models):
    t = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": [0.5, 0.3]}, {"value": 0.25}]
    sources = [{"model": f"tiny_{name}", "layer_range": [0, 2]} for name in "ab"]
    told = {"merge_method": "slerp", "base_model": "tiny_a", "parameters": {"t": t}, "slices": [{"sources": sources}]}
    merge(recipe(models, **told), "merged")
    merged, a, b = (
        load_file("merged/model.safetensors"),
        *(load_file(RECORDED / f"{name}.safetensors") for name in "ab"),
    )
    for name, tensor in merged.items():
        first = ".0." in name
        t = (0 if first else 1) if "self_attn" in name else (0.5 if first else 0.3) if "mlp" in name else 0.25
        assert torch.allclose(tensor, slerp({"": a[name]}, {"": b[name]}, t)[""], atol=1e-7), name


def test_dare_has_a_seed_and_ties_its_election(models):
    each = [{"model": f"tiny_{name}", "parameters": {"weight": 0.5, "density": 0.5}} for name in "ab"]
    told = {"base_model": "tiny_base", "models": each}
    made = {}
    for method, seed in (("dare_linear", 0), ("dare_linear", 1), ("dare_ties", 0)):
        merge(recipe(models, merge_method=method, parameters={"seed": seed}, **told), f"{method}{seed}")
        made[method, seed] = load_file(f"{method}{seed}/model.safetensors")["lm_head.weight"]
    assert len({tensor.sum().item() for tensor in made.values()}) == 3


def test_shards_and_dtype(models, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHARD", 100_000)
    each = [{"model": f"tiny_{name}", "parameters": {"weight": 1}} for name in "ab"]
    merge(recipe(models, merge_method="linear", models=each, out_dtype="bfloat16"), "merged")
    files = sorted(path.name for path in Path("merged").glob("*.safetensors"))
    index = json.loads(Path("merged/model.safetensors.index.json").read_text())["weight_map"]
    assert len(files) > 2 and set(index.values()) == set(files)
    model = AutoModelForCausalLM.from_pretrained("merged")
    assert model.dtype == torch.bfloat16
    again = merge(recipe(models, merge_method="passthrough", models=[{"model": "merged"}]), "again")  # reads shards
    assert AutoModelForCausalLM.from_pretrained(again).dtype == torch.bfloat16


LINEAR = {"merge_method": "linear", "models": [{"model": "tiny_a", "parameters": {"weight": 1}}]}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"merge_method": "frankenmerge"}, "merge_method: got 'frankenmerge'; accepted are linear"),
        ("- a\n- b", "merge_method: got None"),
        ("a: [", "this is not YAML"),
        (LINEAR | {"tokens": 3}, "recipe: tokens not known"),
        (LINEAR | {"slices": []}, "either models or slices"),
        (LINEAR | {"base_model": "tiny_base"}, "base_model: linear has none"),
        (LINEAR | {"merge_method": "ties"}, "base_model: ties needs one"),
        (LINEAR | {"parameters": {"density": 0.5}}, "linear does not take density"),
        (LINEAR | {"tokenizer_source": "union"}, "tokenizer_source"),
        (LINEAR | {"dtype": "float7"}, "dtype: got 'float7'"),
        (
            LINEAR | {"merge_method": "task_arithmetic", "base_model": "b", "parameters": {"normalize": True}},
            "normalize",
        ),
        (LINEAR | {"merge_method": "slerp", "base_model": "tiny_a", "models": [{"model": "tiny_a"}]}, "slerp: got"),
    ],
)
def test_a_recipe_that_is_not_understood_is_refused(told, message):
    with pytest.raises(DataError, match=message):
        read_recipe(told if isinstance(told, str) else yaml.safe_dump(told))


def test_what_is_wrong_is_told_before_anything_is_written(models, capsys):
    path = recipe(models, **LINEAR | {"models": [{"model": "tiny_a"}]})
    assert main(["merge", str(path)]) == 2
    assert "linear needs weight for tiny_a" in capsys.readouterr().err
    save_file(tiny_model().state_dict(), models / "tiny_b" / "other.safetensors")
    (models / "tiny_b" / "model.safetensors").unlink()
    each = [{"model": f"tiny_{name}", "parameters": {"weight": 1}} for name in "ab"]
    assert main(["merge", str(recipe(models, merge_method="linear", models=each))]) == 2
    assert "is [64] in tiny_a and [32] in tiny_b; models of one form" in capsys.readouterr().err
    (models / "recipe").mkdir()
    (models / "recipe" / "diary.txt").write_text("dear")
    assert main(["merge", str(recipe(models, **LINEAR))]) == 2
    assert "was not made by a merge" in capsys.readouterr().err
    assert [file.name for file in (models / "recipe").iterdir()] == ["diary.txt"]
    assert not list(models.glob("*.tmp"))


def test_killed_halfway_it_leaves_no_folder_that_looks_finished(models):
    program = (
        "import sys, time; from course.lab.merge import checkpoints; checkpoints.SHARD = 100_000\n"
        "flush = checkpoints.ShardWriter.flush\n"
        "def slow(self): flush(self); print('a shard', flush=True); time.sleep(0.5)\n"
        "checkpoints.ShardWriter.flush = slow\n"
        "from course.__main__ import main; main(['merge', sys.argv[1]])"
    )
    path = recipe(models, **LINEAR)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, env=environment)
    assert running.stdout.readline() == b"a shard\n"
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(0.1)
    assert not (models / "recipe").exists() and (models / "recipe.tmp").exists()
    assert not (models / "recipe.tmp" / "config.json").exists()
    merge(path, models / "recipe")
    assert not (models / "recipe.tmp").exists() and AutoModelForCausalLM.from_pretrained(models / "recipe")
