"""Speed against the field's libraries, as ratios of medians from one run: `make bench`. It exits with 1 below a floor.

A row of ROWS is what is compared, a function that returns (ours, theirs), two callables that return units a
second, and a floor for the ratio. Ours and theirs take turns, so that a slow moment of the machine strikes
both.
"""

import copy
import statistics
import sys
import tempfile
import time

import bitsandbytes.functional as bitsandbytes
import ml_dtypes  # noqa: F401  (it gives numpy its small types)
import numpy as np
import torch
from fixtures import shop_examples, tiny_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from qlora_sweeps import by_the_library, quantized_with_adapter, state_bytes
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

from course.floats import round_to
from course.lab.data import DATA, collate, encode, load
from course.lab.evaluation import generate
from course.lab.losses import prepare, weighted_loss
from course.lab.metering import hardware, measure, versions
from course.lab.models import load_model
from course.lab.training import TrainingConfig, finetune
from course.lora import (
    LoRAConfig,
    adapter_rows,
    add_adapter_bank,
    add_lora,
    lora_state_dict,
    read_lora,
    save_lora,
)
from course.merging import dare, linear, slerp, ties
from course.quantization import quantize_absmax, quantize_nf4

REPEATS = 5


def shop_s():
    """The bundled shop-s, or a random model of its size with a small tokenizer."""
    if (DATA / "models" / "shop-s" / "config.json").exists():
        return load_model("shop-s", device="cpu")
    torch.manual_seed(0)
    shape = {"vocab_size": 2048, "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6}
    return LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=512, eos_token_id=1)).eval(), tiny_tokenizer()


def training_speed():
    """Tokens a second, padding left out, of the same 12 steps in the same batches; the same loss for both."""
    model, tokenizer = shop_s()
    examples = shop_examples(192)
    encoded = [encode(example, tokenizer) for example in examples]
    tokens = sum(len(item["input_ids"]) for item in encoded)

    def ours():
        config = TrainingConfig(learning_rate=1e-5, epochs=1, batch_size=16, progress=False)
        start = time.perf_counter()
        finetune(model, tokenizer, examples, config)
        return tokens / (time.perf_counter() - start)

    def with_labels(items):
        batch = collate(items, tokenizer.pad_token_id)
        labels = batch["input_ids"].masked_fill(batch.pop("weights") == 0, -100)
        return {key: batch[key] for key in ("input_ids", "attention_mask")} | {"labels": labels}

    def theirs():
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, learning_rate=1e-5, num_train_epochs=1, per_device_train_batch_size=16, use_cpu=True,
                save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
                remove_unused_columns=False,
            )  # fmt: skip
            start = time.perf_counter()
            trainer = Trainer(model, arguments, train_dataset=encoded, data_collator=with_labels)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            return tokens / (time.perf_counter() - start)

    return ours, theirs


def generation_speed():
    """Prompts a second, up to 32 new tokens each, in batches of 32 against one prompt at a time."""
    model, tokenizer = shop_s()
    prompts = [example["prompt"] for example in shop_examples(64)]

    def ours():
        start = time.perf_counter()
        generate(model, tokenizer, prompts, max_new_tokens=32, batch_size=32, progress=False)
        return len(prompts) / (time.perf_counter() - start)

    def theirs():
        start = time.perf_counter()
        for prompt in prompts[:16]:
            ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        return 16 / (time.perf_counter() - start)

    return ours, theirs


def adapters_speed():
    """Rows a second of 32 new tokens each: 32 rows with 8 adapters of rank 8 in one batch, ours against PEFT's."""
    model, tokenizer = shop_s()
    prompts = [example["prompt"] for example in shop_examples(32)]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    settings = {"attention_mask": batch["attention_mask"], "max_new_tokens": 32, "min_new_tokens": 32}
    settings |= {"do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    config, names, theirs = LoRAConfig(rank=8, alpha=16), [f"adapter {i}" for i in range(8)], copy.deepcopy(model)
    states = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            one = add_lora(copy.deepcopy(model), config)
            for tensor in lora_state_dict(one).values():
                tensor.normal_(std=0.02)
            save_lora(one, f"{folder}/{name}")
            states[name] = read_lora(f"{folder}/{name}")
            if name == names[0]:
                theirs = PeftModel.from_pretrained(theirs, f"{folder}/{name}", adapter_name=name).eval()
            else:
                theirs.load_adapter(f"{folder}/{name}", adapter_name=name)
    banks, rows = add_adapter_bank(model, states), names * 4

    def ours():
        with adapter_rows(banks, rows):
            return banks.generate(input_ids=batch["input_ids"], **settings)

    def peft():
        return theirs.generate(input_ids=batch["input_ids"], adapter_names=rows, **settings)

    assert torch.equal(ours(), peft())
    return timed(ours, 32), timed(peft, 32)


def rounding_speed(name, dtype):
    """Numbers a second, of 4 M: round_to, whose result is float64, against a cast that makes codes."""
    values = np.random.default_rng(0).standard_normal(4_000_000).astype(np.float32)
    return timed(lambda: round_to(values, name), len(values)), timed(
        lambda: values.astype(np.dtype(dtype)), len(values)
    )


def timed(call, count):
    """A callable that calls and returns `count` a second."""

    def speed():
        start = time.perf_counter()
        call()
        return count / (time.perf_counter() - start)

    return speed


def lora_speed():
    """LoRA training steps a second on shop-m, rank 8 on all linear layers, 8 letters: ours against PEFT's."""
    base, tokenizer = load_model("shop-m", device="cpu")
    encoded = [encode(example, tokenizer) for example in load("change", "train", limit=8)]
    batch = prepare(encoded, tokenizer.pad_token_id)
    peft = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    models = add_lora(copy.deepcopy(base), LoRAConfig(8, 16)), get_peft_model(copy.deepcopy(base), peft)

    def steps(model, count=4):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

        def speed():
            start = time.perf_counter()
            for _ in range(count):
                (weighted_loss(model, batch) / batch["weights"].sum()).backward()
                optimizer.step()
                optimizer.zero_grad()
            return count / (time.perf_counter() - start)

        return speed

    return tuple(map(steps, models))


def qlora_models():
    """(ours, by bitsandbytes and PEFT, a batch of 8 letters): shop-m in NF4, double-quantized, rank 8 on all layers."""
    model, tokenizer = quantized_with_adapter("shop-m", "nf4_double", seed=0)
    encoded = [encode(example, tokenizer) for example in load("change", "train", limit=8)]
    return model, by_the_library("shop-m", seed=0), prepare(encoded, tokenizer.pad_token_id)


def qlora_step(model, batch):
    """(a training step, what it updates)."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step():
        (weighted_loss(model, batch) / batch["weights"].sum()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, optimizer


def qlora_speed():
    """QLoRA training steps a second."""
    *models, batch = qlora_models()
    steps = [qlora_step(model, batch)[0] for model in models]
    return tuple(timed(lambda step=step: [step() for _ in range(4)], 4) for step in steps)


def qlora_bytes():
    """The other way round, so that fewer is better: steps that would fit into a GB, by the peak of one of them."""
    *models, batch = qlora_models()

    def peak(model):
        step, optimizer = qlora_step(model, batch)
        beside = state_bytes(model)  # of bitsandbytes: scales that are no buffers

        def fit():
            with measure(include=[model, optimizer]) as found:
                step()
            return 1e9 / (found.peak_bytes + beside)

        return fit

    return tuple(map(peak, models))


def quantization_speed(ours, quantize, dequantize):
    """Weights a second, of a 4096 x 4096 matrix: quantized and restored."""
    w = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0)) * 0.02
    return timed(lambda: ours(w).dequantize(), w.numel()), timed(lambda: dequantize(*quantize(w)), w.numel())


def merging_speed(merge, base=False):
    """GB a second, read and written, of a merge of two checkpoints of 503 M weights in BF16, against a plain maximum.

    With `base`, a third checkpoint is read; the maximum reads it, too.
    """
    dice = torch.Generator().manual_seed(0)
    models = [
        {f"layer {i}": torch.randn(4096, 4096, generator=dice, dtype=torch.bfloat16) for i in range(30)}
        for _ in range(3 if base else 2)
    ]
    moved = (len(models) + 1) * sum(tensor.nbytes for tensor in models[0].values()) / 1e9

    def plain():
        result = {}
        for name, tensor in models[0].items():
            result[name] = torch.empty_like(tensor)
            for other in models[1:]:
                torch.maximum(tensor, other[name], out=result[name])

    return timed(lambda: merge(*models), moved), timed(plain, moved)


ROWS = [
    ("finetune against transformers.Trainer, tokens/s", training_speed, 1.0),
    ("batched generation against one prompt at a time, prompts/s", generation_speed, 5.0),
    ("LoRA training step against PEFT's, steps/s", lora_speed, 1.0),
    ("QLoRA training step against bitsandbytes and PEFT, steps/s", qlora_speed, 1.0),
    ("QLoRA training step against bitsandbytes and PEFT, steps in a GB at the peak", qlora_bytes, 1.0),
    ("8 adapters in a batch of 32 rows against PEFT's mixed batch, rows/s", adapters_speed, 1.0),
    ("round_to bf16 against ml_dtypes' cast, numbers/s", lambda: rounding_speed("bf16", "bfloat16"), 1 / 3),
    ("round_to fp16 against numpy's cast, numbers/s", lambda: rounding_speed("fp16", "float16"), 1 / 3),
    ("round_to fp8 against ml_dtypes' cast, numbers/s", lambda: rounding_speed("fp8_e4m3", "float8_e4m3fn"), 1 / 3),
    (
        "NF4 there and back against bitsandbytes, weights/s",
        lambda: quantization_speed(
            quantize_nf4,
            lambda w: bitsandbytes.quantize_4bit(w, quant_type="nf4", blocksize=64),
            bitsandbytes.dequantize_4bit,
        ),
        1.0,
    ),
    (
        "8 bits a row there and back against bitsandbytes, weights/s",
        lambda: quantization_speed(
            quantize_absmax,
            lambda w: bitsandbytes.int8_vectorwise_quant(w)[:2],
            bitsandbytes.int8_vectorwise_dequant,
        ),
        1.0,
    ),
    (
        "linear merge against a plain read and write, GB/s",
        lambda: merging_speed(lambda a, b: linear([a, b], [0.3, 0.7])),
        0.5,
    ),
    ("SLERP against a plain read and write, GB/s", lambda: merging_speed(lambda a, b: slerp(a, b, 0.3)), 0.1),
    (
        "DARE against a plain read and write, GB/s",
        lambda: merging_speed(lambda base, a, b: dare(base, [a, b], 0.5, 1, seed=0), base=True),
        0.02,
    ),
    (
        "TIES against a plain read and write, GB/s",
        lambda: merging_speed(lambda base, a, b: ties(base, [a, b], 0.5, 1), base=True),
        0.01,
    ),
]


def main():
    print(hardware(), versions(), sep="\n")
    missed = 0
    for title, make, floor in ROWS:
        pair = make()
        for run in pair:
            run()  # the first run pays for caches
        speeds = [[run() for run in pair] for _ in range(REPEATS)]
        ours, theirs = (statistics.median(column) for column in zip(*speeds, strict=True))
        passed = ours / theirs >= floor
        missed += not passed
        print(
            f"{title}: {ours:,.1f} / {theirs:,.1f} = {ours / theirs:.2f}, floor {floor}:",
            "ok" if passed else "MISSED",
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
