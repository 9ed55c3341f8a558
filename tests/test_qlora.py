"""QLoRA: the layer's gradients and bytes, against the naive layer and bitsandbytes; merges; and what is refused."""

import copy
import math
import statistics

import bitsandbytes as bnb
import pytest
import torch
from fixtures import equal, tiny_model, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from course.lora import LoRAConfig, LoRALinear, QLoRALinear, add_lora, lora_state_dict, merge_lora, unmerge_lora
from course.quantization import (
    NF4_CODE,
    SCHEMES,
    Int8Linear,
    QuantizedLinear,
    quantize_absmax,
    quantize_model,
    quantize_nf4,
)

IDS = torch.randint(2, 300, (3, 11), generator=torch.Generator().manual_seed(3))
NF4 = {"quant_type": "nf4", "compress_statistics": True}  # with double quantization


@torch.no_grad()
def filled(model):
    dice = torch.Generator().manual_seed(0)
    for p in lora_state_dict(model).values():
        p.copy_(torch.randn(p.shape, generator=dice) / 5)
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def four_bit(linear):
    """The layer as bitsandbytes quantizes it."""
    layer = bnb.nn.Linear4bit(linear.in_features, linear.out_features, False, torch.float32, **NF4)
    layer.weight = bnb.nn.Params4bit(linear.weight.detach().clone(), requires_grad=False, **NF4)
    return layer.to("cpu")


def pair(scheme, dtype=torch.float32, size=(128, 64), bias=True):
    """The same codes, A and B in our layer, and in one that lets autograd keep the restored weight."""
    torch.manual_seed(1)
    linear = nn.Linear(*size, bias=bias).to(dtype).requires_grad_(False)
    base = QuantizedLinear(SCHEMES[scheme](linear.weight), linear.bias)
    layers = [kind(base, LoRAConfig(4, 8)) for kind in (QLoRALinear, LoRALinear)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer in layers:
        layer.lora_B.data.copy_(torch.linspace(-1, 1, layer.lora_B.numel()).view_as(layer.lora_B))
    return layers


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_the_naive_layer(scheme, dtype):
    found = []
    for layer in pair(scheme, dtype):
        x = torch.linspace(-2, 2, 5 * 7 * 128).view(5, 7, 128).to(dtype).requires_grad_()
        y = layer(x)
        (y.float() ** 2).sum().backward()
        found.append((y, x.grad, layer.lora_A.grad, layer.lora_B.grad))
    for ours, naive in zip(*found, strict=True):  # in BF16 the sums may be rounded in another order
        assert torch.equal(ours, naive) or dtype == torch.bfloat16 and (ours - naive).norm() < 0.01 * naive.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_input_of_another_dtype_than_the_weight_had_is_computed_in_its_own(dtype):
    layer = pair("nf4", torch.bfloat16)[0]
    y = layer(torch.ones(2, 128, dtype=dtype, requires_grad=True))
    y.float().sum().backward()
    assert y.isfinite().all() and layer.lora_B.grad.dtype == torch.float32


def kept_bytes(layer):
    """Bytes that autograd keeps of a forward pass, each storage once, without the parameters'."""
    own, kept = {p.untyped_storage()._cdata for p in layer.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    x = torch.randn(2, 3, layer.base.in_features, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    return sum(kept.values())


def test_autograd_does_not_keep_the_restored_weight():
    ours, naive = map(kept_bytes, pair("nf4"))
    assert naive - ours == 4 * 128 * 64
    assert ours == 4 * 2 * 3 * (128 + 4)  # the input and what A makes of it


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_codes_and_scales_are_bitsandbytes_whatever_the_size(rows, columns, seed):
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))  # the last block is mostly shorter
    codes, state = bnb.functional.quantize_4bit(w, quant_type="nf4", blocksize=64)
    ours = quantize_nf4(w)
    assert torch.equal(codes.flatten(), ours.codes) and torch.equal(state.absmax, ours.scale)
    # as one row: on processors with AVX-512, bitsandbytes 0.50.2 restores a row wrongly that begins within a block
    state.shape = w.flatten().shape
    assert torch.equal(bnb.functional.dequantize_4bit(codes, state).flatten(), ours.dequantize().flatten())


@pytest.mark.parametrize("size", [(5, 64), (3, 128), (40, 192)])
def test_restored_matrices_are_bitsandbytes(size):
    w = torch.randn(*size)
    codes, state = bnb.functional.quantize_4bit(w, quant_type="nf4", blocksize=64)
    assert torch.equal(bnb.functional.dequantize_4bit(codes, state), quantize_nf4(w).dequantize())


def test_a_training_step_is_that_of_bitsandbytes_and_peft():
    sizes = {"hidden_size": 64, "intermediate_size": 128}  # rows of whole blocks, see above
    ours = add_lora(quantize_model(tiny_model(**sizes), "nf4_double"), LoRAConfig(4, 8))
    theirs = tiny_model(**sizes)
    for name, module in list(theirs.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            parent, _, child = name.rpartition(".")
            setattr(theirs.get_submodule(parent), child, four_bit(module))
    theirs.is_loaded_in_4bit = True  # as transformers marks a model that it has quantized
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=8, target_modules=targets)).train()
    named = dict(theirs.named_parameters())
    twins = {
        f"base_model.model.{name}.default.weight": p for name, p in filled(ours).named_parameters() if p.requires_grad
    }
    for name, p in twins.items():
        named[name].data.copy_(p.data)
    for model in (ours, theirs):
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-4)
    for name, p in twins.items():
        assert torch.allclose(p.grad, named[name].grad, rtol=1e-3, atol=1e-5), name


def test_our_adapter_over_bitsandbytes_layer_is_our_adapter_over_ours():
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 32, bias=False), torch.randn(5, 64)
    model = add_lora(nn.ModuleDict({"up": four_bit(linear)}), LoRAConfig(4, 8))
    ours = add_lora(quantize_model(nn.ModuleDict({"up": linear}), "nf4_double"), LoRAConfig(4, 8))
    ours.up.lora_A.data.copy_(model.up.lora_A)
    assert torch.allclose(filled(model).up(x), filled(ours).up(x), atol=1e-5)
    with pytest.raises(ValueError, match="up: Linear4bit stores codes; put a linear layer of the restored weight"):
        merge_lora(model, unload=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_it_is_an_ordinary_model_in_the_dtype_it_had(dtype):
    model = filled(add_lora(quantize_model(tiny_model().to(dtype), "nf4_double"), LoRAConfig(4, 8)))
    apart, names = logits(model), weights(tiny_model()).keys()
    layer = model.model.layers[0].mlp.up_proj
    expected = (layer.base.quantized.dequantize(torch.float32) + layer.delta()).to(dtype)
    merge_lora(model, unload=True)
    merged = model.model.layers[0].mlp.up_proj
    assert type(merged) is nn.Linear and torch.equal(merged.weight, expected)
    assert (merged.in_features, merged.out_features) == (32, 64)
    assert weights(model).keys() == names
    close = 1e-4 if dtype == torch.float32 else 0.02
    assert (logits(model) - apart).float().norm() < close * apart.float().norm()
    quantize_model(model, "nf4")  # and it can be quantized again
    with pytest.raises(ValueError, match="has no LoRA layers"):
        merge_lora(model)


def test_a_shared_layer_is_merged_once():
    model = tiny_model()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    model = filled(add_lora(quantize_model(model, "nf4"), LoRAConfig(4, 8)))
    apart = logits(model)
    merge_lora(model, unload=True)
    first, second = model.model.layers
    assert first.mlp.up_proj is second.mlp.up_proj and torch.allclose(logits(model), apart, atol=1e-4)


def test_codes_hold_no_sum_and_nothing_has_changed():
    model = filled(add_lora(quantize_model(tiny_model(), "nf4"), LoRAConfig(4, 8)))
    before = weights(model)
    with pytest.raises(
        ValueError, match=r"q_proj: QuantizedLinear stores codes; merge_lora\(model, unload=True\) puts"
    ):
        merge_lora(model)
    with pytest.raises(ValueError, match="q_proj: is not merged"):
        unmerge_lora(model)
    assert equal(weights(model), before)


def test_quantized_twice_is_refused():
    model = quantize_model(tiny_model(), "nf4")
    codes = model.model.layers[0].mlp.up_proj.quantized.codes.clone()
    with pytest.raises(ValueError, match="model: is quantized already; load it again"):
        quantize_model(model, "int8")
    assert torch.equal(model.model.layers[0].mlp.up_proj.quantized.codes, codes)


def test_layers_left_alone_can_be_quantized_later():
    model = quantize_model(tiny_model(), "nf4", skip=("lm_head", "layers.1"))
    quantize_model(model, quantize_absmax)
    kinds = {len(layer.mlp.up_proj.quantized.levels) for layer in model.model.layers}
    assert kinds == {16, 256}


def test_a_base_that_no_adapter_can_learn_over_is_refused_and_the_model_is_as_it_was():
    whole_numbers = quantize_model(tiny_model(), quantize_absmax, layer=Int8Linear)
    tiny_floats = tiny_model()
    tiny_floats.model.layers[0].mlp.to(torch.float8_e4m3fn)
    for model, told in (
        (whole_numbers, "q_proj: no gradient passes Int8Linear; quantize_model"),
        (tiny_floats, "gate_proj: has weights in torch.float8_e4m3fn, which is not computed in; move"),
    ):
        trainable = [p.requires_grad for p in model.parameters()]
        with pytest.raises(ValueError, match=told):
            add_lora(model, LoRAConfig(4, 8))
        assert [p.requires_grad for p in model.parameters()] == trainable
        assert not any(isinstance(module, LoRALinear) for module in model.modules())


def test_the_levels_follow_from_the_normal_distribution():
    """The derivation of chapter 10, in full precision."""
    normal = statistics.NormalDist()
    furthest = (1 - 1 / 32 + 1 - 1 / 30) / 2
    up = [normal.inv_cdf(0.5 + (furthest - 0.5) * i / 8) for i in range(9)]
    down = [-normal.inv_cdf(0.5 + (furthest - 0.5) * i / 7) for i in range(1, 8)]
    levels = sorted(up + down)
    assert all(
        math.isclose(ours / up[-1], theirs, abs_tol=1e-6)
        for ours, theirs in zip(levels, NF4_CODE.tolist(), strict=True)
    )


def test_a_copy_of_a_qlora_model_is_its_own():
    model = filled(add_lora(quantize_model(tiny_model(), "nf4_double"), LoRAConfig(4, 8)))
    other = copy.deepcopy(model)
    lora_state_dict(other)["model.layers.0.mlp.up_proj.lora_B"].zero_()
    assert not torch.equal(logits(other), logits(model))
