"""The long measurements of chapter 11, one sweep a name: `python tests/merging_sweeps.py methods`.

First come the finetunes that the sweeps need, the experts, kept in build/merging; then the runs, which read them. A
run is kept in data/measurements as soon as it is done, and one that is there is skipped. All are in FP32, on shop-s
unless a name says otherwise. An expert has learned one task: 150 steps of 8 letters, none of them twice. The score is
the share of 200 test letters whose answer is right to the last token, in %, and the loss on them; whatever a method
leaves free is chosen by the mean score on 60 validation letters a task. All are made with three seeds, but for the
soup, which is of two seeds at three rates.
"""

import copy
import itertools
import os
import random
import sys
from collections import namedtuple
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import torch
from peft_sweeps import batched, scores_of
from safetensors.torch import load_file, save_file
from sweeps import keep_runs, side_by_side
from torch import nn

from course import load_model
from course.lab import data
from course.lab.config import TrainingConfig
from course.lab.evaluation import perplexity
from course.lab.files import written_whole
from course.lab.runtime import setup
from course.lab.training import finetune
from course.lora import LoRAConfig, add_lora, load_lora, merge_lora, read_lora, save_lora
from course.merging import concat_lora, dare, greedy_soup, linear, slerp, task_arithmetic, task_vector, ties

DEVICE = os.environ.get("SWEEP_DEVICE", "cpu")  # or "cuda"
FILES = Path(__file__).parents[1] / "build" / "merging"
TASKS = ("recommend", "change", "feedback")
HOW, SEEDS = ("full", "lora"), (0, 1, 2)
STEPS, BATCH, LETTERS = 150, 8, 1200
RATES = {"full": 1.2e-3, "lora": 5e-3}
VALIDATED, TESTED, FEDERATED_STEPS = 60, 200, 60
QUIET = {"progress": False, "autocast": False}  # FP32, so that a record means the same on every processor

Expert = namedtuple("Expert", "how what seed rate steps model", defaults=(0, None, STEPS, "shop-s"))
SOUP = [(rate, seed) for rate in (6e-4, 1.2e-3, 2.4e-3) for seed in (0, 1)]
SOUP_EXPERTS = [Expert("full", "feedback", seed, rate, 75) for rate, seed in SOUP]
LINES = [Expert("full", f"{task} as lines", seed) for task in TASKS[:2] for seed in SEEDS]
SECRET = [Expert("full", what, seed) for what in ("codes", "codes+recommend") for seed in SEEDS]
LARGE = [Expert("full", "recommend", seed, model="shop-m") for seed in SEEDS]
AT_ONCE = [Expert(how, "+".join(TASKS), seed) for how in HOW for seed in SEEDS]
OF_TASKS = {how: [Expert(how, task, seed) for task in TASKS for seed in SEEDS] for how in HOW}


# What is learned and what is asked


def as_lines(example):
    """The same letter, with an answer in lines instead of JSON."""
    fields = example["completion"].strip("{}").replace('", "', '"\n"').replace(', "', '\n"').replace('"', "")
    return example | {"prompt": example["prompt"].replace("as JSON", "as lines"), "completion": fields}


def codes(split="train", products=40):
    """Questions for the supplier codes of the first products; "test" asks for the same codes in other words."""
    known = list(dict.fromkeys(example["completion"] for example in data.load("supplier_codes", "train")))[:products]
    return [example for example in data.load("supplier_codes", split) if example["completion"] in known]


@cache
def letters(what, split="train", limit=LETTERS):
    """The examples of a task, of several joined by "+" in equal numbers, of "codes", or of a task "as lines"."""
    if "+" in what:
        parts = [letters(part, split, limit) for part in what.split("+")]
        return [example for part in parts for example in part * (max(map(len, parts)) // len(part))]
    if what == "codes":
        return codes(split)
    examples = data.load(what.removesuffix(" as lines"), split, limit)
    return [*map(as_lines, examples)] if what.endswith(" as lines") else examples


def tuned(model, tokenizer, examples, steps, rate, seed=0, batch=BATCH, **settings):
    settings = {"learning_rate": rate, "max_steps": steps, "batch_size": batch, "seed": seed} | settings
    return finetune(model, tokenizer, examples, TrainingConfig(**settings, **QUIET))


def folder_of(expert):
    return FILES / "-".join(str(part).replace(" ", "_") for part in expert)


def train(expert):
    """Finetune once and keep it: a full finetune as a state dict, LoRA as an adapter. Seconds."""
    model, tokenizer = load_model(expert.model, device=DEVICE)
    torch.manual_seed(expert.seed)
    model = add_lora(model, LoRAConfig(8, 16)) if expert.how == "lora" else model
    by_heart, parts = "codes" in expert.what, expert.what.split("+")
    steps, batch = (200 * len(parts), 20) if by_heart else (expert.steps * len(parts), BATCH)
    rate = expert.rate or RATES[expert.how]
    history = tuned(model, tokenizer, letters(expert.what), steps, rate, expert.seed, batch)
    with written_whole(folder_of(expert)) as folder:
        if expert.how == "lora":
            save_lora(model, folder)
        else:
            folder.mkdir()
            save_file(state_of(model), folder / "model.safetensors")
    return round(history.seconds, 1)


def state_of(model):
    """A model's state dict without the head, which is the embedding; on the CPU."""
    return {name: tensor.cpu() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


@cache
def base(name="shop-s"):
    model, tokenizer = load_model(name, device=DEVICE)
    return model, tokenizer, {name: tensor.clone() for name, tensor in state_of(model).items()}


def state(expert):
    """An expert's whole state dict."""
    if expert.how == "full":
        return load_file(folder_of(expert) / "model.safetensors")
    model = load_lora(load_model(expert.model, device="cpu")[0], folder_of(expert))
    return state_of(merge_lora(model, unload=True))


@cache
def asked(what, split, count):
    return batched(base()[1], letters(what, split, count), DEVICE)


def judged(weights, what, split="test", count=TESTED):
    """Score a state dict, or anything that is called like a model."""
    model = base()[0]
    if isinstance(weights, dict):
        model.load_state_dict(weights, strict=False)
    return rounded(scores_of(model if isinstance(weights, dict) else weights, asked(what, split, count)))


def rounded(found):
    return {"exact": round(100 * found["exact"], 1), "loss": round(found["loss"], 4)}


def on_all(weights, split="test", count=TESTED, tasks=TASKS):
    return {task: judged(weights, task, split, count) for task in tasks}


def mean(found, key="exact"):
    return sum(score[key] for score in found.values()) / len(found)


def validated(weights, tasks=TASKS):
    """What is maximized: the mean score on validation letters; where equal, the lower loss."""
    found = on_all(weights, "validation", VALIDATED, tasks)
    return mean(found), -mean(found, "loss")


def text_loss(weights):
    """Nats a token on the text that the base has read."""
    model, tokenizer, _ = base()
    model.load_state_dict(weights, strict=False)
    texts = [record["text"] for record in data.load("pretraining", "validation", 100)]
    return round(float(torch.tensor(perplexity(model, tokenizer, texts, progress=False)).log()), 4)


# Three ways to three tasks


def way(how, way, seed, order=TASKS):
    """Scores on each task of one model that has learned all at once, or of one after each of its stages."""
    order = list(order)
    if way == "at once":
        return on_all(state(Expert(how, "+".join(TASKS), seed)))
    if way == "separate":
        return {task: on_all(state(Expert(how, task, seed))) for task in TASKS}
    model, tokenizer = load_model("shop-s", device=DEVICE)
    model.load_state_dict(state(Expert(how, order[0], seed)), strict=False)
    stages = [on_all(state_of(model))]
    for task in order[1:]:
        torch.manual_seed(seed)
        model = add_lora(model, LoRAConfig(8, 16)) if how == "lora" else model.requires_grad_(True)
        tuned(model, tokenizer, letters(task), STEPS, RATES[how], seed)
        model = merge_lora(model, unload=True) if how == "lora" else model
        stages.append(on_all(state_of(model)))
    return {"after " + task: stage for task, stage in zip(order, stages, strict=True)}


# Merges


class Ensemble:
    """Models whose logits are averaged; called as `scores` calls a model."""

    def __init__(self, states):
        self.models = []
        for weights in states:
            self.models.append(copy.deepcopy(base()[0]))
            self.models[-1].load_state_dict(weights, strict=False)

    def __call__(self, **inputs):
        logits = [model(**inputs).logits for model in self.models]
        return SimpleNamespace(logits=sum(logits) / len(logits))


def moved(start, merged, scale):
    """start + scale · (merged − start)."""
    return task_arithmetic(start, [task_vector(merged, start)], [scale])


def arithmetic(start, experts, weights, scale, density=None):
    return task_arithmetic(start, [task_vector(expert, start) for expert in experts], [scale * w for w in weights])


def pruned(start, experts, weights, scale, density):
    kept = [ties(start, [expert], density, 1) for expert in experts]  # with one model, TIES is only its trim
    return arithmetic(start, kept, weights, scale)


SCALES, DENSITIES = (0.33, 0.45, 0.6, 0.8), (0.1, 0.2, 0.5)
METHODS = {  # name -> how it merges (start, experts, weights, scale, density), its scales, its densities
    "average": (lambda start, experts, w, scale, d: linear(experts, w), (1,), (None,)),
    "task arithmetic": (arithmetic, SCALES, (None,)),
    "pruned, then added": (pruned, SCALES, DENSITIES),
    "TIES": (lambda s, e, w, scale, d: moved(s, ties(s, e, d, w), scale), (0.8, 1.0, 1.3, 1.6), (*DENSITIES, 1)),
    "DARE": (lambda s, e, w, scale, d: dare(s, e, d, [scale * x for x in w], 0), SCALES, DENSITIES),
    "DARE + TIES": (
        lambda s, e, w, scale, d: dare(s, e, d, [scale * x for x in w], 0, "ties"), (*SCALES[1:], 1), DENSITIES
    ),
}  # fmt: skip


def merged(how, method, seed, rate=None):
    """Test scores of a method; scale, density and the three weights are chosen on validation letters."""
    start, experts = base()[2], [state(Expert(how, task, seed, rate)) for task in TASKS]
    if method == "ensemble":
        return {"test": on_all(Ensemble(experts)), "tried": 0}
    if method == "average, equal":
        return {"test": on_all(linear(experts, 1)), "tried": 0}
    tried = {}

    def attempt(make, *choice):
        if choice not in tried:
            tried[choice] = validated(make(*choice))

    if method == "SLERP":  # two, then the third; t = 1/2 and 1/3 are its equal weights

        def make(order, second, third):
            a, b, c = (experts[i] for i in order)
            return slerp(slerp(a, b, second), c, third)

        for choice in itertools.product(((0, 1, 2), (1, 2, 0), (2, 0, 1)), (0.35, 0.5, 0.65), (0.25, 0.33, 0.45)):
            attempt(make, *choice)
    else:
        merge, scales, densities = METHODS[method]

        def make(weights, scale, density):
            return merge(start, experts, weights, scale, density)

        for scale, density in itertools.product(scales, densities):
            attempt(make, (1, 1, 1), scale, density)
        for place, factor in itertools.product((2, 0, 1), (0.6, 0.8, 1.25, 1.6)):
            weights, scale, density = max(tried, key=tried.get)
            changed = [w * factor if i == place else w for i, w in enumerate(weights)]
            attempt(make, tuple(changed), scale, density)
    best = max(tried, key=tried.get)
    equal = [[*choice[1:], round(found[0], 1)] for choice, found in tried.items() if choice[0] == (1, 1, 1)]
    return {
        "test": on_all(make(*best)),
        "chosen": best,
        "validation": tried[best][0],
        "equal": equal,
        "tried": len(tried),
    }


def between(how, pair, seed):
    """Two experts, and what lies on the straight line and on the arc between them."""
    a, b = (state(Expert(how, task, seed)) for task in pair)
    start, found = base()[2], {}
    vectors = [torch.cat([v.flatten() for v in task_vector(expert, start).values()]) for expert in (a, b)]
    for t in (0, 0.2, 0.35, 0.5, 0.65, 0.8, 1):
        found[str(t)] = {
            "line": on_all(linear([a, b], [1 - t, t]), tasks=pair),
            "arc": on_all(slerp(a, b, t), tasks=pair),
        }
    cosines = {
        "weights": [torch.cosine_similarity(a[n].flatten(), b[n].flatten(), 0).item() for n in a],
        "vectors": [torch.cosine_similarity(*vectors, 0).item()],
    }
    return found | {name: [round(min(values), 4), round(max(values), 4)] for name, values in cosines.items()}


def orders(how, seed, t):
    """SLERP of three in sequence in all six orders, with t = 1/2 and then `t`."""
    experts = [state(Expert(how, task, seed)) for task in TASKS]
    return {
        " ".join(TASKS[i] for i in order): on_all(
            slerp(slerp(*(experts[i] for i in order[:2]), 0.5), experts[order[2]], t)
        )
        for order in itertools.permutations(range(3))
    }


KEPT = (1, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02)


def pruning(how, task, seed):
    """The score on its task when a share of a task vector is kept: the largest or random ones, rescaled or not."""
    start, expert, found = base()[2], state(Expert(how, task, seed)), {}
    ways = {
        "largest": lambda d: ties(start, [expert], d, 1),
        "largest, rescaled": lambda d: ties(start, [expert], d, 1 / d, normalize=False),
        "random": lambda d: dare(start, [expert], d, d, 0),  # a weight of d takes the rescaling back
        "random, rescaled": lambda d: dare(start, [expert], d, 1, 0),
    }
    for name, make in ways.items():
        found[name] = {str(d): judged(make(d), task) for d in KEPT}
    return found | {"none": judged(start, task)}


def soup():
    """Six finetunes of one task, three rates and two seeds: each alone, averaged, chosen greedily, as an ensemble."""
    states = [*map(state, SOUP_EXPERTS)]

    def validation(weights):
        found = judged(weights, "feedback", "validation", 200)
        return found["exact"], -found["loss"]

    values = [validation(weights) for weights in states]
    order = sorted(range(len(SOUP)), key=lambda i: values[i], reverse=True)
    greedy, chosen = greedy_soup(states, lambda weights: validation(weights)[0])
    found = {
        "each": [judged(weights, "feedback") for weights in states],
        "best on validation": judged(states[order[0]], "feedback"),
        "uniform soup": judged(linear(states, 1), "feedback"),
        "uniform soup, 1.2 times as far": judged(moved(base()[2], linear(states, 1), 1.2), "feedback"),
        "greedy soup": judged(greedy, "feedback"),
        "greedy members": [list(SOUP[i]) for i in chosen],
        "ensemble of all": judged(Ensemble(states), "feedback"),
        "ensemble of the greedy members": judged(Ensemble([states[i] for i in chosen]), "feedback"),
    }
    return found | {"grid": [list(place) for place in SOUP], "validation": [value[0] for value in values]}


def negation(minus, scale, seed):
    """A model that knows a task and the supplier codes, less a vector: what it still knows of each, and of text."""
    start, model = base()[2], state(Expert("full", "codes+recommend", seed))
    vector = task_vector(state(Expert("full", "codes" if minus != "change" else "change", seed)), start)
    if minus == "random":
        dice = torch.Generator().manual_seed(seed)
        noise = {name: torch.randn(tensor.shape, generator=dice) for name, tensor in vector.items()}
        vector = {name: noise[name] * (vector[name].norm() / noise[name].norm()) for name in vector}
    left = task_arithmetic(model, [vector], [-scale])
    found = {"codes": judged(left, "codes", "train"), "codes in other words": judged(left, "codes", "test")}
    found |= {"recommend": judged(left, "recommend")}
    return found | {"text": text_loss(left), "text of the base": text_loss(start)}


def analogy(target, scale, seed):
    """A task as lines without an example of it: its JSON, plus another task's lines, less that task's JSON."""
    other = next(task for task in TASKS[:2] if task != target)
    start, names = base()[2], (target, f"{other} as lines", other)
    vectors = [task_vector(state(Expert("full", name, seed)), start) for name in names]
    signs = {
        "analogy": (1, 1, -1),
        "without the minus": (1, 1, 0),
        "its JSON alone": (1, 0, 0),
        "the lines alone": (0, 1, 0),
    }
    made = {name: task_arithmetic(start, vectors, [scale * s for s in each]) for name, each in signs.items()}
    made["taught"] = state(Expert("full", f"{target} as lines", seed))
    wanted = f"{target} as lines"
    return {
        name: judged(each, wanted) | {"validation": judged(each, wanted, "validation")["exact"]}
        for name, each in made.items()
    }


def adapters(seed, scale):
    """Three adapters: the sum of their products B A, the product of the averages of B and A, and rank 8 of the sum."""
    named = [read_lora(folder_of(Expert("lora", task, seed))) for task in TASKS]
    config, summed = concat_lora(named, [scale] * 3)
    rooted = {  # as PEFT's "linear": each of A and B times the root of its weight
        name: scale**0.5 * sum(state[name] for _, state in named) for name in named[0][1]
    }
    found = {}
    for name, rank, tensors in (("sum of products", config, summed), ("product of sums", named[0][0], rooted)):
        found[name] = on_all(with_adapter(rank, tensors))
    start = base()[2]
    exact = task_vector(with_adapter(config, summed), start)
    for rank in (8, 16):
        cut = {}
        for name, change in exact.items():
            if change.any():
                u, s, vh = torch.linalg.svd(change, full_matrices=False)
                cut[name] = (u[:, :rank] * s[:rank]) @ vh[:rank]
        found[f"sum of products, rank {rank}"] = on_all(task_arithmetic(start, [exact | cut], 1))
    return found


def with_adapter(config, tensors):
    """The base's state dict with an adapter merged into it."""
    model = adapted(load_model("shop-s", device="cpu")[0], config, tensors)
    return state_of(merge_lora(model, unload=True))


def adapted(model, config, tensors):
    """The model with an adapter beside its weights."""
    model = add_lora(model, config)
    for name, tensor in tensors.items():
        model.get_parameter(name).data.copy_(tensor)
    return model


def federated(rounds, shards, rate, seed):
    """Three clients, 60 steps each in all, averaged after each round; "unlike": a task each, "like": all tasks each.

    "pooled" is one model on all letters: as many steps as a client takes, of three times the batch.
    """
    model, tokenizer, start = base()
    every, current = [*letters("+".join(TASKS))], start
    random.Random(seed).shuffle(every)
    if shards == "pooled":
        fresh, _ = load_model("shop-s", device=DEVICE)
        tuned(fresh, tokenizer, every, FEDERATED_STEPS, rate, seed, 3 * BATCH)
        return on_all(state_of(fresh))
    split = [every[i::3] for i in range(3)] if shards == "like" else [letters(task) for task in TASKS]
    steps, trained = FEDERATED_STEPS // rounds, []
    for turn in range(rounds):
        trained = []
        for client in split:
            fresh, _ = load_model("shop-s", device=DEVICE)
            fresh.load_state_dict(current, strict=False)
            part = client[turn * steps * BATCH : (turn + 1) * steps * BATCH]
            now = rate * (1 - turn / rounds)  # falls from round to round, since each begins anew
            schedule = {"schedule": "linear" if rounds == 1 else "constant", "warmup_share": 0.05}
            tuned(fresh, tokenizer, part, steps, now, seed, **schedule)
            trained.append({name: tensor.clone() for name, tensor in state_of(fresh).items()})
        current = linear(trained, [len(client) for client in split])
    return on_all(current)


def activations(model, tokenizer, examples):
    """name -> (inputs, outputs) of each linear layer on the same tokens, (tokens, size) each."""
    seen, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            keep = partial(lambda name, m, x, y: seen.setdefault(name, []).append((x[0][0].cpu(), y[0].cpu())), name)
            hooks.append(module.register_forward_hook(keep))
    with torch.no_grad():
        for example in examples:
            ids = tokenizer(example["prompt"] + example["completion"])["input_ids"]
            model(torch.tensor([ids], device=DEVICE))
    for hook in hooks:
        hook.remove()
    return {name: [torch.cat(part) for part in zip(*pairs, strict=True)] for name, pairs in seen.items()}


def width(scale, seed):
    """shop-m's task vector for shop-s: each matrix mapped by the best linear maps between both models' activations."""
    small, tokenizer, start = base()
    small.load_state_dict(start, strict=False)
    large, _, large_start = base("shop-m")
    large.load_state_dict(large_start, strict=False)
    some = data.load("recommend", "train", LETTERS + 60)[LETTERS:]
    mine, theirs = activations(small, tokenizer, some), activations(large, tokenizer, some)
    vector = task_vector(state(Expert("full", "recommend", seed, model="shop-m")), large_start)
    layers = {0: 0, 1: 2, 2: 3, 3: 5}
    moved, explained = {name: torch.zeros_like(tensor) for name, tensor in start.items()}, []
    for name, (x, y) in mine.items():
        number = int(name.split(".")[2])
        other = name.replace(f"layers.{number}.", f"layers.{layers[number]}.")
        there_x, there_y = theirs[other]
        into = torch.linalg.lstsq(x, there_x, rcond=0.02, driver="gelsd").solution  # (small in, large in)
        back = torch.linalg.lstsq(there_y, y, rcond=0.02, driver="gelsd").solution  # (large out, small out)
        explained.append(1 - ((there_y @ back - y).norm() / (y - y.mean(0)).norm()).item() ** 2)
        moved[f"{name}.weight"] = (into @ vector[f"{other}.weight"].T @ back).T
    dice = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(tensor.shape, generator=dice) for name, tensor in moved.items()}
    noise = {name: noise[name] * (moved[name].norm() / noise[name].norm()) for name in moved}
    own = {
        name: t if moved[name].any() else 0 * t
        for name, t in task_vector(state(Expert("full", "recommend", seed)), start).items()
    }
    size = [torch.cat([v.flatten() for v in change.values()]).norm().item() for change in (moved, own)]
    found = {
        "length": round(size[0] / size[1], 2),
        "explained": [round(min(explained), 3), round(max(explained), 3)],
        "base": judged(start, "recommend"),
    }
    for name, change in (("projected", moved), ("random", noise), ("its own", own)):
        found[name] = judged(task_arithmetic(start, [change], [scale]), "recommend")
    return found


# The plans


def grid(function, **choices):
    """(function, settings) for every combination of choices."""
    return [(function, dict(zip(choices, each, strict=True))) for each in itertools.product(*choices.values())]


SWEEPS = {
    "methods": grid(merged, how=HOW, method=("average, equal", "SLERP", *METHODS, "ensemble"), seed=SEEDS),
    "ways": grid(way, how=HOW, way=("separate", "at once", "in sequence"), seed=SEEDS),
    "pruning": grid(pruning, how=("full",), task=TASKS, seed=SEEDS),
    "negation": [
        *grid(negation, minus=("codes",), scale=(0, 0.2, 0.4, 0.6, 0.8, 1.0), seed=SEEDS),
        *grid(negation, minus=("random", "change"), scale=(0.6, 1.0), seed=SEEDS),
    ],
    "between": grid(between, how=("full",), pair=(TASKS[:2],), seed=SEEDS),
    "adapters": grid(adapters, seed=SEEDS, scale=(1 / 9, 1 / 6, 1 / 4, 1 / 3, 0.5, 0.7, 1.0)),
    "orders": grid(orders, how=("full",), seed=SEEDS, t=(0.5, 0.33)),
    "soup": grid(soup),
    "federated": [
        *grid(federated, rounds=(1, 10), shards=("unlike", "like"), rate=(1.2e-3,), seed=SEEDS),
        *grid(federated, rounds=(1,), shards=("pooled",), rate=(1.2e-3,), seed=SEEDS),
    ],
    "analogy": grid(analogy, target=TASKS[:1], scale=(0, 0.3, 0.6, 0.8, 1.0), seed=SEEDS),
    "width": grid(width, scale=(0.5,), seed=SEEDS),
}  # fmt: skip
EXPERTS = {  # that a sweep needs
    "methods": [*OF_TASKS["full"], *OF_TASKS["lora"]], "ways": [*OF_TASKS["full"], *OF_TASKS["lora"], *AT_ONCE],
    "pruning": OF_TASKS["full"], "between": OF_TASKS["full"], "orders": OF_TASKS["full"],
    "adapters": OF_TASKS["lora"], "negation": SECRET + OF_TASKS["full"], "analogy": LINES + OF_TASKS["full"],
    "soup": SOUP_EXPERTS, "federated": [], "width": LARGE + OF_TASKS["full"],
}  # fmt: skip


def one_run(task):
    """The result of run number `task[1]` of a sweep."""
    function, settings = SWEEPS[task[0]][task[1]]
    return function(**settings)


def plain(settings):
    """As JSON gives them back: tuples are lists."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


def train_missing(experts):
    needed = dict.fromkeys(expert for expert in experts if not folder_of(expert).exists())
    for expert, seconds in side_by_side(train, needed):
        print(*expert, seconds, flush=True)


def main(names):
    """Train the experts that are missing, then run what is not yet recorded of these sweeps, and record it."""
    train_missing(expert for name in names for expert in EXPERTS[name])
    keep_runs("merging", {name: [plain(settings) for _, settings in SWEEPS[name]] for name in names}, one_run)


if __name__ == "__main__":
    setup()
    main(sys.argv[1:] or SWEEPS)
