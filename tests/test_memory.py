"""Shapes against transformers' own counts, memory against counted and measured peaks."""

import json
import statistics
from pathlib import Path

import bitsandbytes
import pytest
import torch
from memory_counts import (
    FAMILIES,
    OPTIMIZERS,
    inference_row,
    int8_bytes,
    make_optimizer,
    small,
    state_bytes,
    training_row,
)
from memory_full_size import full_size_peak
from memory_sharded import sharded_row
from transformers import AutoConfig, AutoModelForCausalLM

from course.activations import Run
from course.memory import NF4, ModelShape, inference_memory, optimizer_states, training_memory, weight_bytes
from course.model_shape import SHAPES, known_models

LORA_LIKE = {"LORA": "lora", "IA3": "ia3", "BEFT": "bitfit"}


def settings_of(run):
    """Our names for a run that PEFT's authors published; None where the method is not modelled."""
    common = {"batch": run["batch"], "seq": run["seq"], "padded": True}
    if run["type"] in LORA_LIKE:
        return common | {"method": LORA_LIKE[run["type"]], "rank": run["r"] or 16, "targets": tuple(run["targets"])}
    if run["type"] == "PROMPT_TUNING":  # its trained numbers are those of 200 tokens of width 3,072
        return common | {"method": "prompt", "virtual_tokens": run["trainable"] // 3072}
    return None


EAGER = {"bloom", "gemma2"}  # families for which transformers offers no other attention
PEFT_RUNS = json.loads((Path(__file__).parent / "peft_memory.json").read_text())["runs"]


def known_config(name):
    fields = json.loads((SHAPES / f"{name}.json").read_text())
    assert fields.pop("source")
    return AutoConfig.for_model(**fields)


def test_there_are_many_known_models():
    assert len(known_models()) >= 30


@pytest.mark.parametrize("name", known_models())
def test_parameters_are_those_that_transformers_counts(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(known_config(name))
    assert ModelShape.from_config(name).parameters == model.num_parameters()


@pytest.mark.parametrize(
    ("name", "published"),
    [  # what the models' own pages state
        ("bloom-176b", 176_247_271_424),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-3-8b", 8_030_261_248),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen2.5-7b", 7_615_616_512),
        ("gemma-2-2b", 2_614_341_888),
        ("phi-2", 2_779_683_840),
        ("gpt2", 124_439_808),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_parameters_are_the_published_ones(name, published):
    assert ModelShape.from_config(name).parameters == published


def test_active_parameters():
    assert ModelShape.from_config("llama-2-7b").active_parameters == 6_738_415_616
    assert round(ModelShape.from_config("mixtral-8x7b").active_parameters / 1e9, 1) == 12.9
    assert ModelShape.from_config("deepseek-v2-lite").active_parameters < 2.7e9


def test_a_shape_from_a_folder_a_dict_and_a_bundled_name(tmp_path):
    fields = FAMILIES["llama"] | {"model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert ModelShape.from_config(tmp_path).parameters == ModelShape.from_config(fields).parameters
    assert ModelShape.from_config("shop-s").parameters == 2_164_416


def test_what_is_wrong_with_a_source_is_said(tmp_path):
    with pytest.raises(ValueError, match="near: llama-2-7b"):
        ModelShape.from_config("lama-2-7b")
    with pytest.raises(ValueError, match="config.json"):
        ModelShape.from_config(tmp_path)
    with pytest.raises(ValueError, match="hidden_size"):
        ModelShape.from_config({"model_type": "llama"})
    with pytest.raises(ValueError, match="t5"):
        ModelShape.from_config({"model_type": "t5"})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("method", {"method": "lorra"}),
        ("optimizer", {"optimizer": "lion"}),
        ("precision", {"precision": "fp8"}),
        ("batch", {"batch": 0}),
        ("seq", {"seq": 1.5}),
        ("targets", {"method": "lora", "targets": ("query",)}),
        ("last_layers", {"method": "partial", "last_layers": 99}),
        ("precision", {"method": "qlora", "precision": "fp32"}),
        ("method", {"method": "bitfit"}),
        ("targets", {"method": "ia3", "targets": ("query",)}),
        ("targets", {"method": "lora", "targets": ("q_proj", "v_proy")}),
        ("targets", {"method": "lora", "targets": "q_proj"}),
        ("targets", {"method": "lora", "targets": ()}),
        ("precision", {"precision": "autocast", "sharding": "zero3", "devices": 2}),
        ("foreach", {"optimizer": "adamw_8bit", "foreach": True}),
        ("checkpointing", {"checkpointing": -1}),
        ("virtual_tokens", {"method": "prompt", "virtual_tokens": 0}),
        ("devices", {"devices": 0}),
        ("sharding", {"sharding": "zero3"}),
        ("sharding", {"sharding": "zero4", "devices": 2}),
    ],
)
def test_impossible_settings_are_named(name, settings):
    with pytest.raises(ValueError, match=f"^{name}"):
        training_memory("llama-2-7b", **settings)


def test_the_parts_add_up_and_the_peak_is_the_largest_moment():
    memory = training_memory("llama-2-7b", batch=1, seq=512)
    assert memory.total == sum(memory.parts.values()) == max(m.total for m in memory.moments.values())
    assert memory.peak in memory.moments
    running = inference_memory("llama-2-13b", "fp16", 1, 4096)
    assert running.weights == 2 * 13_015_864_320
    assert running.kv_cache == 2 * 40 * 40 * 128 * 4096 * 2
    assert running.total == running.weights + running.kv_cache + running.activations + running.overhead


SETTINGS = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "autocast": {"precision": "autocast"},
    "eager": {"precision": "bf16", "attention": "eager"},
    "eager checkpointing": {"precision": "fp32", "attention": "eager", "checkpointing": True},
    "lora": {"precision": "bf16", "method": "lora"},
    "lora fp32": {"precision": "fp32", "method": "lora"},
    "few tokens": {"precision": "fp32", "batch": 1, "seq": 16},
}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LLAMA_ONLY = [
    {"precision": "bf16", "checkpointing": True},
    {"precision": "fp32", "checkpointing": True},
    {"precision": "autocast", "checkpointing": True},
    {"precision": "bf16", "method": "lora", "checkpointing": True},
    {"precision": "autocast", "method": "lora"},
    {"precision": "bf16", "method": "lora", "targets": ("q_proj", "v_proj")},
    {"precision": "fp32", "method": "partial"},
    {"precision": "fp32", "optimizer": "sgd"},
    {"precision": "fp32", "optimizer": "momentum", "batch": 1, "seq": 16},
    {"precision": "fp32", "optimizer": "adam", "batch": 1, "seq": 16},
    {"precision": "fp32", "accumulation": 2},
    {"precision": "bf16", "padded": True},
    {"precision": "bf16", "foreach": True, "batch": 1, "seq": 16},
    {"precision": "bf16", "method": "ia3"},
    {"precision": "fp32", "method": "ia3"},
    {"precision": "autocast", "method": "ia3"},
    {"precision": "bf16", "method": "ia3", "targets": LINEAR},
    {"precision": "bf16", "method": "prompt"},
    {"precision": "autocast", "method": "prompt", "virtual_tokens": 64},
    {"precision": "bf16", "method": "adapter"},
    {"precision": "autocast", "method": "adapter", "rank": 32},
    {"precision": "bf16", "method": "lora", "targets": ("o_proj",)},
    {"precision": "bf16", "method": "lora", "targets": LINEAR[4:]},
    {"precision": "bf16", "checkpointing": 2},
    {"precision": "autocast", "checkpointing": 2},
    {"precision": "bf16", "method": "lora", "checkpointing": 3},
    {"precision": "bf16", "optimizer": "adafactor", "batch": 1, "seq": 16},
    {"precision": "bf16", "optimizer": "adamw_8bit", "batch": 1, "seq": 16},
    {"precision": "fp32", "optimizer": "adamw_8bit"},
]
ATTENTION = {"method": "lora", "targets": LINEAR[:4]}
OTHERS = [  # (family, settings): what Llama has not, and where other families differ
    ("gpt2", {"method": "bitfit"}),
    ("opt", {"method": "bitfit", "precision": "fp32"}),
    ("qwen2", {"method": "bitfit"}),
    ("gpt2", {"method": "ia3"}),
    ("phi", {"method": "ia3"}),
    ("phi", {"method": "adapter"}),
    ("opt", {"method": "prompt"}),
    ("mixtral", {"precision": "bf16"}),
    ("mixtral", {"precision": "fp32", "checkpointing": True}),
    ("mixtral", ATTENTION),
    ("qwen3_moe", {"precision": "fp32"}),
    ("qwen3_moe", ATTENTION),
]
TRAINED = sorted(set(FAMILIES) - {"mixtral", "qwen3_moe"})
SHARDED = [("ddp", 2, 192), ("zero1", 2, 192), ("zero2", 2, 192), ("zero3", 2, 192), ("zero3", 1, 16)]


def attention(family):
    return {"attention": "eager"} if family in EAGER else {}


@pytest.fixture(scope="module")
def errors():
    """What the rows below were off by, as shares of the counted peak."""
    return []


@pytest.mark.parametrize("family", TRAINED)
def test_training_peaks_are_the_counted_ones(family, errors):
    for settings in SETTINGS.values():
        predicted, counted = training_row(family, **attention(family) | settings)
        errors.append(abs(predicted.total / counted - 1))
        assert errors[-1] < 0.06, (settings, predicted, counted)


@pytest.mark.parametrize("settings", LLAMA_ONLY, ids=str)
def test_each_setting_of_training_is_counted(settings, errors):
    predicted, counted = training_row("llama", **settings)
    errors.append(abs(predicted.total / counted - 1))
    assert errors[-1] < 0.02, (predicted, counted)


@pytest.mark.parametrize(("family", "settings"), OTHERS, ids=str)
def test_other_methods_and_mixtures_of_experts_are_counted(family, settings, errors):
    predicted, counted = training_row(family, **settings)
    errors.append(abs(predicted.total / counted - 1))
    assert errors[-1] < 0.02, (predicted, counted)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.bfloat16), ("gpt2", torch.float32)])
@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_optimizer_states_are_the_counted_ones_to_the_byte(name, family, dtype):
    """On a CPU bitsandbytes keeps paged states where all others are; it is their sum that is counted."""
    model, config = small(family, dtype=dtype)
    optimizer = make_optimizer(name, list(model.parameters()))
    ids = torch.randint(3, 1000, (1, 16))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    run = Run(ModelShape.from_config(config), precision={2: "bf16", 4: "fp32"}[dtype.itemsize])
    stay, leave, _ = optimizer_states(name, run.trained_tensors, run.trained_width)
    assert stay + leave == state_bytes(optimizer)
    assert bool(leave) == ("paged" in name)


def test_int8_weights_are_the_stored_ones_to_the_byte():
    model, config = small("llama", dtype=torch.float16)
    assert weight_bytes(ModelShape.from_config(config), "int8") == int8_bytes(model)


@pytest.mark.parametrize("double", [False, True])
def test_nf4_weights_are_the_stored_ones(double):
    """A matrix of 2²⁰ numbers; bitsandbytes' tables of 16 and of 256 numbers, which do not grow with it, left out."""
    packed, state = bitsandbytes.functional.quantize_4bit(
        torch.randn(1024, 1024), quant_type="nf4", compress_statistics=double
    )
    scales = state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
    assert packed.nbytes + scales == NF4["nf4_double" if double else "nf4"] * 2**20


@pytest.mark.parametrize(("sharding", "batch", "seq"), SHARDED)
def test_one_of_two_devices_is_counted(sharding, batch, seq, errors):
    predicted, counted = sharded_row(sharding, batch=batch, seq=seq)
    errors.append(abs(predicted.total / counted - 1))
    assert errors[-1] < 0.03, (predicted, counted)


def test_paged_states_are_not_in_the_total():
    plain, paged = (
        training_memory("llama-2-7b", seq=64, optimizer=name) for name in ("adamw_8bit", "paged_adamw_8bit")
    )
    assert plain.paged == 0 and paged.paged > 0.99 * 2 * 6_738_415_616
    assert plain.total == paged.total + paged.paged


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_inference_peaks_are_the_counted_ones(family, dtype, errors):
    predicted, counted = inference_row(family, dtype, **attention(family))
    errors.append(abs(predicted.total / counted - 1))
    assert errors[-1] < 0.08, (predicted, counted)


def test_the_median_error_is_small(errors):
    assert len(errors) > 100 and statistics.median(errors) < 0.01 and max(errors) < 0.08


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("llama-2-7b", {"batch": 1, "seq": 512}),
        ("llama-2-7b", {"method": "lora", "batch": 1, "seq": 512}),
        ("llama-2-70b", {"method": "lora", "batch": 1, "seq": 4096, "checkpointing": True}),
        ("llama-3.2-1b", {"batch": 8, "seq": 1024, "precision": "autocast", "checkpointing": True}),
        ("qwen2.5-0.5b", {"batch": 4, "seq": 1024}),
    ],
)
def test_full_size_peaks_are_those_of_torchs_own_tracker(name, run):
    tracked = full_size_peak(name, ModelShape.from_config(name).layers, **run)
    assert training_memory(name, **run).total == pytest.approx(tracked, rel=0.01)


@pytest.mark.parametrize("run", [run for run in PEFT_RUNS if settings_of(run)], ids=lambda run: run["name"])
def test_measured_by_others(run):
    """Reserved bytes of PEFT's authors on an L40S; LoRA-FA keeps A frozen, which saves next to nothing here."""
    predicted = training_memory("llama-3.2-3b", **settings_of(run))
    assert predicted.total == pytest.approx(run["reserved_max"], rel=0.05)


def test_all_published_runs_but_prefix_tuning_are_predicted():
    assert [run["type"] for run in PEFT_RUNS if not settings_of(run)] == ["PREFIX_TUNING"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("deepseek-v2-lite", {}),
        ("mixtral-8x7b", {"method": "qlora"}),
        ("mixtral-8x7b", {"precision": "autocast"}),
        ("mixtral-8x7b", {"method": "lora", "targets": ("gate_proj",)}),
    ],
)
def test_what_is_not_modelled_of_mixtures_of_experts_is_said(name, settings):
    with pytest.raises(ValueError, match="not modelled|targets"):
        training_memory(name, **settings)


def test_a_model_object_gives_its_shape():
    model, _ = small("qwen3")
    assert ModelShape.from_config(model.config).parameters == model.num_parameters()
