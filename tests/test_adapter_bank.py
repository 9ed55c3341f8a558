"""Many adapters in one batch: each row as if its adapter were alone, and as PEFT's mixed batches have it."""

import pytest
import torch
from fixtures import shop_examples, tiny_model, tiny_tokenizer
from peft import PeftModel
from torch import nn

from course.lora import (
    AdapterBank,
    LoRAConfig,
    adapter_rows,
    add_adapter_bank,
    add_lora,
    load_lora,
    lora_state_dict,
    merge_lora,
    read_lora,
    save_lora,
)  # fmt: skip
from course.quantization import quantize_model

CONFIGS = {  # other ranks, other scalings, other layers
    "wide": LoRAConfig(rank=8, alpha=16),
    "thin": LoRAConfig(rank=2, alpha=1, target_modules=("q_proj", "v_proj")),
    "one": LoRAConfig(rank=1, alpha=4, target_modules=("down_proj", "v_proj")),
}


def with_adapter(name, **changes):
    """A tiny model with the adapter of that name, whose B is no longer zero."""
    model = add_lora(tiny_model(**changes), CONFIGS[name])
    dice = torch.Generator().manual_seed(sorted(CONFIGS).index(name))
    for tensor in lora_state_dict(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=dice) / 3)
    return model.eval()


def adapters():
    return {name: (config, lora_state_dict(with_adapter(name))) for name, config in CONFIGS.items()}


def ids(rows, seed=0):
    return torch.randint(2, 300, (rows, 7), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_each_row_is_as_with_its_adapter_alone():
    bank, names = add_adapter_bank(tiny_model(), adapters()), ["thin", None, "wide", "one", "thin", "wide"]
    with adapter_rows(bank, names):
        together = bank(ids(6)).logits
    alone = {name: with_adapter(name)(ids(6)).logits for name in CONFIGS} | {None: tiny_model()(ids(6)).logits}
    for row, name in enumerate(names):
        assert torch.allclose(together[row], alone[name][row], atol=1e-4)
        for other in alone.keys() - {name}:  # else any answer would do
            assert (together[row] - alone[other][row]).abs().max() > 1e-2


@torch.no_grad()
def test_the_same_as_mixed_batches_of_peft(tmp_path):
    names = ["wide", "__base__", "one", "thin", "one"]
    for name in CONFIGS:
        save_lora(with_adapter(name), tmp_path / name)
    theirs = PeftModel.from_pretrained(tiny_model(), tmp_path / "wide", adapter_name="wide")
    for name in ("thin", "one"):
        theirs.load_adapter(tmp_path / name, adapter_name=name)
    ours = add_adapter_bank(tiny_model(), {name: read_lora(tmp_path / name) for name in CONFIGS})
    with adapter_rows(ours, [None if name == "__base__" else name for name in names]):
        mixed = ours(ids(5)).logits
    assert torch.allclose(mixed, theirs.eval()(ids(5), adapter_names=names).logits, atol=1e-5)


@torch.no_grad()
def test_outside_of_adapter_rows_it_is_the_base_to_the_bit():
    bank = add_adapter_bank(tiny_model(), adapters())
    before = bank(ids(4)).logits
    assert torch.equal(before, tiny_model()(ids(4)).logits)
    with adapter_rows(bank, [None] * 4):
        assert torch.equal(bank(ids(4)).logits, before)
    with pytest.raises(KeyError), adapter_rows(bank, ["one"] * 4):
        raise KeyError
    assert torch.equal(bank(ids(4)).logits, before)


@torch.no_grad()
def test_rows_may_be_named_anew_inside():
    bank = add_adapter_bank(tiny_model(), adapters())
    with adapter_rows(bank, ["one"] * 4):
        before = bank(ids(4)).logits
        with adapter_rows(bank, ["wide"] * 4):
            assert not torch.allclose(bank(ids(4)).logits, before)
        assert torch.equal(bank(ids(4)).logits, before)


@torch.no_grad()
def test_generation_pads_and_caches_each_row_with_its_own_adapter():
    tokenizer, names = tiny_tokenizer(), ["wide", "one", None]
    prompts = [example["prompt"][: 20 + 9 * i] for i, example in enumerate(shop_examples(3))]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    bank = add_adapter_bank(tiny_model(), adapters())
    with adapter_rows(bank, names):
        together = bank.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **settings)[:, -12:]
    for prompt, name, row in zip(prompts, names, together, strict=True):
        model = with_adapter(name) if name else tiny_model()
        one = tokenizer(prompt, return_tensors="pt")
        alone = model.generate(one["input_ids"], attention_mask=one["attention_mask"], **settings)
        assert torch.equal(row, alone[0, -12:])


@torch.no_grad()
def test_the_scaling_and_the_zeros_of_a_smaller_rank():
    linear, a, b = nn.Linear(5, 3, bias=False), torch.randn(2, 5), torch.randn(3, 2)
    bank = AdapterBank(linear, [(a, b, 0.5)], rank=4)
    assert bank.A.shape == (2, 4, 5) and bank.B.shape == (2, 3, 4) and not bank.A[1].any() and not bank.B[1].any()
    bank.rows, x = torch.tensor([0, 1]), torch.randn(2, 6, 5)
    assert torch.allclose(bank(x)[0], x[0] @ (linear.weight + 0.5 * b @ a).T, atol=1e-5)
    assert torch.equal(bank(x)[1], linear(x)[1])


@torch.no_grad()
def test_over_a_quantized_base_and_over_a_bf16_base():
    for prepare in (lambda model: quantize_model(model, "nf4"), lambda model: model.to(torch.bfloat16)):
        bank = add_adapter_bank(prepare(tiny_model()), adapters())
        with adapter_rows(bank, ["thin", "wide"]):
            together = bank(ids(2)).logits
        alone = load_into(prepare(tiny_model()), "wide")(ids(2)).logits
        assert together.dtype == alone.dtype and torch.allclose(together[1], alone[1], atol=0.1)


def load_into(model, name):
    model = add_lora(model, CONFIGS[name]).eval()
    for key, tensor in lora_state_dict(model).items():
        tensor.copy_(lora_state_dict(with_adapter(name))[key])
    return model


def test_what_it_holds_is_the_base_once_and_the_adapters():
    base, bank = tiny_model(), add_adapter_bank(tiny_model(), {"wide": adapters()["wide"]})
    added = sum(tensor.nbytes for tensor in adapters()["wide"][1].values())
    held = [sum(t.nbytes for t in [*model.parameters(), *model.buffers()]) for model in (base, bank)]
    assert held[1] - held[0] == 2 * added  # one adapter, and one of zeros for the base alone
    assert not any(p.requires_grad for p in bank.parameters())


BAD = {
    "no adapter": (dict, "one or more"),
    "a layer that is not there": (lambda own: own | {"x": (LoRAConfig(1, 1), {"a.b.lora_A": torch.ones(1, 2)})}, "a.b"),
    "half of an adapter": (
        lambda own: own | {"x": (own["one"][0], {k: v for k, v in own["one"][1].items() if k.endswith("lora_B")})},
        "'x'.*does not fit",
    ),
    "another rank than it says": (lambda own: own | {"x": (LoRAConfig(9, 1), own["wide"][1])}, "'x'.*does not fit"),
    "another model's": (
        lambda own: own | {"x": (CONFIGS["one"], lora_state_dict(with_adapter("one", hidden_size=64)))},
        "'x'.*does not fit",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named_and_leaves_the_model_as_it_was(case):
    change, said = BAD[case]
    model = tiny_model()
    given = {} if change is dict else change(adapters())
    with pytest.raises(ValueError, match=said):
        add_adapter_bank(model, given)
    assert not any(isinstance(module, AdapterBank) for module in model.modules())


def test_a_model_that_has_adapters_is_refused():
    with pytest.raises(ValueError, match="without adapters"):
        add_adapter_bank(with_adapter("one"), adapters())
    with pytest.raises(ValueError, match="without adapters"):
        add_adapter_bank(add_adapter_bank(tiny_model(), adapters()), adapters())


def test_wrong_rows_are_named():
    bank = add_adapter_bank(tiny_model(), adapters())
    with pytest.raises(ValueError, match="'two'.*'wide'"), adapter_rows(bank, ["one", "two"]):
        pass
    with pytest.raises(ValueError, match="no adapter is called 'one'"), adapter_rows(tiny_model(), ["one"]):
        pass
    with pytest.raises(ValueError, match="2 were given.*batch of 3"), adapter_rows(bank, ["one", None]):
        bank(ids(3))


@torch.no_grad()
def test_a_swap_puts_other_values_in_and_merged_they_are_the_same(tmp_path):
    model = with_adapter("thin")
    other = with_adapter("thin")
    for tensor in lora_state_dict(other).values():
        tensor.mul_(-2)
    save_lora(other, tmp_path)
    swapped = load_lora(model, tmp_path)
    assert torch.equal(swapped(ids(2)).logits, other(ids(2)).logits)
    assert torch.allclose(merge_lora(swapped)(ids(2)).logits, other(ids(2)).logits, atol=1e-4)
