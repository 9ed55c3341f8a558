"""The long measurements of chapter 10, one sweep a name: `python tests/qlora_sweeps.py ways`.

Each run is kept in data/measurements as soon as it is done, and a run that is there is skipped. All are in FP32: "16
bits" are weights that are BF16 numbers, as those of the bundled models are. The task is that of chapter 08's sweeps:
`change`, 96 letters, 48 steps of 8; scored are the loss and the share of exact answers on 150 test letters.
"""

import copy
import math
import sys
from functools import partial

import torch
from lora_sweeps import BATCH, EXAMPLES, QUIET, SEEDS, STEPS, TASK, TESTED
from peft import LoraConfig, get_peft_model
from peft_sweeps import scores
from sweeps import keep_runs
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from course import load_model
from course.lab import data
from course.lab.config import TrainingConfig
from course.lab.counting import tensors_of
from course.lab.evaluation import perplexity
from course.lab.runtime import setup
from course.lab.training import finetune
from course.lora import LoRAConfig, LoRALinear, add_lora, lora_state_dict
from course.quantization import (
    QuantizedLinear,
    quantize_absmax,
    quantize_affine,
    quantize_fp4,
    quantize_model,
    quantize_nf4,
)

RANK, RATE = 8, 1e-2
SCHEMES = {  # by the bits of a code; scales come on top
    "NF4": quantize_nf4,
    "FP4": quantize_fp4,
    "INT4": partial(quantize_absmax, bits=4, group_size=64),
    "INT3": partial(quantize_absmax, bits=3, group_size=64),
    "2 bits": partial(quantize_affine, bits=2, group_size=32),
}


def train(model, tokenizer, seed, rate=RATE):
    settings = {"learning_rate": rate, "max_steps": STEPS, "batch_size": BATCH, "seed": seed}
    history = finetune(model, tokenizer, data.load(TASK, "train", EXAMPLES), TrainingConfig(**settings, **QUIET))
    tested = scores(model, tokenizer, data.load(TASK, "test", TESTED))
    losses = [round(loss, 4) for loss in history.losses]
    return tested | {"losses": losses, "seconds": round(history.seconds, 2), "peak_bytes": history.peak_bytes}


def quantized_with_adapter(name, scheme, seed):
    """(model, tokenizer): 16-bit weights where scheme is None, and an adapter with the seed's A."""
    model, tokenizer = load_model(name, device="cpu")
    if scheme:
        quantize_model(model, scheme)
    torch.manual_seed(seed)
    return add_lora(model, LoRAConfig(RANK, 2 * RANK)), tokenizer


def by_the_library(name, seed):
    """The same through bitsandbytes and PEFT, started from the same A; in training mode.

    On a processor with AVX512-BF16 a layer that has run in eval mode is packed for inference, and has no gradient.
    """
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    folder = data.DATA / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4, dtype=torch.float32, device_map="cpu")
    settings = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, settings)
    ours = lora_state_dict(quantized_with_adapter(name, None, seed)[0])
    named = dict(model.named_parameters())
    for key, value in ours.items():
        named[f"base_model.model.{key}.default.weight"].data.copy_(value)
    return model.train()


def state_bytes(model):
    """Bytes of the scales and tables that bitsandbytes keeps beside its 4-bit parameters, each storage once."""
    states = [m.weight.quant_state for m in model.modules() if hasattr(getattr(m, "weight", None), "quant_state")]
    parts = [x for s in states for x in (s.absmax, s.code, s.offset, s.state2.absmax, s.state2.code)]
    return sum({x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in parts}.values())


def stored_bytes(model):
    storages = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors_of(model)}
    return sum(storages.values())


def way_run(way, name, seed):
    if way.startswith("bitsandbytes + PEFT"):
        model, tokenizer = by_the_library(name, seed), load_model(name, device="cpu")[1]
        model.train("eval" not in way)
        beside = state_bytes(model)
    else:
        model, tokenizer = quantized_with_adapter(name, {"QLoRA": "nf4_double"}.get(way), seed)
        beside = 0
    stored = stored_bytes(model) + beside
    before = scores(model, tokenizer, data.load(TASK, "test", TESTED))["loss"]
    result = train(model, tokenizer, seed) | {"stored_bytes": stored, "loss_before": before}
    result["peak_bytes"] += beside
    if way == "QLoRA":
        result["merged"] = merges(model, tokenizer, name)
    return result


def nf4(weight):
    return quantize_nf4(weight, double_quant=True).dequantize()


def bf16(weight):
    return weight.bfloat16().float()


PLACES = {  # w: the original weight, d: the adapter's change
    "apart": lambda w, d: nf4(w) + d,
    "into the 4-bit weights, kept in 16 bits": lambda w, d: bf16(nf4(w) + d),
    "into the original weights, in 16 bits": lambda w, d: bf16(w + d),
    "into the original weights, then 4 bits": lambda w, d: nf4(w + d),
    "into the 4-bit weights, then 4 bits again": lambda w, d: nf4(nf4(w) + d),
}


@torch.no_grad()
def merges(trained, tokenizer, name):
    """Where a trained adapter can go, and what the model is worth then."""
    base, tested, found = load_model(name, device="cpu")[0], data.load(TASK, "test", TESTED), {}
    for place, weight_of in PLACES.items():
        model = copy.deepcopy(base)
        for key, layer in trained.named_modules():
            if isinstance(layer, LoRALinear):
                weight = model.get_submodule(key).weight
                weight.copy_(weight_of(weight, layer.delta()))
        found[place] = scores(model, tokenizer, tested)
    return found


def way_runs(*ways):
    for name in ("shop-m", "shop-s"):  # the longer runs first
        for seed in SEEDS:
            for way in ways:
                yield {"way": way, "model": name, "seed": seed}, partial(way_run, way, name, seed)


def size_run(rate, seed):
    """How large the adapter's change gets with this learning rate, and what merging does to it."""
    model, tokenizer = quantized_with_adapter("shop-s", "nf4_double", seed)
    result, base = train(model, tokenizer, seed, rate), load_model("shop-s", device="cpu")[0]
    change = size = moved = count = 0
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            weight, delta = base.get_submodule(name).weight.detach(), layer.delta()
            codes = quantize_nf4(weight)
            change, size = change + delta.square().sum().item(), size + weight.square().sum().item()
            again = quantize_nf4(codes.dequantize() + delta)
            moved, count = moved + (again.unpacked() != codes.unpacked()).sum().item(), count + weight.numel()
    shares = {"change": (change / size) ** 0.5, "codes_moved": moved / count}
    return result | shares | {"merged": merges(model, tokenizer, "shop-s")}


def size_runs():
    for seed in SEEDS[:1]:
        for rate in (1e-2, 5e-3, 2e-3):
            yield {"rate": rate, "seed": seed}, partial(size_run, rate, seed)


def text_perplexity(model, tokenizer, pieces=100):
    texts = [record["text"] for record in data.load("pretraining", "validation", pieces)]
    return perplexity(model, tokenizer, texts, progress=False)


def text_run(scheme, name):
    """No training: what the shop's text is worth to a model in this scheme."""
    model, tokenizer = load_model(name, device="cpu")
    if scheme in SCHEMES:
        quantize_model(model, SCHEMES[scheme])
    texts, losses, counts = [record["text"] for record in data.load("pretraining", "validation", 160)], [], []
    for lot in (texts[i : i + 40] for i in range(0, 160, 40)):
        losses.append(math.log(perplexity(model, tokenizer, lot, progress=False)))
        # every token but the first of a text counts, and no text is longer than the context
        counts.append(sum(len(data.encode_prompt(text, tokenizer)) - 1 for text in lot))
    mean = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    return {"perplexity": round(math.exp(mean), 4), "lots_of_40": [round(math.exp(loss), 4) for loss in losses]}


def text_runs():
    for name in ("shop-l", "shop-m", "shop-s"):
        for scheme in ("16 bits", "NF4", "FP4", "INT4"):
            settings = {"scheme": scheme, "name": name}
            yield settings, partial(text_run, **settings)


def scheme_run(scheme, seed):
    """A base in this scheme: its perplexity on the shop's text, and what a finetune makes of it."""
    model, tokenizer = quantized_with_adapter("shop-s", SCHEMES.get(scheme), seed)
    text = text_perplexity(model, tokenizer)
    before = scores(model, tokenizer, data.load(TASK, "test", TESTED))["loss"]
    return train(model, tokenizer, seed) | {"perplexity_before": text, "loss_before": before}


def scheme_runs():
    for seed in SEEDS:
        for scheme in ("16 bits", *SCHEMES):
            settings = {"scheme": scheme, "seed": seed}
            yield settings, partial(scheme_run, **settings)


@torch.no_grad()
def loftq(weight, quantize, rank, rounds):
    """(codes, A, B): by turns the codes of W - B A, and the nearest B A to what they leave over (Li et al. 2023)."""
    change = torch.zeros_like(weight)
    for _ in range(rounds):
        codes = quantize(weight - change)
        u, s, vh = torch.linalg.svd(weight - codes.dequantize(), full_matrices=False)
        b, a = u[:, :rank] * s[:rank].sqrt(), s[:rank, None].sqrt() * vh[:rank]
        change = b @ a
    return codes, a, b


def loftq_run(scheme, rounds, seed):
    """0 rounds: codes of the weights themselves, and the usual start."""
    model, tokenizer = quantized_with_adapter("shop-s", SCHEMES[scheme], seed)
    original, off, size = load_model("shop-s", device="cpu")[0], 0, 0
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            weight = original.get_submodule(name).weight.detach()
            if rounds:
                codes, a, b = loftq(weight, SCHEMES[scheme], RANK, rounds)
                layer.base = QuantizedLinear(codes)
                layer.lora_A.data.copy_(a)
                layer.lora_B.data.copy_(b / layer.config.scaling)  # so that (alpha / rank) · B A is what was found
            served = layer.base.weight + layer.delta()
            off, size = off + (served - weight).square().sum().item(), size + weight.square().sum().item()
    text = text_perplexity(model, tokenizer)
    before = scores(model, tokenizer, data.load(TASK, "test", TESTED))["loss"]
    start = {"error": (off / size) ** 0.5, "perplexity_before": text, "loss_before": before}
    return start | train(model, tokenizer, seed)


def loftq_runs():
    for seed in SEEDS[:1]:
        for scheme in ("NF4", "INT3", "2 bits"):
            for rounds in (0, 1, 5):
                settings = {"scheme": scheme, "rounds": rounds, "seed": seed}
                yield settings, partial(loftq_run, **settings)


SWEEPS = {
    "ways": partial(way_runs, "16-bit LoRA", "QLoRA"),
    "library": partial(way_runs, "bitsandbytes + PEFT"),
    "eval-first": partial(way_runs, "bitsandbytes + PEFT, eval first"),  # see `by_the_library`
    "sizes": size_runs, "texts": text_runs, "schemes": scheme_runs, "loftq": loftq_runs,
}  # fmt: skip


def one_run(task):
    """The result of run number `task[1]` of a sweep."""
    name, number = task
    return list(SWEEPS[name]())[number][1]()


def main(names):
    """Run what is not yet recorded of these sweeps, and record it."""
    keep_runs("qlora", {name: [settings for settings, _ in SWEEPS[name]()] for name in names}, one_run)


if __name__ == "__main__":
    setup()
    main(sys.argv[1:] or SWEEPS)
