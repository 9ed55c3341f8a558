import json

import pytest
import torch
from fixtures import tiny_model, tiny_tokenizer
from peft import LoraConfig, get_peft_model

from course.lab import models
from course.lab.data import DataError, write_checksums
from course.lab.models import load_model, save_model


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A data folder with a shop-s in bf16 whose files are listed in SHA256SUMS, and no network."""
    folder = save_model(tiny_model().to(torch.bfloat16), tiny_tokenizer(), tmp_path / "data/models/shop-s")
    write_checksums(tmp_path / "data")
    monkeypatch.setattr(models, "DATA", tmp_path / "data")
    monkeypatch.setattr(models, "online", lambda: False)
    return folder


def test_bundled_model_comes_in_fp32_and_fresh(bundle):
    (model, tokenizer), (again, _) = load_model(), load_model("shop-s")
    assert model.dtype == torch.float32 and not model.training
    assert tokenizer.pad_token and tokenizer.eos_token
    assert tokenizer("a red teapot")["input_ids"] == tiny_tokenizer()("a red teapot")["input_ids"]
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert torch.equal(again.lm_head.weight, tiny_model().lm_head.weight.bfloat16().float())


def test_dtype_can_be_chosen(bundle):
    assert load_model(dtype="bfloat16")[0].dtype == load_model(dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    for bad in ("bf16", torch.int8, 16):
        with pytest.raises(ValueError, match=r"dtype=.* is not a floating-point type of torch"):
            load_model(dtype=bad)


def test_folder(tmp_path):
    save_model(tiny_model(seed=3), tiny_tokenizer(), tmp_path / "mine")
    model, _ = load_model(tmp_path / "mine")
    assert torch.equal(model.lm_head.weight, tiny_model(seed=3).lm_head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert not list((tmp_path / "mine").glob("*.bin"))


def test_damaged_or_missing_files(bundle):
    weights = bundle / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DataError, match=r"data/models/shop-s/model\.safetensors has changed; `git checkout"):
        load_model("shop-s")
    weights.unlink()
    with pytest.raises(DataError, match=r"data/models/shop-s/model\.safetensors is missing; `git checkout"):
        load_model("shop-s")
    with pytest.raises(DataError, match=r"model 'shop-m' is not in data/models; there are \['shop-s'\]"):
        load_model("shop-m")


def test_damaged_folder(tmp_path):
    folder = save_model(tiny_model(), tiny_tokenizer(), tmp_path / "mine")
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"model .*mine' cannot be loaded"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"mine' has no config\.json"):
        load_model(folder)


def test_wrong_name_offline(bundle):
    message = r"'shop-xl' is neither bundled nor a folder, and huggingface.co cannot be reached; bundled models"
    with pytest.raises(
        DataError, match=message + r" are \['shop-s'\], a Hub id looks like 'HuggingFaceTB/SmolLM2-135M'"
    ):
        load_model("shop-xl")


def test_pickled_weights_are_not_read(tmp_path):
    folder = save_model(tiny_model(), tiny_tokenizer(), tmp_path / "mine")
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="cannot be loaded"):
        load_model(folder)


def test_code_in_a_model_is_not_run(tmp_path):
    folder = save_model(tiny_model(), tiny_tokenizer(), tmp_path / "mine")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_save_replaces_a_model_whole_and_nothing_else(tmp_path, monkeypatch):
    folder = save_model(tiny_model(seed=1), tiny_tokenizer(), tmp_path / "mine")
    save_model(tiny_model(seed=2), tiny_tokenizer(), folder)
    assert torch.equal(load_model(folder)[0].lm_head.weight, tiny_model(seed=2).lm_head.weight)

    broken = tiny_model(seed=3)
    monkeypatch.setattr(broken, "save_pretrained", lambda path: path.mkdir() or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_model(broken, tiny_tokenizer(), folder)
    assert torch.equal(load_model(folder)[0].lm_head.weight, tiny_model(seed=2).lm_head.weight)

    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("aunt")
    with pytest.raises(FileExistsError, match="letters is there and is no saved model"):
        save_model(tiny_model(), tiny_tokenizer(), tmp_path / "letters")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letters", "mine"]


def test_adapter_is_saved_without_its_base(tmp_path):
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear"))
    folder = save_model(model, tiny_tokenizer(), tmp_path / "adapter")
    assert (folder / "adapter_model.safetensors").exists() and not (folder / "model.safetensors").exists()
    save_model(model, tiny_tokenizer(), folder)
