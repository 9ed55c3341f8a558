"""The long measurements of chapter 08, one sweep a name: `python tests/lora_sweeps.py ranks`.

Each run is kept in data/measurements as soon as it is done, and a run that is there is skipped. All are in FP32. The
task is `change` (96 letters, 48 steps of 8), where methods still differ; the score is the share of 150 test letters
whose answer is right to the last token, and the loss on them.
"""

import itertools
import math
import random
import sys

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft_sweeps import scores
from sweeps import best_recorded, keep_runs
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, get_scheduler

from course import load_model
from course.lab import data
from course.lab.config import TrainingConfig
from course.lab.losses import encode_all, prepare, weighted_loss
from course.lab.runtime import setup
from course.lab.subspace import add_random_subspace
from course.lab.training import finetune
from course.lora import LoRAConfig, add_lora, merge_lora
from course.peft_methods import trainable_parameters

TASK, EXAMPLES, STEPS, BATCH, TESTED = "change", 96, 48, 8, 150
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SEEDS = (0, 1, 2)
QUIET = {"progress": False, "autocast": False}  # FP32, so that a record means the same on every processor


def base(name="shop-s", pretrained=True):
    model, tokenizer = load_model(name, device="cpu")
    if not pretrained:
        torch.manual_seed(0)
        model = LlamaForCausalLM(model.config).eval()
    return model, tokenizer


def task_run(adapt=lambda model: model, name="shop-s", pretrained=True, rate=1e-2, seed=0):
    """Finetune on the task once; `adapt` decides what trains."""
    model, tokenizer = base(name, pretrained)
    torch.manual_seed(seed)
    model = adapt(model)
    settings = {"learning_rate": rate, "max_steps": STEPS, "batch_size": BATCH, "seed": seed}
    history = finetune(model, tokenizer, data.load(TASK, "train", EXAMPLES), TrainingConfig(**settings, **QUIET))
    trained = trainable_parameters(model)
    tested = scores(model, tokenizer, data.load(TASK, "test", TESTED))
    return tested | {"trainable": trained, "seconds": round(history.seconds, 1)}


def lora(rank, targets=ALL, alpha=None):
    return lambda model: add_lora(model, LoRAConfig(rank, alpha or 2 * rank, targets))


def full_runs():
    for rate, seed in ((rate, seed) for rate in (3e-4, 6e-4, 1.2e-3) for seed in SEEDS):
        yield {"rate": rate, "seed": seed}, lambda rate=rate, seed=seed: task_run(rate=rate, seed=seed)


def rank_runs():
    grid = [(rate, seed) for seed in SEEDS for rate in (1e-2, 4e-3)]
    for rate, seed in grid:
        for rank in (1, 2, 4, 8, 16, 32, 64):
            settings = {"rank": rank, "rate": rate, "seed": seed}
            yield settings, lambda r=rank, rate=rate, seed=seed: task_run(lora(r), rate=rate, seed=seed)


WHERE = [
    *((8, (name,)) for name in ALL[:4]), (4, ("q_proj", "k_proj")), (4, ("q_proj", "v_proj")), (2, ALL[:4]),
    *((4, (name,)) for name in ALL[4:]), (1, ALL),
]  # fmt: skip


def where_runs():
    for seed in SEEDS:
        for rank, targets in WHERE:
            settings = {"rank": rank, "targets": list(targets), "seed": seed}
            yield settings, lambda r=rank, t=targets, seed=seed: task_run(lora(r, t), seed=seed)


def subspace_run(dimension, pace, **model):
    """The shift of all weights together is as long as z, so the rate that fits goes with 1 / √d; 0 is all of them."""
    adapt = (lambda m: add_random_subspace(m, dimension)) if dimension else lambda m: m
    return task_run(adapt, rate=pace / math.sqrt(dimension) if dimension else pace, **model)


def intrinsic_runs():
    grid = [(True, d, p) for d in (300, 1000, 3000) for p in (6, 12)]
    grid += [(True, d, p) for d in (10_000, 30_000, 100_000) for p in (3, 6)]
    grid += [
        (True, 1000, 24),
        (True, 3000, 24),
        (True, 10_000, 12),
        (True, 30_000, 12),
        (True, 1000, 48),
        (True, 3000, 48),
        (True, 300, 24),
    ]
    grid += [(False, 3000, 24), (False, 30_000, 12), (False, 0, 1.2e-3)]
    for pretrained, d, p in grid:
        settings = {"model": "shop-s", "pretrained": pretrained, "dimension": d, "pace": p}
        yield settings, lambda pretrained=pretrained, d=d, p=p: subspace_run(d, p, pretrained=pretrained)


def intrinsic_m_runs():
    yield from larger_model_runs("shop-m")


def intrinsic_l_runs():
    yield from larger_model_runs("shop-l")


def larger_model_runs(name):
    grid = [(0, rate) for rate in (3e-4, 6e-4, 1.2e-3)] + [(d, 24) for d in (300, 1000, 3000, 10_000)]
    for d, p in [*grid, (1000, 48), (3000, 48), (10_000, 12), (30_000, 12)]:
        settings = {"model": name, "pretrained": True, "dimension": d, "pace": p}
        yield settings, lambda d=d, p=p: subspace_run(d, p, name=name)


def intrinsic_wide_runs():
    """The larger models beyond what the two sweeps above have tried, which was too slow a pace."""
    for name, d, p in (("shop-l", 30_000, 24), ("shop-m", 30_000, 24), ("shop-l", 10_000, 48)):
        settings = {"model": name, "pretrained": True, "dimension": d, "pace": p}
        yield settings, lambda name=name, d=d, p=p: subspace_run(d, p, name=name)


def alpha_runs():
    for ratio in (1 / 8, 1 / 2, 2, 8):
        for rate in (2.5e-3, 1e-2, 4e-2, 1.6e-1):  # along a diagonal their product is the same
            settings = {"rank": 8, "ratio": ratio, "rate": rate}
            yield settings, lambda a=ratio, rate=rate: task_run(lora(8, alpha=8 * a), rate=rate)


def facts_run(adapt, rate, steps):
    """Learn by heart on which shelf each of 60 things lies, four digits that nothing foretells."""
    model, tokenizer = base()
    torch.manual_seed(0)
    model = adapt(model)
    names = sorted({example["name"] for example in data.load("facts", "train")})
    dice = random.Random(8)
    asked = dice.sample(names, 60)
    examples = [{"prompt": f"Shelf of the {name}: ", "completion": f"{dice.randrange(10_000):04d}"} for name in asked]
    settings = TrainingConfig(learning_rate=rate, max_steps=steps, batch_size=20, **QUIET)
    history = finetune(model, tokenizer, examples, settings)
    trained = trainable_parameters(model)
    return scores(model, tokenizer, examples) | {"trainable": trained, "seconds": round(history.seconds, 1)}


def facts_runs():
    methods = {"full": lambda m: m, "rank 1 on q and v": lora(1, ("q_proj", "v_proj"))}
    methods |= {f"rank {rank}": lora(rank) for rank in (1, 8, 64)}
    grid = [(name, 5e-3 if name != "full" else 1.2e-3, 160) for name in methods] + [("rank 8", 5e-3, 480)]
    grid += [(f"rank {rank}", 2e-3, 160) for rank in (64, 8)]
    grid += [(f"rank {rank}", rate, 160) for rank in (1, 8) for rate in (1e-2, 2e-2)]
    for name, rate, steps in grid:
        settings = {"method": name, "rate": rate, "steps": steps}
        yield settings, lambda a=methods[name], rate=rate, steps=steps: facts_run(a, rate, steps)


TINY = {
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 32,
}  # fmt: skip


def text_batches(tokenizer, split, steps, rows=8, seq=128):
    """The shop's text as (rows, seq + 1) tokens a step."""
    stream = []
    for record in data.load("pretraining", split):
        stream += [*tokenizer(record["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(stream) > steps * rows * (seq + 1):
            break
    return torch.tensor(stream[: len(stream) // (rows * (seq + 1)) * rows * (seq + 1)]).view(-1, rows, seq + 1)


def text_loss(model, ids):
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


class GaLore(torch.optim.AdamW):
    """AdamW that sees a matrix's gradient only along its first `rank` singular vectors, found anew at times.

    They are those of the shorter side, as in the paper (Zhao et al. 2024, arXiv 2403.03507).
    """

    def __init__(self, matrices, rank, every, **settings):
        self.matrices, self.rank, self.every, self.count = list(matrices), rank, every, 0
        self.small = [nn.Parameter(torch.zeros(rank, max(p.shape))) for p in self.matrices]
        super().__init__(self.small, **settings)

    def step(self):
        gradients = [wide(p.grad) for p in self.matrices]
        if self.count % self.every == 0:
            self.basis = [torch.linalg.svd(g, full_matrices=False)[0][:, : self.rank] for g in gradients]
        self.count += 1
        for small, basis, gradient in zip(self.small, self.basis, gradients, strict=True):
            small.grad = basis.T @ gradient
            small.data.zero_()
        super().step()
        with torch.no_grad():
            for p, small, basis in zip(self.matrices, self.small, self.basis, strict=True):
                wide(p).add_(basis @ small)
                p.grad = None


def wide(matrix):
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def pretraining_run(method, warm, rate, inner_rate, seed=0, rank=8, every=50, steps=400):
    """Pretrain a tiny model; after `warm` full-rank steps by LoRA that is merged and begun anew every `every` steps.

    The embedding and the norms train in each of the ways, at `rate`; "frozen" trains nothing else once it is warm.
    The matrices, or what stands for them, train at `inner_rate`.
    """
    full_size, tokenizer = base()
    tiny = full_size.config.to_dict() | TINY
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**tiny))
    batches = text_batches(tokenizer, "train", steps)
    matrices = [m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    outer = torch.optim.AdamW(rest, lr=rate, weight_decay=0.0)
    inner = torch.optim.AdamW(matrices, lr=inner_rate, weight_decay=0.0)
    if method == "GaLore":
        inner = GaLore(matrices, rank, every, lr=inner_rate, weight_decay=0.0)
    begun = 0
    for step in range(steps):
        if method == "frozen" and step == warm:
            for p in matrices:
                p.requires_grad_(False)
        again = method == "ReLoRA" and step > warm and (step - warm) % every == 0
        if again:
            merge_lora(model, unload=True)
        if again or (method.endswith("LoRA") and step == warm):
            add_lora(model, LoRAConfig(rank, 2 * rank))
            for p in rest:
                p.requires_grad_(True)
            thin = [p for n, p in model.named_parameters() if "lora_" in n]
            inner, begun = torch.optim.AdamW(thin, lr=inner_rate, weight_decay=0.0), step
        share = min(1, (steps - step) / (0.3 * steps), (step + 1) / 10)
        for optimizer, its_rate, since in ((outer, rate, 0), (inner, inner_rate, begun)):
            for group in optimizer.param_groups:
                group["lr"] = its_rate * share * min(1, (step - since + 1) / 10)
        text_loss(model, batches[step]).backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        for optimizer in (outer, inner):
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        held_out = [text_loss(model, ids).item() for ids in text_batches(tokenizer, "validation", 12)[:12]]
    return {"loss": sum(held_out) / len(held_out)}


PRETRAINED = [
    *(("full", 0), ("GaLore", 0), ("LoRA", 0), ("ReLoRA", 0), ("ReLoRA", 20), ("ReLoRA", 100), ("ReLoRA", 200)),
    *(("frozen", 0), ("frozen", 20), ("frozen", 100)),
]


def pretraining_runs():
    for method, warm in PRETRAINED:
        for rate, inner_rate in itertools.product((6e-3, 1.2e-2, 2.4e-2), (5e-4, 1e-3, 2e-3)):
            if method != "frozen" or warm or inner_rate == 1e-3:  # what never trains needs no rate
                settings = {"method": method, "warm": warm, "rate": rate, "inner_rate": inner_rate}
                yield settings, lambda how=settings: pretraining_run(**how)


def pretraining_seed_runs():
    """Each of the ways at its best pair of rates, with other seeds."""
    for method, warm in PRETRAINED:
        best = best_recorded("lora", "pretraining", method=method, warm=warm)
        for seed in (1, 2):
            settings = {key: best[key] for key in best if key != "result"} | {"seed": seed}
            yield settings, lambda how=settings: pretraining_run(**how)


def variant_run(settings, rate, ratio=None, seed=0):
    """One of PEFT's kinds of LoRA on the task, in a loop of its own, since LoRA+ has an optimizer of its own."""
    model, tokenizer = base()
    for p in model.parameters():  # DoRA divides by the length of each row, and some rows are zero
        p.data[p.data.norm(dim=-1) == 0] += 1e-6
    torch.manual_seed(seed)
    model = get_peft_model(model, LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": list(ALL)} | settings))
    encoded = encode_all("examples", data.load(TASK, "train", EXAMPLES), tokenizer, 0.0, None)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    if ratio:
        optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=rate, loraplus_lr_ratio=ratio)
    schedule, dice = get_scheduler("cosine", optimizer, 3, STEPS), random.Random(seed)
    for step in range(STEPS):
        if step * BATCH % EXAMPLES == 0:
            dice.shuffle(encoded)
        batch = prepare([encoded[(step * BATCH + i) % EXAMPLES] for i in range(BATCH)], tokenizer.pad_token_id)
        (weighted_loss(model, batch) / batch["weights"].sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return scores(model.eval(), tokenizer, data.load(TASK, "test", TESTED))


VARIANTS = {  # how each is set, and its rates
    "LoRA": ({}, (4e-3, 1e-2, 2.5e-2)),
    "DoRA": ({"settings": {"use_dora": True}}, (4e-3, 1e-2, 2.5e-2)),
    "PiSSA": ({"settings": {"init_lora_weights": "pissa"}}, (2e-3, 4e-3, 1e-2)),
    "LoRA+": ({"ratio": 16}, (1e-3, 2.5e-3, 6e-3)),
    "LoRA rank 64": ({"settings": {"r": 64}}, (4e-3, 1e-2, 2.5e-2)),
    "rsLoRA rank 64": ({"settings": {"r": 64, "use_rslora": True}}, (2e-3, 4e-3, 1e-2)),
}


def variant_runs():
    for seed in SEEDS[:2]:
        for name, (how, rates) in VARIANTS.items():
            for rate in rates:
                settings = {"settings": {}} | how | {"rate": rate, "seed": seed}
                yield {"variant": name} | settings, lambda how=settings: variant_run(**how)


SWEEPS = {
    "full": full_runs, "ranks": rank_runs, "where": where_runs, "intrinsic": intrinsic_runs,
    "intrinsic-m": intrinsic_m_runs, "intrinsic-l": intrinsic_l_runs, "intrinsic-wide": intrinsic_wide_runs,
    "alpha": alpha_runs, "facts": facts_runs, "variants": variant_runs, "pretraining": pretraining_runs,
    "pretraining-seeds": pretraining_seed_runs,
}  # fmt: skip


def one_run(task):
    """The result of run number `task[1]` of a sweep."""
    name, number = task
    return list(SWEEPS[name]())[number][1]()


def main(names):
    """Run what is not yet recorded of these sweeps, and record it."""
    keep_runs("lora", {name: [settings for settings, _ in SWEEPS[name]()] for name in names}, one_run)


if __name__ == "__main__":
    setup()
    main(sys.argv[1:] or SWEEPS)
