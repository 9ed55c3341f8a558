"""The long measurements of chapter 12, one sweep a name: `python tests/surgery_sweeps.py rates`.

`rates` and `further` operate on shop-m and then train it on new text of the kinds it was pretrained on, for a share of
its pretraining's tokens: `rates` searches each kind's learning rate, `further` takes the best of them. The score is the
loss in nats a token on text that none has read, and the share of right answers to `change` after the same short
finetune. `stacks` puts layers of two finetunes together, `adapters` two adapters; both then learn from further letters
of both tasks. In `agents` two models propose and a third decides. SWEEP_DEVICE=cuda has all of it on a GPU. A run is
kept in data/measurements as soon as it is done, and one that is there is skipped. Finetunes are in FP32; the training
on text is in BF16 autocast where the processor has that, as the pretraining was.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import torch
from merging_sweeps import (
    DEVICE,
    TASKS,
    Expert,
    adapted,
    folder_of,
    grid,
    letters,
    plain,
    rounded,
    state,
    train_missing,
    tuned,
)
from peft_sweeps import batched, scores_of
from safetensors.torch import load_file, save_file
from sweeps import best_recorded, keep_runs
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from course import load_model
from course.lab import data
from course.lab.evaluation import generate, score
from course.lab.files import written_whole
from course.lab.metering import load_measurement
from course.lab.pretrain import row
from course.lab.runtime import autocast, setup
from course.lab.shop import document, oldest_letters
from course.lora import LoRAConfig, add_lora, read_lora
from course.merging import concat_lora, linear, stack_layers, upcycle_moe

TEXT = Path(__file__).parents[1] / "build" / "surgery" / "text.safetensors"
ROWS, CONTEXT, HELD_OUT, TESTED = 32, 256, 128, 200  # a step reads 32 rows of 256 tokens; 128 rows are held out
LONGEST, RATES, SEEDS = 0.2, (3e-4, 1e-3, 3e-3), (0, 1)


# One model, and what is done to its layers

SLICES = {
    "untouched": [(0, 0, 6)],
    "upscaled to 8": [(0, 0, 4), (0, 2, 6)],  # SOLAR: two copies, a third of the layers dropped from each
    "upscaled to 10": [(0, 0, 5), (0, 1, 6)],
    "interleaved to 10": [(0, 0, 2), (0, 1, 3), (0, 2, 4), (0, 3, 5), (0, 4, 6)],  # Goliath's pattern, of one model
    "two dropped": [(0, 0, 2), (0, 4, 6)],
}
SECOND_COPIES = (2, 4, 6, 8)  # in "interleaved to 10"
COPIES, TOP_K = 4, 2  # of each feed-forward network in "experts"; how many a token goes to
KINDS = (*SLICES, "empty layers to 10", "random layers to 10", "experts")


def operated(kind, seed=0):
    """shop-m after the operation. "empty" layers add nothing at first, as in LLaMA Pro (Wu et al. 2024, 2401.02415)."""
    base, tokenizer = load_model("shop-m", device="cpu")
    if kind == "experts":
        return mixtral(base).to(DEVICE), tokenizer
    slices = SLICES.get(kind, SLICES["interleaved to 10"])
    depth = sum(end - first for _, first, end in slices)
    model = LlamaForCausalLM(LlamaConfig(**base.config.to_dict() | {"num_hidden_layers": depth})).eval()
    model.load_state_dict(stack_layers([base.state_dict()], slices))
    torch.manual_seed(seed)
    for place in SECOND_COPIES if "layers to" in kind else ():
        layer = model.model.layers[place]
        if kind.startswith("random"):
            model.model.layers[place] = type(layer)(model.config, place)
            model.model.layers[place].apply(model._init_weights)
        else:
            layer.self_attn.o_proj.weight.data.zero_()
            layer.mlp.down_proj.weight.data.zero_()
    return model.to(DEVICE), tokenizer


def mixtral(base):
    shape = {key: value for key, value in base.config.to_dict().items() if key not in ("model_type", "architectures")}
    model = MixtralForCausalLM(MixtralConfig(**shape | {"num_local_experts": COPIES, "num_experts_per_tok": TOP_K}))
    model.load_state_dict(upcycle_moe(base.state_dict(), COPIES, TOP_K))
    model.set_experts_implementation("eager")  # the one that every device has in FP32
    return model.eval()


def pretrained_tokens():
    return load_measurement("pretrain-shop-m")["results"]["tokens"]


def text_rows(numbers):
    """Half of the text is of all kinds, half is what the base read last."""
    tokenizer = load_model("shop-m", device="cpu")[1]
    return [row(tokenizer, CONTEXT, (document, oldest_letters)[i % 2], "surgery", i) for i in numbers]


def write_text():
    """What all runs read, made once: (rows, context) tokens, the first of them held out."""
    count = HELD_OUT + ROWS * round(LONGEST * pretrained_tokens() / (ROWS * CONTEXT))
    with ProcessPoolExecutor() as pool:
        parts = pool.map(text_rows, [range(start, min(start + 500, count)) for start in range(0, count, 500)])
        rows = torch.tensor([ids for part in parts for ids in part], dtype=torch.int16)
    with written_whole(TEXT) as file:
        save_file({"rows": rows}, file)


@cache
def text():
    return load_file(TEXT)["rows"].long()


@torch.no_grad()
def held_out(model):
    """Nats a token."""
    losses = [model(input_ids=ids, labels=ids, use_cache=False).loss for ids in text()[:HELD_OUT].to(DEVICE).split(32)]
    return round(torch.stack(losses).mean().item(), 4)


def read_on(model, share, rate, seed):
    """Train on new text for a share of the base's tokens: a rate that rises, then falls to zero."""
    steps = round(share * pretrained_tokens() / (ROWS * CONTEXT))
    order = torch.randperm(steps * ROWS, generator=torch.Generator().manual_seed(seed)) + HELD_OUT
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    warm, arithmetic = max(1, min(50, steps // 10)), autocast(DEVICE)
    model.train()
    for step in range(steps):
        ids = text()[order[step * ROWS : (step + 1) * ROWS]].to(DEVICE)
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / warm, (steps - step) / (steps - warm + 1))
        with arithmetic:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def on_letters(model, tokenizer, task, count=TESTED):
    return rounded(scores_of(model, batched(tokenizer, data.load(task, "test", count), DEVICE)))


@torch.no_grad()
def load_of_experts(model):
    """The least and the largest share of the tokens' choices that an expert has, over all layers."""
    scores = model(input_ids=text()[:HELD_OUT].to(DEVICE), output_router_logits=True).router_logits  # one a layer
    chosen = [layer.topk(TOP_K, -1).indices.flatten() for layer in scores]
    shares = torch.stack([torch.bincount(c, minlength=COPIES) / len(c) for c in chosen])
    return [round(shares.min().item(), 3), round(shares.max().item(), 3)]


def further(kind, share, rate, seed):
    """What a kind of surgery costs, and what further training brings back."""
    model, tokenizer = operated(kind, seed)
    if share:
        read_on(model, share, rate, seed)
    found = {"parameters": sum(p.numel() for p in model.parameters()), "loss": held_out(model)}
    if kind == "experts":
        found["load"] = load_of_experts(model)
    tuned(model, tokenizer, letters("change", "train", 384), 48, 6e-4, seed)
    return found | {"change": on_letters(model, tokenizer, "change")}


# Two models in one


def letters_of_both():
    """Letters of two tasks, in turn, that no expert has learned from."""
    pairs = zip(*(letters(task, "train", 1600)[1200:] for task in TASKS[:2]), strict=True)
    return [letter for pair in pairs for letter in pair]


def scored(model, tokenizer, steps, rate, seed):
    """The scores on both tasks after some more steps of 8 letters."""
    if steps:
        tuned(model, tokenizer, letters_of_both(), steps, rate, seed)
    return {task: on_letters(model, tokenizer, task) for task in TASKS[:2]}


def stacks(way, steps, seed):
    """Layers of two finetunes of shop-m in turn, as Goliath has them, beside their average, each alone, the base."""
    model, tokenizer = operated("interleaved to 10" if way.startswith("interleaved") else "untouched")
    pair = [state(Expert("full", task, seed, model="shop-m")) for task in TASKS[:2]]
    turns = [(i % 2, first, end) for i, (_, first, end) in enumerate(SLICES["interleaved to 10"])]
    made = {
        "interleaved": lambda: stack_layers(pair, turns),
        "interleaved, of one": lambda: stack_layers(pair[:1], SLICES["interleaved to 10"]),
        "average": lambda: linear(pair, 1),
        "first alone": lambda: pair[0],
        "second alone": lambda: pair[1],
        "base": dict,
    }
    model.load_state_dict(made[way](), strict=False)
    return scored(model, tokenizer, steps, 6e-4, seed)


def adapters(way, steps, seed):
    """Two adapters of rank 8 as one of rank 16, beside one alone, and a new adapter of rank 16."""
    pair = [read_lora(folder_of(Expert("lora", task, seed))) for task in TASKS[:2]]
    model, tokenizer = load_model("shop-s", device=DEVICE)
    torch.manual_seed(seed)
    if way == "new":
        model = add_lora(model, LoRAConfig(16, 32))
    else:
        weights = {"weights 1": [1, 1], "weights 0.5": [0.5, 0.5], "first alone": [1]}[way]
        model = adapted(model, *concat_lora(pair[: len(weights)], weights))
    return scored(model, tokenizer, steps, 5e-3, seed)


# Mixture of agents


def agents(seed):
    """Two finetunes for `feedback` answer; a third reads the letter and both answers, and gives its own.

    It has learned that from 400 letters which the two have not read. Beside it stand a third model that learned from
    the same letters without answers, and one that was given the answers to other letters; the first of the two,
    trained on them as well; and the answer of which its author is surer, in nats a token.
    """
    proposers = [Expert("full", "feedback", 2 * seed + i, 1.2e-3, 75) for i in (0, 1)]
    first, second = (load_model("shop-s", device=DEVICE)[0] for _ in proposers)
    tokenizer = load_model("shop-s", device=DEVICE)[1]
    for model, expert in zip((first, second), proposers, strict=True):
        model.load_state_dict(state(expert), strict=False)
    more, asked = letters("feedback", "train", 1600)[1200:], data.load("feedback", "test", TESTED)

    def answers(model, examples):
        return generate(model, tokenizer, [e["prompt"] for e in examples], 96, 100, progress=False)

    def with_answers(examples, proposals):
        return [
            e | {"prompt": f"{e['prompt']}First: {one}\nSecond: {two}\nAnswer: "}
            for e, one, two in zip(examples, *proposals, strict=True)
        ]

    def decider(learned):
        model = load_model("shop-s", device=DEVICE)[0]
        tuned(model, tokenizer, learned, 100, 1.2e-3, seed)
        return model

    def right(outputs):
        return round(100 * score(asked, outputs).exact, 1)

    learned, proposed = ([answers(model, part) for model in (first, second)] for part in (more, asked))
    turned = [answer[1:] + answer[:1] for answer in proposed]
    decides = decider(with_answers(more, learned))
    doubts = [losses_of(m, tokenizer, asked, answer) for m, answer in zip((first, second), proposed, strict=True)]
    surer = [one if a <= b else two for one, two, a, b in zip(*proposed, *doubts, strict=True)]
    hits = [[score([e], [answer]).exact for e, answer in zip(asked, part, strict=True)] for part in proposed]
    found = {
        "first alone": right(proposed[0]),
        "second alone": right(proposed[1]),
        "either": round(100 * sum(map(max, *hits)) / len(asked), 1),
        "decider": right(answers(decides, with_answers(asked, proposed))),
        "decider, other letters' answers": right(answers(decides, with_answers(asked, turned))),
        "the surer": right(surer),
        "third alone": right(answers(decider(more), asked)),
    }
    tuned(first, tokenizer, more, 100, 1.2e-3, seed)
    return found | {"first, trained on": right(answers(first, asked))}


def losses_of(model, tokenizer, examples, answers):
    """Nats a token that a model gives to each answer."""
    told = [e | {"completion": answer or " "} for e, answer in zip(examples, answers, strict=True)]
    return [scores_of(model, batched(tokenizer, [example], DEVICE))["loss"] for example in told]


# The plans


def further_plan():
    """The runs at 0.05 are those of the search. The longest are also made at 1e-3, if not for the slow experts."""
    best = {kind: best_recorded("surgery", "rates", kind=kind)["rate"] for kind in KINDS}
    plan = [(kind, share, best[kind] if share else 0) for share in (0, 0.01, LONGEST) for kind in KINDS]
    again = [(kind, LONGEST, 1e-3) for kind in KINDS if best[kind] != 1e-3 and kind != "experts"]
    return [(further, {"kind": kind, "share": share, "rate": rate, "seed": 1}) for kind, share, rate in [*plan, *again]]


WAYS = ("interleaved", "interleaved, of one", "average", "first alone", "second alone", "base")
SWEEPS = {
    "rates": lambda: grid(further, kind=KINDS, share=(0.05,), rate=RATES, seed=(0,)),
    "further": further_plan,
    "stacks": lambda: grid(stacks, way=WAYS, steps=(0, 10, 50, 100), seed=SEEDS),
    "adapters": lambda: grid(
        adapters, way=("weights 1", "weights 0.5", "first alone", "new"), steps=(0, 10, 50), seed=SEEDS
    ),
    "agents": lambda: grid(agents, seed=(0, 1, 2)),
}
EXPERTS = {  # that a sweep needs
    "stacks": [Expert("full", task, seed, model="shop-m") for task in TASKS[:2] for seed in SEEDS],
    "adapters": [Expert("lora", task, seed) for task in TASKS[:2] for seed in SEEDS],
    "agents": [Expert("full", "feedback", seed, 1.2e-3, 75) for seed in range(6)],
}


def one_run(task):
    """The result of run number `task[1]` of a sweep."""
    function, settings = SWEEPS[task[0]]()[task[1]]
    return function(**settings)


def main(names):
    """Make the text and the experts that are missing, then the runs that are not recorded, sweep by sweep."""
    if not TEXT.exists():
        TEXT.parent.mkdir(parents=True, exist_ok=True)
        write_text()
    train_missing(expert for name in names for expert in EXPERTS.get(name, ()))
    for name in names:  # `further` needs what `rates` has found
        keep_runs("surgery", {name: [plain(settings) for _, settings in SWEEPS[name]()]}, one_run)


if __name__ == "__main__":
    setup()
    main(sys.argv[1:] or SWEEPS)
