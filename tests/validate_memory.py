"""The table of predictions: `python tests/validate_memory.py` counts, tracks and prints, beside what others estimate.

The result goes to data/measurements. Full-size rows
come from torch's own tracker under fake tensors; the last rows are what PEFT's authors measured on a GPU.
"""

import statistics

import transformers
from accelerate.commands.estimate import estimate_training_usage
from memory_counts import FAMILIES, inference_row, training_row
from memory_full_size import full_size_peak
from memory_sharded import sharded_row
from test_memory import (
    EAGER,
    LLAMA_ONLY,
    OTHERS,
    PEFT_RUNS,
    SETTINGS,
    SHARDED,
    TRAINED,
    attention,
    settings_of,
)

from course.lab.metering import save_measurement
from course.memory import ModelShape, training_memory

FULL_SIZE = [
    ("llama-3.2-1b", {"batch": 4, "seq": 1024}),
    ("llama-3.2-1b", {"batch": 8, "seq": 1024, "precision": "autocast", "checkpointing": True}),
    ("smollm2-1.7b", {"batch": 2, "seq": 2048}),
    ("gemma-2-2b", {"batch": 2, "seq": 1024, "attention": "eager"}),
    ("phi-2", {"batch": 2, "seq": 1024}),
    ("opt-6.7b", {"batch": 1, "seq": 2048}),
    ("llama-2-7b", {"batch": 1, "seq": 512}),
    ("llama-2-7b", {"batch": 1, "seq": 512, "foreach": True}),
    ("llama-2-7b", {"method": "lora", "batch": 1, "seq": 512}),
    ("llama-2-7b", {"method": "lora", "batch": 1, "seq": 512, "checkpointing": True}),
    ("mistral-7b", {"method": "lora", "batch": 2, "seq": 2048, "targets": ("q_proj", "v_proj")}),
    ("llama-3-8b", {"method": "lora", "batch": 2, "seq": 2048, "checkpointing": True}),
    ("qwen2.5-14b", {"method": "lora", "batch": 1, "seq": 2048}),
    ("llama-2-70b", {"method": "lora", "batch": 1, "seq": 4096, "checkpointing": True}),
]


def others(name, run):
    """What rules of thumb, accelerate and fitcheck-llm say, in bytes; None where one has no answer."""
    shape = ModelShape.from_config(name)
    bf16 = run.get("precision", "bf16") == "bf16"
    usage = estimate_training_usage(4 * shape.parameters, "bfloat16")
    return {
        "weights × 1.2": 1.2 * shape.parameters * (2 if bf16 else 4),
        "16 bytes": 16 * shape.parameters,
        "accelerate": max(usage.values()),
        "fitcheck": fitcheck(shape, run),
    }


def fitcheck(shape, run):
    try:
        from fitcheck import GPU_DB, ModelConfig, TrainingConfig, estimate
    except ImportError:
        return None
    model = ModelConfig(
        name=shape.name,
        num_params=shape.parameters,
        hidden_size=shape.hidden,
        num_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        intermediate_size=shape.blocks[0].feed_forward,
        vocab_size=shape.vocabulary,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    if run.get("method", "full") not in {"full", "lora"}:
        return None  # it knows no other
    lora = run.get("method") == "lora"
    targets = run.get("targets") or ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    bf16 = run.get("precision", "bf16") == "bf16"
    training = TrainingConfig(
        precision="bf16" if bf16 else "fp32",
        optimizer_dtype="bf16" if bf16 and not lora else "fp32",
        batch_size=run["batch"],
        seq_len=run["seq"],
        lora_rank=run.get("rank", 16) if lora else None,
        lora_targets=list(targets),
        grad_checkpoint=run.get("checkpointing", False),
        flash_attn=run.get("attention", "sdpa") == "sdpa",
    )
    report = estimate(model, training, GPU_DB["h200"])
    return (report.total_mib - report.overhead_mib) * 2**20  # tensors alone, as the truth here


def small_rows():
    for family in TRAINED:
        for label, settings in SETTINGS.items():
            predicted, counted = training_row(family, **attention(family) | settings)
            yield f"{family}, {label}", predicted.total, counted
    for settings in LLAMA_ONLY:
        predicted, counted = training_row("llama", **settings)
        yield f"llama, {settings}", predicted.total, counted
    for family, settings in OTHERS:
        predicted, counted = training_row(family, **settings)
        yield f"{family}, {settings}", predicted.total, counted
    for sharding, batch, seq in SHARDED:
        predicted, counted = sharded_row(sharding, batch=batch, seq=seq)
        yield f"llama, one of two devices, {sharding}, batch {batch} of {seq}", predicted.total, counted
    for family in sorted(FAMILIES):
        for dtype in ("fp32", "bf16"):
            predicted, counted = inference_row(family, dtype, **attention(family) if family in EAGER else {})
            yield f"{family}, inference, {dtype}", predicted.total, counted


def main():
    transformers.logging.set_verbosity_error()
    rows = [{"row": row, "predicted": p, "counted": c} for row, p, c in small_rows()]
    errors = [abs(row["predicted"] / row["counted"] - 1) for row in rows]
    print(f"{len(rows)} small runs: median {statistics.median(errors):.2%}, worst {max(errors):.2%}\n")
    print(f"{'full size':60s}{'truth GB':>10s}{'ours':>8s}{'×1.2':>8s}{'16 B':>8s}{'accel.':>8s}{'fitcheck':>9s}")
    table = []
    truths = [(name, run, full_size_peak(name, ModelShape.from_config(name).layers, **run)) for name, run in FULL_SIZE]
    truths += [("llama-3.2-3b", settings_of(run), run["reserved_max"]) for run in PEFT_RUNS if settings_of(run)]
    for name, run, truth in truths:
        said = {"ours": training_memory(name, **run).total} | others(name, run)
        table.append({"model": name, "run": run, "truth": truth, **said})
        off = "".join(f"{value / truth - 1:+8.0%}" if value else "     n/a" for value in list(said.values())[1:])
        label = f"{name} {' '.join(f'{key}={value}' for key, value in run.items())}"
        print(f"{label[:59]:60s}{truth / 1e9:10.2f}{said['ours'] / truth - 1:+8.1%}{off}")
    median = {
        who: statistics.median(abs(row[who] / row["truth"] - 1) for row in table if row[who])
        for who in ("ours", "weights × 1.2", "16 bytes", "accelerate", "fitcheck")
        if any(row[who] for row in table)
    }
    print("\nmedian error:", {who: f"{error:.1%}" for who, error in median.items()})
    results = {"small": rows, "full_size": table, "median_error": median}
    save_measurement("memory-validation", results, "python tests/validate_memory.py")


if __name__ == "__main__":
    main()
