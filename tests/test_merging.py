"""Merges: equal to mergekit's recorded results and PEFT's functions, to formulas on paper, and strict about input.

tests/mergekit holds three small Llama state dicts (base, a, b), configurations and what mergekit 0.1.5 made of them.
"""

import copy
import math
from pathlib import Path

import pytest
import torch
from fixtures import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from course.lab.metering import measure
from course.lora import LoRAConfig, add_lora, lora_state_dict
from course.merging import (
    BLOCK,
    arc_weights,
    concat_lora,
    dare,
    depth_upscale,
    greedy_soup,
    linear,
    slerp,
    stack_layers,
    task_arithmetic,
    task_vector,
    ties,
    upcycle_moe,
)

RECORDED = Path(__file__).parent / "mergekit"


def load(name):
    return load_file(RECORDED / f"{name}.safetensors")


@pytest.fixture(scope="module")
def three():
    return load("base"), load("a"), load("b")


def vectors(seed, count=3, size=40, dtype=torch.float32):
    """A base and models of one tensor."""
    dice = torch.Generator().manual_seed(seed)
    return [{"w": torch.randn(size, generator=dice).to(dtype)} for _ in range(count + 1)]


def close(one, other, atol=1e-6):
    return one.keys() == other.keys() and all(torch.allclose(one[n], other[n], atol=atol, rtol=1e-5) for n in one)


MERGEKIT = {
    "linear": lambda base, a, b: linear([a, b], [0.3, 0.9]),
    "slerp": lambda base, a, b: slerp(a, b, 0.25),
    "ta": lambda base, a, b: task_arithmetic(base, [task_vector(a, base), task_vector(b, base)], [0.3, 0.9]),
    "ties": lambda base, a, b: ties(base, [a, b], [0.5, 0.4], [0.3, 0.9]),
    "ties_nn": lambda base, a, b: ties(base, [a, b], [0.5, 0.4], [0.3, 0.9], normalize=False),
    "pass": lambda base, a, b: stack_layers([a, b], [(0, 0, 2), (1, 1, 2)]),
}


@pytest.mark.parametrize("name", MERGEKIT)
def test_equal_to_what_mergekit_made(three, name):
    ours, theirs = MERGEKIT[name](*three), load(f"out_{name}")
    assert ours.keys() == theirs.keys()
    assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) < 2e-7


def test_ties_is_pefts_where_the_weights_are_1():
    base, *models = vectors(1)
    changes = [(model["w"] - base["w"]) for model in models]
    theirs = merge_utils.ties(changes, torch.ones(3), density=0.5)
    assert torch.allclose(ties(base, models, 0.5, 1)["w"], base["w"] + theirs, atol=1e-6)
    unequal = merge_utils.ties(changes, torch.tensor([0.3, 0.9, 0.6]), density=0.5)
    assert not torch.allclose(ties(base, models, 0.5, [0.3, 0.9, 0.6])["w"], base["w"] + unequal, atol=1e-2)


def test_ties_by_hand():
    base = {"w": torch.zeros(4)}
    models = [{"w": torch.tensor(w)} for w in ([3.0, -1.0, 0.5, 0.1], [1.0, 4.0, -0.2, -0.1], [-5.0, 1.0, 0.3, 0.0])]
    # trimmed to two each: (3, -1, 0, 0), (1, 4, 0, 0), (-5, 1, 0, 0); sums -1 and 4; those that agree: -5, and 4 and 1
    assert ties(base, models, 0.5, 1)["w"].tolist() == [-5.0, 2.5, 0.0, 0.0]
    assert ties(base, models, 0.5, 1, normalize=False)["w"].tolist() == [-5.0, 5.0, 0.0, 0.0]


def test_ties_of_density_1_trims_nothing_and_takes_an_empty_tensor():
    base, model = {"w": torch.zeros(3), "v": torch.zeros(0)}, {"w": torch.tensor([0.0, -2.0, 0.5]), "v": torch.zeros(0)}
    merged = ties(base, [model, model], 1, [1, 3])
    assert merged["w"].tolist() == [0.0, -2.0, 0.5] and merged["v"].shape == (0,)
    assert ties(base, [model], 0.5, 1)["v"].shape == (0,)


def test_dare_keeps_about_the_density_and_rescales():
    base, model = {"w": torch.zeros(200_000)}, {"w": torch.ones(200_000)}
    merged = dare(base, [model], 0.2, 1, seed=3)["w"]
    assert set(merged.unique().tolist()) == {0.0, 5.0}
    assert (merged != 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(merged, dare(base, [model], 0.2, 1, seed=3)["w"])
    assert not torch.equal(merged, dare(base, [model], 0.2, 1, seed=4)["w"])
    # another model's or tensor's mask is another one, and a tensor's does not depend on what stands beside it
    two = dare({"v": base["w"], "w": base["w"].clone()}, [{"v": model["w"], "w": model["w"].clone()}] * 2, 0.2, 1, 3)
    assert not torch.equal(two["v"], two["w"]) and set(two["w"].unique().tolist()) == {0.0, 5.0, 10.0}
    alone = dare({"w": base["w"]}, [{"w": model["w"]}] * 2, 0.2, 1, 3)
    assert torch.equal(alone["w"], two["w"])


def test_dare_of_density_1_is_task_arithmetic_and_its_ties_adds_what_agrees():
    base, *models = vectors(2)
    changes = [task_vector(model, base) for model in models]
    assert close(dare(base, models, 1, [0.3, 0.5, 0.9], 0), task_arithmetic(base, changes, [0.3, 0.5, 0.9]))
    elected = dare(base, models, 1, [0.3, 0.5, 0.9], 0, consensus="ties")
    assert close(elected, ties(base, models, 1, [0.3, 0.5, 0.9], normalize=False))
    random, scaled = dare(base, models, 0.5, 1, 0)["w"] - base["w"], 2 * sum(change["w"] for change in changes)
    subsets = [2 * sum(change["w"] * (which >> i & 1) for i, change in enumerate(changes)) for which in range(8)]
    assert torch.isclose(random, torch.stack(subsets), atol=1e-5).any(0).all() and not torch.allclose(random, scaled)


def test_slerp_stays_on_the_sphere_and_linear_does_not():
    a, b = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
    assert torch.allclose(slerp(a, b, 0.5)["w"], torch.tensor([1.0, 1.0]) / math.sqrt(2))
    assert linear([a, b], 1)["w"].norm().item() == pytest.approx(1 / math.sqrt(2))
    assert arc_weights(0.5, 1 / 3) == pytest.approx((math.sin(2 * math.pi / 9) / math.sin(math.pi / 3),
                                                     math.sin(math.pi / 9) / math.sin(math.pi / 3)))  # fmt: skip
    assert arc_weights(0.9999, 0.25) == (0.75, 0.25)
    assert torch.equal(slerp(a, a, 0.3)["w"], a["w"])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), t=st.floats(0, 1), count=st.integers(1, 4))
def test_what_holds_for_every_merge(seed, t, count):
    base, *models = vectors(seed, count)
    assert close(linear(models, 2.5), {"w": sum(m["w"] for m in models) / count})
    assert close(linear([models[0]] * 3, [1, t + 0.1, 3]), models[0])
    assert close(slerp(models[0], base, t), slerp(base, models[0], 1 - t), atol=1e-5)
    assert close(task_arithmetic(base, [task_vector(m, base) for m in models], 0), base)
    assert close(task_arithmetic(base, [task_vector(models[0], base)], 1), models[0])
    assert close(ties(base, models[:1], 1, 0.7), models[0])
    kept = ties(base, models[:1], 0.25, 1)["w"] - base["w"]
    largest = (models[0]["w"] - base["w"]).abs().topk(10).indices
    assert kept.count_nonzero() == 10 and kept[largest].all()
    assert close(ties(base, models, 0.5, 1), ties(base, models[::-1], 0.5, 1))
    assert [m["w"].tolist() for m in vectors(seed, count)] == [m["w"].tolist() for m in (base, *models)]  # inputs stay


def test_bf16_is_merged_in_fp32_and_rounded_once():
    base, *models = vectors(5, size=BLOCK + 77, dtype=torch.bfloat16)
    merged = linear(models, [1, 2, 3])["w"]
    exact = sum(w / 6 * model["w"].float() for w, model in zip([1, 2, 3], models, strict=True))
    assert merged.dtype == torch.bfloat16 and torch.allclose(merged.float(), exact, rtol=2**-8, atol=1e-7)
    assert (merged != exact.bfloat16()).float().mean() < 0.01  # between two of them, the last bit of FP32 decides
    vector = task_vector(models[0], base)
    assert vector["w"].dtype == torch.float32
    assert torch.allclose(task_arithmetic(base, [vector], 1)["w"], models[0]["w"], atol=1e-6, rtol=0)


def test_a_greedy_soup_takes_what_helps():
    models = [{"w": torch.tensor([value])} for value in (4.0, 0.0, 1.0, -1.5)]
    soup, chosen = greedy_soup(models, lambda model: -abs(model["w"].item()))  # the nearer to 0, the better
    assert chosen == [1] and soup["w"].item() == 0
    soup, chosen = greedy_soup(models, lambda model: -abs(model["w"].item() - 0.5))
    assert chosen == [1, 2] and soup["w"].item() == 0.5


def test_a_tied_embedding_stays_tied():
    model = tiny_model(tie_word_embeddings=True).state_dict()
    other = {name: tensor + 0.1 for name, tensor in model.items()}
    other["lm_head.weight"] = other["model.embed_tokens.weight"]
    merged = dare(model, [other], 0.5, 1, seed=0)
    assert merged["lm_head.weight"] is merged["model.embed_tokens.weight"]
    assert len({t.data_ptr() for t in merged.values()}) == len(merged) - 1


def test_peak_memory_is_inputs_result_and_a_little_of_one_tensor():
    base, a, b = ({name: torch.randn(20 * BLOCK) for name in "xyz"} for _ in range(3))
    one = base["x"].nbytes
    merges = {  # how many inputs, and the most of one tensor that is held besides
        "linear": (lambda: linear([a, b], 1), 2, 0.3),
        "slerp": (lambda: slerp(a, b, 0.3), 2, 0.3),
        "dare": (lambda: dare(base, [a, b], 0.5, 1, 0), 3, 0.6),
        "ties": (lambda: ties(base, [a, b], 0.5, 1), 3, 1.3),
    }
    for name, (merge, inputs, most) in merges.items():
        with measure() as meter:
            merge()  # its views count the inputs' storages
        assert meter.peak_bytes - (inputs + 1) * 3 * one < most * one, (name, meter.peak_bytes / one)


def wrong(**changes):
    return {"w": torch.zeros(4), "v": torch.zeros(2)} | changes


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ([wrong(), {"w": torch.zeros(4)}], r"models\[1\].*1 tensors: v: None"),
        ([wrong(), wrong(x=torch.zeros(1))], r"models\[1\].*x: \(1, torch.float32\), not None"),
        ([wrong(), wrong(w=torch.zeros(5))], r"models\[1\].*w: \(5,.*not \(4,"),
        ([wrong(), wrong(w=torch.zeros(4, dtype=torch.float16))], r"models\[1\].*float16.*float32"),
        ([wrong(), wrong(w=torch.zeros(4, dtype=torch.int64))], "floating-point"),
        ([wrong(), wrong(w=torch.full((4,), math.nan))], "w: is not finite"),
        ([wrong(), wrong(w=torch.full((4,), math.inf))], "w: is not finite"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(models, told):
    with pytest.raises(ValueError, match=told):
        linear(models, 1)


def test_a_sum_that_its_type_cannot_hold_is_refused():
    big = {"w": torch.full((3,), 6e4, dtype=torch.float16)}
    with pytest.raises(ValueError, match="not finite"):
        task_arithmetic(big, [task_vector(big, {"w": torch.zeros(3, dtype=torch.float16)})], 1)


@pytest.mark.parametrize(
    ("merge", "told"),
    [
        (lambda base, a, b: linear([a, b], [1]), "weights=.*2 finite numbers"),
        (lambda base, a, b: linear([a, b], [1, math.nan]), "weights="),
        (lambda base, a, b: linear([a, b], [1, -1]), "their sum is zero"),
        (lambda base, a, b: slerp(a, b, 1.5), "t=1.5"),
        (lambda base, a, b: ties(base, [a, b], 0, 1), "density=0"),
        (lambda base, a, b: ties(base, [a, b], [0.5, 1.2], 1), "density="),
        (lambda base, a, b: dare(base, [a, b], 0.5, 1, 0, "vote"), "consensus='vote'"),
        (lambda base, a, b: stack_layers([a, b], [(0, 0, 3)]), r"slices=.*models of \[2, 2\] layers"),
        (lambda base, a, b: stack_layers([a, b], [(2, 0, 1)]), "slices="),
        (lambda base, a, b: stack_layers([a], []), "slices="),
        (lambda base, a, b: depth_upscale(a, 2), "slices="),
        (lambda base, a, b: upcycle_moe(a, 2, 3), "experts, top_k: got 2 and 3"),
        (lambda base, a, b: upcycle_moe(a, [a, {}], 1), r"experts\[1\]"),
        (lambda base, a, b: task_arithmetic(base, [{"x": torch.zeros(1)}], 1), r"vectors\[0\]: differs from base"),
    ],
)
def test_settings_that_make_no_sense_are_refused(three, merge, told):
    with pytest.raises(ValueError, match=told):
        merge(*three)


# Layers, experts, adapters: what chapter 12 builds on


def test_a_stack_of_one_model_is_the_model_and_loads():
    model = tiny_model()
    state = model.state_dict()
    same = stack_layers([state], [(0, 0, 1), (0, 1, 2)])
    assert same.keys() == state.keys() and all(same[name] is state[name] for name in state)
    deeper = LlamaForCausalLM(LlamaConfig(**model.config.to_dict() | {"num_hidden_layers": 3}))
    deeper.load_state_dict(stack_layers([state], [(0, 0, 2), (0, 1, 2)]))
    twice = copy.deepcopy(model)
    twice.model.layers.append(twice.model.layers[1])
    ids = torch.arange(9)[None]
    with torch.no_grad():
        there = model.model.embed_tokens(ids)
        positions = model.model.rotary_emb(there, torch.arange(9)[None])
        for layer in twice.model.layers:
            there = layer(there, position_embeddings=positions)
        wanted = model.lm_head(model.model.norm(there))
        assert torch.allclose(deeper(ids).logits, wanted, atol=1e-5)


def test_a_stack_takes_the_embedding_first_and_norm_and_head_last():
    a, b = tiny_model(1).state_dict(), tiny_model(2).state_dict()
    stacked = stack_layers([a, b], [(0, 0, 1), (1, 1, 2)])
    assert stacked["model.embed_tokens.weight"] is a["model.embed_tokens.weight"]
    assert stacked["model.norm.weight"] is b["model.norm.weight"] and stacked["lm_head.weight"] is b["lm_head.weight"]
    a, b = (tiny_model(seed, tie_word_embeddings=True).state_dict() for seed in (1, 2))
    stacked = stack_layers([a, b], [(0, 0, 1), (1, 1, 2)])
    assert stacked["lm_head.weight"].data_ptr() == a["model.embed_tokens.weight"].data_ptr()


def test_solar_has_48_layers_of_32():
    state = {"model.embed_tokens.weight": torch.zeros(1), "model.norm.weight": torch.ones(1)}
    state |= {f"model.layers.{i}.mlp.up_proj.weight": torch.full((1,), float(i)) for i in range(32)}
    tall = depth_upscale(state, 8)
    order = [int(tall[f"model.layers.{i}.mlp.up_proj.weight"].item()) for i in range(48)]
    assert len(tall) == 50 and order == [*range(24), *range(8, 32)]


@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (3, 1), (2, 2)])
def test_experts_that_are_copies_answer_as_the_dense_model(experts, top_k, tmp_path):
    model = tiny_model()
    shape = {key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "architectures")}
    config = MixtralConfig(**shape | {"num_local_experts": experts, "num_experts_per_tok": top_k})
    moe = MixtralForCausalLM(config).eval()
    moe.load_state_dict(upcycle_moe(model.state_dict(), experts, top_k))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(moe(ids).logits, model(ids).logits, atol=1e-5)
        moe.save_pretrained(tmp_path)
        again = MixtralForCausalLM.from_pretrained(tmp_path)
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-5)
        other = upcycle_moe(model.state_dict(), [tiny_model(seed).state_dict() for seed in range(experts)], top_k)
        moe.load_state_dict(other)  # different experts: the control
        assert not torch.allclose(moe(ids).logits, model(ids).logits, atol=1e-3)


def adapted(model, rank, alpha, seed):
    torch.manual_seed(seed)
    config = LoRAConfig(rank, alpha)
    state = {name: torch.randn_like(p) for name, p in lora_state_dict(add_lora(copy.deepcopy(model), config)).items()}
    return config, state


def product(adapter, layer):
    config, state = adapter
    return config.scaling * state[f"{layer}.lora_B"] @ state[f"{layer}.lora_A"]


def test_concatenated_adapters_are_the_weighted_sum_and_pefts_cat():
    model, layer = tiny_model(), "model.layers.1.mlp.down_proj"
    pair = [adapted(model, 2, 8, 0), adapted(model, 3, 3, 1)]
    joined = concat_lora(pair, [0.7, -0.3])
    assert joined[0].rank == joined[0].alpha == 5
    wanted = 0.7 * product(pair[0], layer) - 0.3 * product(pair[1], layer)
    assert torch.allclose(product(joined, layer), wanted, atol=1e-5)

    peft = None
    for name, (config, state) in zip("ab", pair, strict=True):
        theirs = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        if peft is None:
            peft = get_peft_model(copy.deepcopy(model), theirs, adapter_name=name)
        else:
            peft.add_adapter(name, theirs)
        for key, tensor in state.items():
            module, _, part = key.rpartition(".")
            peft.get_submodule(f"base_model.model.{module}")._modules[part][name].weight.data.copy_(tensor)
    peft.add_weighted_adapter(["a", "b"], [0.7, -0.3], "cat", combination_type="cat")
    place = peft.get_submodule(f"base_model.model.{layer}")
    assert torch.allclose(place.get_delta_weight("cat"), wanted, atol=1e-5)
    assert torch.allclose(place.lora_A["cat"].weight, joined[1][f"{layer}.lora_A"], atol=1e-6)
    assert torch.allclose(place.lora_B["cat"].weight, joined[1][f"{layer}.lora_B"])


def test_the_product_of_averages_is_not_the_average_of_products():
    model, layer = tiny_model(), "model.layers.0.mlp.up_proj"
    pair = [adapted(model, 2, 4, 0), adapted(model, 2, 4, 1)]
    averaged = pair[0][0], linear([state for _, state in pair], 1)
    wanted = product(pair[0], layer) / 2 + product(pair[1], layer) / 2
    assert torch.allclose(product(concat_lora(pair, 0.5), layer), wanted, atol=1e-5)
    assert (product(averaged, layer) - wanted).norm() > 0.3 * wanted.norm()
    with pytest.raises(ValueError, match="same layers"):
        concat_lora([pair[0], (pair[1][0], {"x.lora_A": torch.zeros(2, 3)})], 1)
