"""Full-size models on one GPU: bytes against the planner's and tokens a second, `python tests/gpu_finetunes.py`.

Weights are random, since neither bytes nor seconds depend on their values; the 70 B model is quantized layer by layer
as it is made, so that it never lies there in 16 bits. A row that the planner says does not fit is left out. With
`--model ID`, a model of the Hub is finetuned instead, by LoRA and by QLoRA of both libraries; a Colab T4 holds 1 B.
`--small` is a try of every row on a tiny shape, without a GPU too. The result is data/measurements/gpu-finetunes.json;
a row that is there is not made again.
"""

import argparse
import gc
import statistics
import tempfile
import time

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PrinterCallback, Trainer, TrainingArguments

from course import load_model
from course.lab.config import TrainingConfig
from course.lab.counting import tensors_of
from course.lab.data import DataError, collate, encode, load
from course.lab.metering import load_measurement, measure, save_measurement
from course.lab.runtime import setup
from course.lab.training import finetune
from course.lora import LoRAConfig, add_lora, merge_lora
from course.memory import inference_memory, training_memory
from course.model_shape import SHAPES, ModelShape, _read
from course.quantization import QuantizedLinear, quantize_nf4

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS, RANK = 5, 16
OPTIMIZERS = {
    "adamw": lambda params: torch.optim.AdamW(params, fused=True),
    "adafactor": torch.optim.Adafactor,
    "adamw_8bit": bnb.optim.AdamW8bit,
    "paged_adamw": bnb.optim.PagedAdamW,
    "paged_adamw_8bit": bnb.optim.PagedAdamW8bit,
}
TINY = {"model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "intermediate_size": 256, "vocab_size": 2048,
        "max_position_embeddings": 2048, "tie_word_embeddings": False}  # fmt: skip


def ours_4bit(linear):
    return QuantizedLinear(quantize_nf4(linear.weight.detach()), linear.bias)


def bitsandbytes_4bit(linear):
    settings = {"compute_dtype": torch.bfloat16, "quant_type": "nf4", "compress_statistics": False}
    with torch.device("meta"):  # its own random weight is not wanted
        made = bnb.nn.Linear4bit(linear.in_features, linear.out_features, linear.bias is not None, **settings)
    made.weight = bnb.nn.Params4bit(
        linear.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=False
    )
    made.bias = linear.bias
    return made.to(DEVICE)


FOUR_BITS = {"course": ours_4bit, "bitsandbytes": bitsandbytes_4bit}


@torch.no_grad()
def random_model(source, dtype=torch.bfloat16, four_bits=None):
    """A model of a shape, weights drawn at random on the device one layer at a time; four_bits: of FOUR_BITS."""
    fields = {key: value for key, value in source.items() if key != "source"}
    config = AutoConfig.for_model(**fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name in [name for name, _ in model.named_modules()]:  # names: a list of modules would keep the 16-bit ones
        module = model.get_submodule(name)
        for key, p in module.named_parameters(recurse=False):
            made = torch.empty(p.shape, dtype=dtype, device=DEVICE)
            module.register_parameter(key, torch.nn.Parameter(made.normal_(0, 0.02) if p.dim() > 1 else made.fill_(1)))
        if four_bits and type(module) is torch.nn.Linear and name != "lm_head":
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, FOUR_BITS[four_bits](module))
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(DEVICE)
    return model


def prepared(source, method, precision="bf16", library="course"):
    """The model of a row, ready to train."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    four_bits = library if method == "qlora" else None
    if isinstance(source, str):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map=DEVICE)
        for name, module in list(model.named_modules()) if four_bits else []:
            if type(module) is torch.nn.Linear and name != "lm_head":
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, FOUR_BITS[four_bits](module))
    else:
        model = random_model(source, dtype, four_bits)
    if method in {"lora", "qlora"}:
        if library == "course":
            add_lora(model, LoRAConfig(RANK, 2 * RANK))
        else:
            model.is_loaded_in_4bit = method == "qlora"
            model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    return model.train()


def used_bytes():
    """What is taken of the GPU by everything: tensors, the allocator's reserve, the context, managed memory."""
    if DEVICE == "cpu":
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def train_row(source, method, batch, seq, precision="bf16", checkpointing=False, optimizer="adamw", library="course"):
    """Peak bytes and tokens a second of a few steps, the first left out."""
    start = time.perf_counter()
    model = prepared(source, method, precision, library)
    built = time.perf_counter() - start
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    made = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
    seconds, peaks = [], []
    for _ in range(STEPS):
        ids = torch.randint(model.config.vocab_size, (batch, seq), device=DEVICE)
        states = [tensor for tensor in tensors_of([made]) if tensor.device.type == DEVICE]  # paged ones lie elsewhere
        with measure(include=[model, *states]) as meter:
            del states
            with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "autocast"):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            del loss
            made.step()
            made.zero_grad()
        seconds.append(meter.seconds)
        peaks.append(meter.peak_bytes)
    return {
        "peak_bytes": max(peaks[1:]),
        "used_bytes": used_bytes(),
        "tokens_per_second": batch * seq / statistics.median(seconds[1:]),
        "seconds_to_make": built,
    }


@torch.no_grad()
def inference_row(source, dtype, batch, seq, library="course"):
    """Peak bytes of reading `batch` texts of `seq` tokens into the cache."""
    model = random_model(source, four_bits=library if dtype == "nf4" else None).eval()
    ids = torch.randint(model.config.vocab_size, (batch, seq), device=DEVICE)
    model(input_ids=ids[:, :8])
    with measure(include=[model]) as meter:
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return {"peak_bytes": meter.peak_bytes, "used_bytes": used_bytes(), "seconds": meter.seconds}


@torch.no_grad()
def decoding_row(source, kind, tokens=24):
    """Milliseconds a token, one text: the base, an adapter apart, merged, and 4 bits of both libraries."""
    model = random_model(source, four_bits=kind.partition(" ")[2] if kind.startswith("nf4") else None).eval()
    if kind in {"adapter", "merged"}:
        add_lora(model, LoRAConfig(RANK, 2 * RANK))
    if kind == "merged":
        merge_lora(model, unload=True)
    ids = torch.randint(model.config.vocab_size, (1, 64), device=DEVICE)
    seconds = []
    for _ in range(3):
        with measure(memory=False) as meter:
            model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
        seconds.append(meter.seconds)
    return {"milliseconds_a_token": 1000 * min(seconds) / tokens}


def loops_row(source):
    """The course's loop against transformers.Trainer: the same texts, LoRA model, batches and arithmetic."""
    tokenizer = load_model("shop-s", device="cpu")[1]
    examples, text = [], ""
    for record in load("pretraining", "train"):
        text += record["text"] + "\n"
        if len(tokenizer(text)["input_ids"]) > 380:
            examples.append({"prompt": text[:40], "completion": text[40:]})
            text = ""
        if len(examples) == (8 if source is TINY else 96):
            break
    encoded = [encode(example, tokenizer) for example in examples]
    tokens = sum(len(item["input_ids"]) for item in encoded)
    model = prepared(source, "lora")

    def with_labels(items):
        batch = collate(items, tokenizer.pad_token_id)
        labels = batch["input_ids"].masked_fill(batch.pop("weights") == 0, -100)
        return {key: batch[key] for key in ("input_ids", "attention_mask")} | {"labels": labels}

    def course_loop():
        finetune(model, tokenizer, examples, TrainingConfig(1e-4, epochs=1, batch_size=8, progress=False))

    def trainer():
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, learning_rate=1e-4, num_train_epochs=1, per_device_train_batch_size=8, bf16=True,
                save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
                remove_unused_columns=False, use_cpu=DEVICE == "cpu",
            )  # fmt: skip
            made = Trainer(model, arguments, train_dataset=encoded, data_collator=with_labels)
            made.remove_callback(PrinterCallback)
            made.train()

    speeds = {"course": [], "Trainer": []}
    for turn in range(4):  # the first is for warming up
        for name, loop in (("course", course_loop), ("Trainer", trainer)):
            with measure(memory=False) as meter:
                loop()
            if turn:
                speeds[name].append(tokens / meter.seconds)
    return {"tokens": tokens} | {f"{name} tokens_per_second": statistics.median(s) for name, s in speeds.items()}


TRAINED = [
    ("llama-3.2-1b", {"method": "full", "batch": 4, "seq": 512}),
    ("llama-3.2-1b", {"method": "full", "batch": 4, "seq": 512, "precision": "autocast"}),
    *(("llama-3.2-1b", {"method": "full", "batch": 4, "seq": 512, "optimizer": optimizer})
      for optimizer in ("adafactor", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")),
    ("llama-3.2-1b", {"method": "lora", "batch": 4, "seq": 512}),
    ("llama-3.2-1b", {"method": "qlora", "batch": 4, "seq": 512}),
    ("llama-3.2-1b", {"method": "qlora", "batch": 4, "seq": 512, "library": "bitsandbytes"}),
    ("llama-2-7b", {"method": "full", "batch": 1, "seq": 512}),
    ("llama-2-7b", {"method": "lora", "batch": 1, "seq": 512}),
    ("llama-2-7b", {"method": "qlora", "batch": 1, "seq": 512}),
    ("llama-2-7b", {"method": "qlora", "batch": 1, "seq": 512, "library": "bitsandbytes"}),
    ("llama-2-7b", {"method": "lora", "batch": 4, "seq": 1024}),
    ("llama-2-7b", {"method": "lora", "batch": 4, "seq": 1024, "checkpointing": True}),
    ("llama-2-7b", {"method": "qlora", "batch": 4, "seq": 1024, "checkpointing": True}),
    ("llama-2-7b", {"method": "qlora", "batch": 4, "seq": 1024, "checkpointing": True, "library": "bitsandbytes"}),
    ("llama-2-7b", {"method": "full", "batch": 1, "seq": 512, "precision": "autocast"}),
    ("llama-2-13b", {"method": "lora", "batch": 1, "seq": 512}),
    ("llama-2-13b", {"method": "qlora", "batch": 1, "seq": 512}),
    ("llama-2-13b", {"method": "qlora", "batch": 1, "seq": 512, "library": "bitsandbytes"}),
    ("llama-2-70b", {"method": "qlora", "batch": 1, "seq": 512, "checkpointing": True}),
]  # fmt: skip
READ = [("llama-2-7b", {"dtype": dtype, "batch": batch, "seq": 2048})
        for dtype, batch in (("bf16", 1), ("bf16", 8), ("nf4", 1))]  # fmt: skip
DECODED = [("llama-2-7b", {"kind": kind}) for kind in ("base", "adapter", "merged", "nf4 course", "nf4 bitsandbytes")]


def rows(small, hub_model):
    """(what, model, settings, predicted bytes or 0, the call) of every row."""
    if hub_model:
        ways = [{"method": "lora"}, {"method": "qlora"}, {"method": "qlora", "library": "bitsandbytes"}]
        trained, read, decoded = [(hub_model, way | {"batch": 1, "seq": 512}) for way in ways], [], []
    else:
        trained, read, decoded = TRAINED, READ, DECODED
    for name, settings in trained:
        settings = settings | ({"batch": 1, "seq": 16} if small else {})
        planned = {key: value for key, value in settings.items() if key != "library"}
        shape = ModelShape.from_config(TINY if small else name)
        source = name if hub_model else TINY if small else _read(SHAPES / f"{name}.json")
        predicted = training_memory(shape, rank=RANK, **planned).total
        yield "train", name, settings, predicted, lambda source=source, settings=settings: train_row(source, **settings)
    for name, settings in read:
        settings = settings | ({"batch": 1, "seq": 16} if small else {})
        source = TINY if small else _read(SHAPES / f"{name}.json")
        predicted = inference_memory(ModelShape.from_config(TINY if small else name), **settings).total
        yield "read", name, settings, predicted, lambda source=source, s=settings: inference_row(source, **s)
    for name, settings in decoded:
        source = TINY if small else _read(SHAPES / f"{name}.json")
        yield "decode", name, settings, 0, lambda source=source, s=settings: decoding_row(source, **s)
    if not hub_model:
        source = TINY if small else _read(SHAPES / "llama-3.2-1b.json")
        yield "loops", "llama-3.2-1b", {}, 0, lambda source=source: loops_row(source)


MEASURED = {"peak_bytes", "used_bytes", "tokens_per_second", "seconds_to_make", "seconds", "milliseconds_a_token"}


def recorded():
    """What a row says before it is measured -> the row of the record."""
    try:
        rows = load_measurement("gpu-finetunes")["results"]["rows"]
    except DataError:
        return {}
    return {
        str({key: value for key, value in row.items() if key not in MEASURED}): row
        for row in rows
        if not {"failed", "left_out"} & set(row)
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a Hub id or folder, instead of the shapes")
    parser.add_argument("--small", action="store_true", help="every row on a tiny shape, and nothing is recorded")
    options = parser.parse_args()
    setup()
    command = "python tests/gpu_finetunes.py" + (f" --model {options.model}" if options.model else "")
    kept, known = [], {} if options.small or options.model else recorded()
    memory = torch.cuda.get_device_properties(0).total_memory if DEVICE == "cuda" else 2**40
    start = time.perf_counter()
    for what, name, settings, predicted, call in rows(options.small, options.model):
        row = {"what": what, "model": name, **settings} | ({"predicted_bytes": predicted} if predicted else {})
        if str(row) in known:
            kept.append(known[str(row)])
            continue
        if predicted > 0.97 * memory:
            row["left_out"] = f"the planner says that {memory / 2**30:.0f} GiB are too few"
        else:
            try:
                row |= call()
            except (RuntimeError, ValueError, AttributeError) as error:  # one row must not cost the others
                row["failed"] = f"{type(error).__name__}: {error}"[:300]
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        kept.append(row)
        shown = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
        print(f"{time.perf_counter() - start:4.0f} s", *(f"{key}={value}" for key, value in shown.items()), flush=True)
        if not options.small:
            save_measurement("gpu-finetunes", {"rank": RANK, "steps": STEPS, "rows": kept}, command)
    for row in kept:
        if "peak_bytes" in row:
            ratio = row["peak_bytes"] / row["predicted_bytes"]
            print(f"{row['model']:13} {row.get('method', row.get('dtype')):6} {ratio:.3f} of the planner's bytes")


if __name__ == "__main__":
    main()
