"""The long measurements of chapter 07: `python tests/peft_sweeps.py` writes data/measurements/peft-comparison.json.

Four parts: `rates`, the search for each method's learning rate on the validation split; `comparison`, every method at
its best rate over three seeds; `examples`, three of them from 25 to 600 examples; `prompts`, a longer run of one that
falls behind. Each run is kept as soon as it is done, and a run that is there is skipped. All are in FP32. A run is 48
steps of 8 letters, unless it says otherwise; with other numbers of examples it is 75, in which 600 letters are read
once.
"""

from functools import partial

import torch
from sweeps import side_by_side
from torch.nn import functional as F

from course import load_model
from course.lab.config import TrainingConfig
from course.lab.data import DataError, load
from course.lab.losses import encode_all, prepare
from course.lab.metering import load_measurement, save_measurement
from course.lab.runtime import setup
from course.lab.training import finetune
from course.lora import LoRAConfig, add_lora
from course.peft_methods import (
    add_adapters,
    add_bitfit,
    add_ia3,
    add_p_tuning,
    add_prefix,
    add_prompt,
    train_top_layers,
    trainable_parameters,
)

NAME, COMMAND = "peft-comparison", "python tests/peft_sweeps.py"
TASK, EXAMPLES, STEPS, BATCH, TESTED, VALIDATED = "change", 300, 48, 8, 200, 100
LONGER = 75  # steps, where the number of examples differs
SEEDS = (0, 1, 2)
QUIET = {"progress": False, "autocast": False}  # FP32, so that a record means the same on every processor
METHODS = {
    "full": lambda model: model,
    "top 4 layers": partial(train_top_layers, layers=4),
    "top 2 layers": partial(train_top_layers, layers=2),
    "top layer": partial(train_top_layers, layers=1),
    "LoRA, rank 2": partial(add_lora, config=LoRAConfig(2, 4)),
    "adapters, size 8": partial(add_adapters, size=8),
    "BitFit": add_bitfit,
    "IA3": add_ia3,
    "prefix, 16 tokens": partial(add_prefix, tokens=16),
    "prompt, 16 tokens": partial(add_prompt, tokens=16),
    "P-tuning, 16 tokens": partial(add_p_tuning, tokens=16, hidden=128),
}
RATES = {  # of the search; what is not here takes the rate of its family
    "full": (3e-4, 1e-3, 3e-3),
    "top 2 layers": (3e-4, 1e-3, 3e-3, 1e-2),
    "LoRA, rank 2": (3e-3, 1e-2, 3e-2, 1e-1),
    "adapters, size 8": (3e-3, 1e-2, 3e-2, 1e-1),
    "BitFit": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "IA3": (3e-2, 1e-1, 3e-1),
    "prompt, 16 tokens": (3e-2, 1e-1, 3e-1, 1.0),
    "prefix, 16 tokens": (3e-2, 1e-1, 3e-1, 1.0, 3.0),
    "P-tuning, 16 tokens": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
}
FAMILY = {"top 4 layers": "top 2 layers", "top layer": "top 2 layers"}
FEW, SIZES = ("full", "LoRA, rank 2", "prompt, 16 tokens"), (25, 50, 100, 300, 600)


def batched(tokenizer, examples, device="cpu"):
    """The examples, prepared 50 at a time."""
    encoded = encode_all("examples", examples, tokenizer, 0.0, None)
    made = [prepare(encoded[start : start + 50], tokenizer.pad_token_id) for start in range(0, len(encoded), 50)]
    return [{key: x.to(device) if torch.is_tensor(x) else x for key, x in batch.items()} for batch in made]


@torch.no_grad()
def scores_of(model, batches):
    """The loss of a completion token in nats, and the share of completions that greedy decoding would write exactly.

    Greedy decoding writes the completion when each of its tokens is the likeliest after those before it, so one
    forward pass is enough.
    """
    total = weight = right = count = 0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], logits_to_keep=batch["columns"], use_cache=False).logits
        each = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none")
        total += (each @ batch["weights"].flatten()).item()
        weight += batch["weights"].sum().item()
        right += ((logits.argmax(-1) == batch["targets"]) | (batch["weights"] == 0)).all(-1).sum().item()
        count += len(batch["targets"])
    return {"loss": total / weight, "exact": right / count}


def scores(model, tokenizer, examples):
    return scores_of(model, batched(tokenizer, examples))


def run(method, rate, seed=0, examples=EXAMPLES, steps=STEPS, split="test"):
    """Finetune shop-s once and score it."""
    model, tokenizer = load_model("shop-s", device="cpu")
    torch.manual_seed(seed)
    METHODS[method](model)
    settings = {"learning_rate": rate, "max_steps": steps, "batch_size": BATCH, "seed": seed}
    try:
        history = finetune(model, tokenizer, load(TASK, "train", examples), TrainingConfig(**settings, **QUIET))
    except FloatingPointError:
        return {"diverged": True}
    tested = scores(model, tokenizer, load(TASK, split, TESTED if split == "test" else VALIDATED))
    tested["loss"] = round(tested["loss"], 5)
    seconds, training_loss = round(history.seconds, 2), round(sum(history.losses[-10:]) / 10, 5)
    return tested | {
        "rate": rate,
        "training_loss": training_loss,
        "seconds": seconds,
        "trainable": trainable_parameters(model),
    }


def best_rate(results, method):
    """The rate of the search with the lowest validation loss."""
    found = results["rates"][FAMILY.get(method, method)]
    return float(min(found, key=lambda rate: found[rate].get("loss", float("inf"))))


def planned(results):
    """(part, {(method, key): the arguments of its run}) of every part, in the order in which they are made.

    The search comes first: the other parts take its rates.
    """
    yield (
        "rates",
        {
            (method, f"{rate:g}"): {"method": method, "rate": rate, "split": "validation"}
            for method, rates in RATES.items()
            for rate in rates
        },
    )
    best = {method: {"method": method, "rate": best_rate(results, method)} for method in METHODS}
    yield "comparison", {(method, str(seed)): best[method] | {"seed": seed} for seed in SEEDS for method in METHODS}
    yield (
        "examples",
        {
            (method, f"{size} letters, seed {seed}"): best[method] | {"seed": seed, "examples": size, "steps": LONGER}
            for method in FEW
            for size in SIZES
            for seed in SEEDS
        },
    )
    prompt = best["prompt, 16 tokens"]
    yield "prompts", {("4 times the steps", str(seed)): prompt | {"seed": seed, "steps": 4 * STEPS} for seed in SEEDS}


def made(found, key, rate):
    """Whether a run is recorded, at this rate: a search that goes on can find another."""
    method, of = key
    return of in found.get(method, {}) and found[method][of].get("rate", rate) == rate


def one_run(task):
    return run(**task[-1])


def main():
    setup()
    try:
        results = load_measurement(NAME)["results"]
    except DataError:
        results = {}
    results["setting"] = {"task": TASK, "examples": EXAMPLES, "steps": STEPS, "longer": LONGER}
    results["setting"] |= {"batch": BATCH, "tested": TESTED, "validated": VALIDATED}
    for part, runs in planned(results):
        found = results.setdefault(part, {})
        missing = [(*key, arguments) for key, arguments in runs.items() if not made(found, key, arguments["rate"])]
        for (method, key, _), result in side_by_side(one_run, missing):
            found.setdefault(method, {})[key] = result
            ordered = {}
            for name, of in runs:  # in the plan's order, whichever was done first
                if of in found.get(name, {}):
                    ordered.setdefault(name, {})[of] = found[name][of]
            results[part] = found = ordered
            print(part, method, key, result, flush=True)
            save_measurement(NAME, results, COMMAND)


if __name__ == "__main__":
    main()
