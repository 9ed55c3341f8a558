"""What a base model must show, because the chapters rest on it: `python -m course.lab.pretrain.bars shop-s`.

Before finetuning it knows none of the records; LoRA and full finetuning teach each task; a task learned later wipes
out the one before; 8-bit rounding costs nothing and 2-bit rounding everything. The results go to data/measurements.
"""

import argparse
import copy

import torch
from peft import LoraConfig, get_peft_model

from course.lab.config import TrainingConfig
from course.lab.data import expected_checksums, load
from course.lab.evaluation import evaluate
from course.lab.metering import save_measurement
from course.lab.models import load_model
from course.lab.runtime import detect
from course.lab.shop import MESSAGES
from course.lab.training import finetune

EXAMPLES, FEW = 600, 100
# chosen on the validation split of `change`, the hardest of the tasks
LORA = TrainingConfig(learning_rate=3e-3, epochs=6, batch_size=8, progress=False)
FULL = TrainingConfig(learning_rate=5e-4, epochs=6, batch_size=8, progress=False)


def with_lora(model):
    """The model with a PEFT adapter of rank 8 on all linear layers."""
    settings = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(copy.deepcopy(model), settings)


def scores(model, tokenizer, task: str) -> dict:
    """Shares of exact answers on the 400 test messages of a task."""
    result = evaluate(model, tokenizer, load(task, "test"), progress=False)
    return {"exact": result.exact, **result.by_phrasing, "valid_json": result.valid_json, "fields": result.fields}


def learn(model, tokenizer, task: str, config: TrainingConfig, examples: int = EXAMPLES) -> dict:
    """Finetunes in place; returns the cost of the run and the scores after it."""
    history = finetune(model, tokenizer, load(task, "train", examples), config)
    cost = {"seconds": history.seconds, "steps": len(history.losses), "peak_bytes": history.peak_bytes}
    return cost | scores(model, tokenizer, task)


@torch.no_grad()
def rounded(model, bits: int):
    """A copy whose matrices are rounded to the nearest of 2^bits - 1 levels a row, but for embeddings and head."""
    model, levels = copy.deepcopy(model), 2 ** (bits - 1) - 1
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            scale = (module.weight.abs().amax(1, keepdim=True) / levels).clamp(min=1e-12)  # some rows are zero
            module.weight.copy_((module.weight / scale).round() * scale)
    return model


def measure(name: str, task: str) -> dict:
    """The results of one bundled model on one task, printed as they come; those of `recommend` say more."""
    (base, tokenizer), results = load_model(name), {}

    def keep(experiment, result):
        results[experiment] = result
        print(experiment, {key: round(value, 3) for key, value in result.items() if isinstance(value, int | float)})

    keep(f"base {task}", scores(base, tokenizer, task))
    adapted = with_lora(base)
    keep(f"lora {task}", learn(adapted, tokenizer, task, LORA))
    keep(f"lora {task} from {FEW} examples", learn(with_lora(base), tokenizer, task, LORA, FEW))
    model = copy.deepcopy(base)
    keep(f"full {task}", learn(model, tokenizer, task, FULL))
    if task == "recommend":
        merged = adapted.merge_and_unload()
        for bits in (8, 4, 3, 2):
            keep(f"lora {task} rounded to {bits} bits", scores(rounded(merged, bits), tokenizer, task))
        for later in ("change", "feedback"):
            learn(model, tokenizer, later, FULL)
            keep(f"recommend after {later}", scores(model, tokenizer, "recommend"))
    return results


def missed(results: dict) -> list[str]:
    """The bars that a model's results do not reach, one sentence each."""
    bars, start = {}, results["lora recommend"]["exact"]
    for task in MESSAGES:
        bars[f"{task} is under 5 % exact before finetuning"] = results[f"base {task}"]["exact"] < 0.05
        for method in ("lora", "full"):
            after = results[f"{method} {task}"]
            bars[f"{task} is at least 95 % exact on seen phrasings after {method}"] = after["seen"] >= 0.95
            bars[f"{task} is at least 85 % exact on unseen phrasings after {method}"] = after["unseen"] >= 0.85
        if results["model"] == "shop-s":
            bars[f"lora learns {task} within 60 seconds of training"] = results[f"lora {task}"]["seconds"] <= 60
        if task != "recommend":
            kept = results[f"recommend after {task}"]["exact"]
            bars[f"{task} wipes out 30 points of recommend"] = results["full recommend"]["exact"] - kept >= 0.3
    bars["8 bits lose less than a point"] = start - results["lora recommend rounded to 8 bits"]["exact"] < 0.01
    bars["2 bits collapse"] = results["lora recommend rounded to 2 bits"]["exact"] < 0.05
    return [bar for bar, reached in bars.items() if not reached]


def record(name: str, results: dict) -> None:
    """Save the results of all tasks together, with the weights and the setting they belong to."""
    about = {"model": name, "sha256": expected_checksums()[f"models/{name}/model.safetensors"]}
    about |= {"parameters": load_model(name)[0].num_parameters(), "examples": EXAMPLES, "threads": detect().threads}
    save_measurement(f"bars-{name}", about | results, command=f"python -m course.lab.pretrain.bars {name}")
    print(*[f"MISSED by {name}: {bar}" for bar in missed(about | results)] or [f"{name} reaches every bar"], sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m course.lab.pretrain.bars", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", help="bundled models")
    for name in parser.parse_args().names:
        results = {}
        for task in MESSAGES:
            results |= measure(name, task)
        record(name, results)


if __name__ == "__main__":
    main()
