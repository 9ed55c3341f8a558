"""LoRA against PEFT at equal weights: values, outputs, gradients, merges, files; and everything it refuses."""

import copy
import json
import math

import pytest
import torch
from fixtures import equal, tiny_model, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from course.lab.subspace import RandomSubspace, add_random_subspace
from course.lora import (
    PEFT_PREFIX,
    LoRAConfig,
    LoRALinear,
    add_lora,
    load_lora,
    lora_state_dict,
    merge_lora,
    read_lora,
    save_lora,
    unmerge_lora,
)
from course.quantization import quantize_model, quantize_nf4

IDS = torch.randint(2, 300, (3, 11), generator=torch.Generator().manual_seed(3))
SMALL = {"vocab_size": 300, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}


def gpt2():
    """Its linear layers are transformers' Conv1D, whose weights are (in, out)."""
    torch.manual_seed(1)
    quiet = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**SMALL, **quiet, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


def qwen2():
    """Its q, k and v have biases, and its head is tied to the embedding."""
    torch.manual_seed(2)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Qwen2ForCausalLM(Qwen2Config(**SMALL, **shape, num_key_value_heads=2, tie_word_embeddings=True)).eval()


def bf16():
    return tiny_model().to(torch.bfloat16)


MODELS = {
    "llama": (tiny_model, ("q_proj", "v_proj")),
    "llama, all": (tiny_model, "all-linear"),
    "llama, parts of names": (tiny_model, ("self_attn.o_proj", "0.mlp.up_proj")),
    "gpt2": (gpt2, ("c_attn", "c_proj")),
    "qwen2": (qwen2, "all-linear"),
    "bf16 base": (bf16, "all-linear"),
}
every_model = pytest.mark.parametrize("name", MODELS)


def pair(name, rank=4, alpha=6):
    """Our model and PEFT's, with the same base and the same random A and B."""
    make, targets = MODELS[name]
    base = make()
    listed = targets if isinstance(targets, str) else list(targets)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=listed, task_type="CAUSAL_LM")
    theirs = get_peft_model(copy.deepcopy(base), settings)
    return filled(add_lora(base, LoRAConfig(rank, alpha, targets))), take_over(theirs, base)


@torch.no_grad()
def filled(model, seed=0):
    dice = torch.Generator().manual_seed(seed)
    for p in lora_state_dict(model).values():
        p.copy_(torch.randn(p.shape, generator=dice) / 5)
    return model


@torch.no_grad()
def take_over(theirs, ours):
    values, mine = get_peft_model_state_dict(theirs), lora_state_dict(ours)
    assert values.keys() == {f"{PEFT_PREFIX}{name}.weight" for name in mine}
    for name, p in mine.items():
        assert values[f"{PEFT_PREFIX}{name}.weight"].dtype == p.dtype
        values[f"{PEFT_PREFIX}{name}.weight"].copy_(p)
    return theirs


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def near(mine, other):
    """Equal up to FP32's rounding; in BF16 a sum now and then falls on the other side of a tie, and goes on so."""
    if mine.dtype == torch.bfloat16:
        return (mine - other).float().norm() < 0.01 * other.float().norm()
    return torch.allclose(mine, other, rtol=1e-4, atol=1e-5)


@every_model
def test_the_same_parameters_as_peft_and_the_same_outputs(name):
    ours, theirs = pair(name)
    trained = {n for n, p in ours.named_parameters() if p.requires_grad}
    assert trained and trained == set(lora_state_dict(ours))
    assert near(logits(ours), logits(theirs))


@every_model
def test_the_same_gradients_as_peft(name):
    ours, theirs = pair(name)
    for model in (ours, theirs):
        model(IDS, labels=IDS).loss.backward()
    gradients = {n.replace(".default", ""): p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    mine = {f"{PEFT_PREFIX}{n}.weight": p.grad for n, p in ours.named_parameters() if p.grad is not None}
    assert mine.keys() == gradients.keys()
    for n, gradient in mine.items():
        if name == "bf16 base":
            assert (gradient - gradients[n]).norm() < 0.02 * gradients[n].norm(), n
        else:
            assert torch.allclose(gradient, gradients[n], rtol=1e-4, atol=1e-6), n


@every_model
def test_the_same_merge_as_peft(name):
    ours, theirs = pair(name)
    merged, expected = merge_lora(ours, unload=True), theirs.merge_and_unload()
    for (n, mine), other in zip(merged.named_parameters(), expected.parameters(), strict=True):
        assert mine.dtype == other.dtype
        # in BF16 we round once; PEFT casts its delta as well, and may be one step of 2⁻⁷ off
        close = 2**-7 if mine.dtype == torch.bfloat16 else 1e-6
        assert torch.allclose(mine.float(), other.float(), rtol=close, atol=close / 10), n


def test_a_start_is_pefts_start():
    torch.manual_seed(5)
    ours = add_lora(tiny_model(), LoRAConfig(4, 8, ("q_proj",)))
    for name, p in lora_state_dict(ours).items():
        assert p.count_nonzero() == (p.numel() if name.endswith("A") else 0)
        if name.endswith("A"):
            assert p.shape == (4, 32) and 0.8 / math.sqrt(32) < p.abs().max() <= 1 / math.sqrt(32)


@every_model
def test_a_new_adapter_changes_nothing(name):
    make, targets = MODELS[name]
    model = make()
    before = logits(model)
    assert torch.equal(before, logits(add_lora(model, LoRAConfig(4, 8, targets))))


def test_the_scaling_is_alpha_over_rank():
    model = filled(add_lora(tiny_model(), LoRAConfig(4, 6, ("q_proj",))))
    layer = model.model.layers[0].self_attn.q_proj
    assert torch.allclose(layer.delta(), 1.5 * layer.lora_B @ layer.lora_A)
    assert LoRAConfig(8, 16).scaling == 2


def test_dropout_acts_on_the_adapter_in_training_alone():
    base = tiny_model()
    model = filled(add_lora(copy.deepcopy(base), LoRAConfig(4, 8, dropout=0.5)))
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))
    for p in lora_state_dict(model).values():
        p.zero_()
    assert torch.equal(logits(model), logits(base))


def test_unmerging_restores_and_training_goes_on():
    model = filled(add_lora(tiny_model(), LoRAConfig(4, 8)))
    before, apart = weights(model), logits(model)
    merge_lora(model)
    assert torch.allclose(logits(model), apart, atol=1e-5)
    unmerge_lora(model)
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name], rtol=0, atol=1e-6), name
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


def test_a_merged_model_can_still_be_unloaded():
    model = filled(add_lora(tiny_model(), LoRAConfig(4, 8)))
    merged = logits(merge_lora(model))
    assert torch.equal(logits(merge_lora(model, unload=True)), merged)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert weights(model).keys() == weights(tiny_model()).keys()


@st.composite
def layers(draw, dtype):
    size_in, size_out, rank = (draw(st.integers(1, 24)) for _ in range(3))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    base = nn.Linear(size_in, size_out, bias=draw(st.booleans()))
    base.weight.data *= 10 ** draw(st.floats(-2, 2))
    layer = LoRALinear(base.to(dtype), LoRAConfig(rank, draw(st.floats(0.01, 100)), ("x",)))
    layer.lora_B.data.normal_()
    return layer


@settings(deadline=None, max_examples=60)
@given(layers(torch.float32), st.integers(1, 5))
def test_a_merge_is_exact_up_to_the_rounding_of_its_sums(layer, rows):
    x = torch.randn(rows, layer.base.in_features)
    apart, size = layer(x), x.abs() @ (layer.base.weight.abs() + layer.delta().abs()).T + 1
    layer.add_to_weight(1)
    assert ((layer(x) - apart).abs() <= 1e-4 * size + 1e-5 * (x.abs().sum() * layer.delta().abs().max())).all()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2.0**-24), (torch.bfloat16, 2.0**-8)])
def test_unmerging_comes_back_up_to_two_roundings(dtype, rounding):
    @settings(deadline=None, max_examples=60)
    @given(layers(dtype))
    def check(layer):
        before, delta = layer.base.weight.float().clone(), layer.delta()
        layer.add_to_weight(1)
        layer.add_to_weight(-1)
        error = (layer.base.weight.float() - before).abs()
        assert (error <= 2.1 * rounding * (before.abs() + delta.abs()) + 1e-30).all()

    check()


def shared():
    """A model whose two blocks have one MLP."""
    model = tiny_model()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    return model


def test_pefts_files_of_a_layer_with_two_names_are_ours(tmp_path):
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["up_proj", "down_proj"], task_type="CAUSAL_LM")
    theirs = get_peft_model(shared(), settings)
    ours = filled(add_lora(shared(), LoRAConfig(4, 8, ("up_proj", "down_proj"))))
    take_over(theirs, ours)
    theirs.save_pretrained(tmp_path)
    assert torch.equal(logits(load_lora(shared(), tmp_path)), logits(ours))
    again = PeftModel.from_pretrained(shared(), save_lora(ours, tmp_path / "ours"))
    assert near(logits(again), logits(ours))


def test_a_layer_with_two_names_stays_one_layer(tmp_path):
    def shared_twice():
        model = shared()
        model.model.layers[1].self_attn.q_proj = model.model.layers[0].self_attn.q_proj
        return model

    model = filled(add_lora(shared_twice(), LoRAConfig(4, 8)))
    first, second = model.model.layers
    assert first.self_attn.q_proj is second.self_attn.q_proj and first.mlp.up_proj is second.mlp.up_proj
    assert isinstance(first.mlp.up_proj, LoRALinear) and isinstance(first.mlp.up_proj.base, nn.Linear)
    apart = logits(model)
    again = load_lora(shared_twice(), save_lora(model, tmp_path))
    assert torch.equal(logits(again), apart)
    merged = logits(merge_lora(model))
    assert torch.allclose(merged, apart, atol=1e-5)  # merged once, not once a name
    assert torch.allclose(logits(unmerge_lora(model)), apart, atol=1e-5)
    assert torch.equal(logits(merge_lora(model, unload=True)), merged)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())


def test_a_quantized_base_learns_and_refuses_a_merge():
    base = quantize_model(tiny_model(), quantize_nf4)
    before = logits(base)
    model = add_lora(base, LoRAConfig(4, 8))
    assert torch.equal(logits(model), before)
    filled(model)(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match=r"q_proj: QuantizedLinear stores codes"):
        merge_lora(model)
    assert torch.isfinite(logits(model)).all()


@every_model
def test_our_files_are_read_by_peft(name, tmp_path):
    make, targets = MODELS[name]
    ours, _ = pair(name)
    theirs = PeftModel.from_pretrained(make(), save_lora(ours, tmp_path, base_name="base"))
    assert near(logits(theirs), logits(ours))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "base" and saved["fan_in_fan_out"] is (name == "gpt2")


@every_model
def test_pefts_files_are_read_by_us(name, tmp_path):
    _, theirs = pair(name)
    theirs.save_pretrained(tmp_path)
    ours = load_lora(MODELS[name][0](), tmp_path)
    assert near(logits(ours), logits(theirs))


def test_a_saved_adapter_takes_the_place_of_the_one_that_is_there(tmp_path):
    first, second = (filled(add_lora(tiny_model(), LoRAConfig(4, 8)), seed) for seed in (1, 2))
    save_lora(second, tmp_path)
    assert torch.equal(logits(load_lora(first, tmp_path)), logits(second))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 2.0}, "rank=2.0"),
        ({"alpha": 0}, "alpha=0"),
        ({"alpha": math.inf}, "alpha=inf"),
        ({"alpha": math.nan}, "alpha=nan"),
        ({"dropout": 1}, "dropout=1"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"target_modules": "q_proj"}, "target_modules='q_proj'; 'all-linear' or a list"),
        ({"target_modules": ()}, r"target_modules=\(\)"),
    ],
)
def test_a_config_names_what_it_does_not_take(settings, told):
    with pytest.raises(ValueError, match=told):
        LoRAConfig(**{"rank": 4, "alpha": 8} | settings)


def test_what_cannot_be_done_is_refused_and_nothing_has_changed():
    model = tiny_model()
    before = weights(model)
    for refused in (merge_lora, unmerge_lora, lora_state_dict):
        with pytest.raises(ValueError, match="model: has no LoRA layers"):
            refused(model)
    with pytest.raises(ValueError, match=r"no linear layer is called \['qproj'\]; there are .*q_proj"):
        add_lora(model, LoRAConfig(4, 8, ("qproj", "v_proj")))
    assert equal(weights(model), before) and all(p.requires_grad for p in model.parameters())
    for nothing in (nn.Linear(3, 3), nn.Sequential(nn.ReLU())):
        with pytest.raises(ValueError, match="model: one that has linear layers inside"):
            add_lora(nothing, LoRAConfig(4, 8))
    add_lora(model, LoRAConfig(4, 8))
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(model, LoRAConfig(4, 8))
    with pytest.raises(ValueError, match=r"q_proj: is not merged"):
        unmerge_lora(model)
    merge_lora(model)
    with pytest.raises(ValueError, match=r"q_proj: is merged already; a second merge"):
        merge_lora(model)


def test_the_head_has_no_adapter_unless_it_is_named():
    assert not any("lm_head" in name for name in lora_state_dict(add_lora(tiny_model(), LoRAConfig(4, 8))))
    assert any("lm_head" in name for name in lora_state_dict(add_lora(tiny_model(), LoRAConfig(4, 8, ("lm_head",)))))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"bias": "all"}, "bias='all'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"use_rslora": True}, "use_rslora=True"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_a_file_that_is_more_than_plain_lora_is_refused(tmp_path, changed, told):
    save_lora(add_lora(tiny_model(), LoRAConfig(4, 8)), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ValueError, match=told):
        read_lora(tmp_path)


def test_a_file_that_does_not_fit_is_refused_and_the_model_is_as_it_was(tmp_path):
    save_lora(filled(add_lora(tiny_model(), LoRAConfig(4, 8))), tmp_path)
    with pytest.raises(FileNotFoundError):
        load_lora(tiny_model(), tmp_path / "nothing")
    for other in ({"hidden_size": 48}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}):
        model = tiny_model(**other)
        with pytest.raises(ValueError, match="does not fit the model in model.layers"):
            load_lora(model, tmp_path)
        assert weights(model).keys() == weights(tiny_model(**other)).keys()
    scaled = filled(add_lora(tiny_model(), LoRAConfig(4, 4)), seed=9)
    merged = merge_lora(filled(add_lora(tiny_model(), LoRAConfig(4, 8)), seed=9))
    for model in (scaled, merged):
        before = weights(model)
        with pytest.raises(ValueError, match="alpha / rank is 2; the adapter there must have the same and not be merg"):
            load_lora(model, tmp_path)
        assert equal(weights(model), before)


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ((2, 4), "model.layers.0.mlp.down_proj.lora_A"),  # another rank with the same alpha / rank
        ((1, 2), "model.layers.0.mlp.down_proj.lora_A"),  # which would fit by broadcasting
        ((4, 8, ("q_proj",)), "model.layers.0.mlp.down_proj.lora_A"),  # fewer matrices
    ],
)
def test_a_swap_for_an_adapter_of_another_shape_is_refused_and_the_model_is_as_it_was(tmp_path, settings, wrong):
    model = filled(add_lora(tiny_model(), LoRAConfig(4, 8)))
    before = weights(model)
    save_lora(filled(add_lora(tiny_model(), LoRAConfig(*settings)), seed=1), tmp_path)
    with pytest.raises(ValueError, match=f"does not fit the model in {wrong}"):
        load_lora(model, tmp_path)
    assert equal(weights(model), before)
    narrow = add_lora(tiny_model(), LoRAConfig(4, 8, ("q_proj",)))
    save_lora(model, tmp_path)
    with pytest.raises(ValueError, match="does not fit the model"):  # more matrices than there are
        load_lora(narrow, tmp_path)


def test_a_random_subspace_begins_at_the_base_and_moves_all_linear_weights():
    base = tiny_model()
    model = add_random_subspace(copy.deepcopy(base), 50, seed=4)
    (z,) = {p for p in model.parameters() if p.requires_grad}
    assert z.shape == (50,) and torch.equal(logits(model), logits(base))
    model(IDS, labels=IDS).loss.backward()
    assert (z.grad != 0).all()
    z.data.normal_(generator=torch.Generator().manual_seed(0))
    moved, total = 0.0, 0
    for name, layer in base.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            change = model.get_submodule(name).weight - layer.weight
            assert (change != 0).float().mean() > 0.99
            moved, total = moved + change.square().sum().item(), total + change.numel()
    assert moved == pytest.approx(z.square().sum().item(), rel=0.1)  # P keeps lengths, nearly
    assert torch.equal(model.lm_head.weight, base.lm_head.weight)


def test_a_random_subspace_has_orthogonal_columns_and_a_seed():
    def columns(seed):
        z, dice = nn.Parameter(torch.zeros(6)), torch.Generator().manual_seed(seed)
        shift = RandomSubspace(z, (9, 7), 0.5, dice)
        return torch.autograd.functional.jacobian(
            lambda z: torch.func.functional_call(shift, {"z": z}, torch.zeros(9, 7)).flatten(), torch.zeros(6)
        )

    p = columns(1)  # (63, 6)
    assert torch.equal(p.T @ p, torch.diag((p.T @ p).diag())) and set(p.abs().unique().tolist()) == {0.0, 0.5}
    assert torch.equal(p, columns(1)) and not torch.equal(p, columns(2))


@pytest.mark.parametrize("dimension", [0, -1, 10**9])
def test_a_subspace_of_an_impossible_dimension_is_refused(dimension):
    model = tiny_model()
    with pytest.raises(ValueError, match=f"dimension={dimension}; from 1 to "):
        add_random_subspace(model, dimension)
    assert all(p.requires_grad for p in model.parameters())
