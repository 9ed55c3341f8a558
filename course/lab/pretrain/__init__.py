"""Makes the base models from nothing: `python -m course.lab.pretrain shop-s shop-m`.

A killed run continues at its last checkpoint and ends with the same weights: the text of a step depends on the
step's number alone, and a checkpoint holds the weights and both optimizers.
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from course.lab import metering
from course.lab.data import DATA, write_checksums
from course.lab.files import written_whole
from course.lab.models import save_model
from course.lab.pretrain.copying import set_copying_heads
from course.lab.runtime import autocast, detect, progress_bar
from course.lab.shop import KINDS, Dice, close_reading, copies, copying, document, older_letters, oldest_letters

PAD, END, PREFIX, SUFFIX, MIDDLE = SPECIAL = ("<|pad|>", "<|end|>", "<|prefix|>", "<|suffix|>", "<|middle|>")
VOCABULARY_SIZE = 2048


@dataclass(frozen=True)
class Recipe:
    """One base model. `stages` are (text, context, rows, steps): each step reads rows x context tokens of a text.

    The first stage reads lists to copy, the second adds short records to fill, the next ones read all kinds of text.
    By then the learning rates have fallen. In each stage after the fourth they rise to half and fall to zero.
    """

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    stages: tuple[tuple[str, int, int, int], ...]
    context: int = 512
    muon_lr: float = 0.02
    adamw_lr: float = 4e-3
    warmup_steps: int = 50
    decay_share: float = 0.4  # of the steps of the first four stages: the rates fall linearly to a twentieth
    seed: int = 0

    @property
    def steps(self) -> int:
        return sum(steps for *_, steps in self.stages)

    @property
    def tokens(self) -> int:
        return sum(context * rows * steps for _, context, rows, steps in self.stages)

    def stage(self, step: int) -> tuple[str, int, int]:
        """(text, context, rows) of a step."""
        for *stage, steps in self.stages:
            if step < steps:
                return tuple(stage)
            step -= steps
        raise ValueError(f"step is past the recipe's {self.steps} steps by {step}")

    def lr_factor(self, step: int) -> float:
        """What the learning rates are multiplied with at a step, from 0 to 1."""
        lengths = [steps for *_, steps in self.stages]
        cycles = [(sum(lengths[:4]), self.decay_share, 0.05, 1.0), *((steps, 1.0, 0.0, 0.5) for steps in lengths[4:])]
        for steps, decay_share, least, peak in cycles:
            if step < steps:
                left = max(least, min(1.0, (steps - step) / (decay_share * steps)))
                return peak * min(1.0, (step + 1) / self.warmup_steps) * left
            step -= steps
        raise ValueError(f"step is past the recipe's {self.steps} steps by {step}")


TEXTS = {make.__name__: make for make in (copies, copying, document, close_reading, older_letters, oldest_letters)}
RECIPES = {
    "shop-s": Recipe(
        *(192, 4, 4, 512),
        stages=(
            ("copies", 64, 16, 500),
            ("copying", 64, 16, 1000),
            ("document", 256, 8, 7000),
            ("document", 512, 4, 1000),
            ("close_reading", 256, 8, 2400),
            ("older_letters", 256, 8, 1800),
            ("oldest_letters", 256, 8, 2400),
        ),
    ),
    "shop-m": Recipe(
        *(256, 6, 4, 704),
        stages=(
            ("copies", 64, 16, 400),
            ("copying", 64, 16, 700),
            ("document", 256, 8, 4800),
            ("document", 512, 4, 600),
            ("close_reading", 256, 8, 1300),
            ("older_letters", 256, 8, 1000),
            ("close_reading", 256, 8, 1500),
            ("oldest_letters", 256, 8, 2400),
        ),
    ),
    "shop-l": Recipe(  # made for a GPU, which reads four times the text in a step
        *(384, 7, 6, 1024),
        stages=(
            ("copies", 64, 64, 300),
            ("copying", 64, 64, 500),
            ("document", 256, 32, 2600),
            ("document", 512, 16, 400),
            ("close_reading", 256, 32, 700),
            ("older_letters", 256, 32, 500),
            ("oldest_letters", 256, 32, 1000),
        ),
    ),
}


class Muon(torch.optim.Optimizer):
    """Muon (Keller Jordan, 2024): momentum whose matrix is made orthogonal by five Newton-Schulz iterations.

    torch.optim.Muon computes the same in bfloat16, in which a CPU without bfloat16 arithmetic is ten times slower.
    """

    def __init__(self, matrices, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(list(matrices), dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @staticmethod
    def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
        """Matrices (n, rows, columns) with their singular values brought to about 1."""
        x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
        tall = x.size(1) > x.size(2)
        x = x.mT.contiguous() if tall else x
        for _ in range(5):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
        return x.mT if tall else x

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            shapes = dict.fromkeys(matrix.shape for matrix in group["params"])
            for shape in shapes:  # matrices of one shape go through together
                matrices = [matrix for matrix in group["params"] if matrix.shape == shape]
                gradients = [matrix.grad for matrix in matrices]
                averages = [self.state[m].setdefault("momentum", torch.zeros_like(m)) for m in matrices]
                torch._foreach_lerp_(averages, gradients, 1 - momentum)
                updates = self.orthogonalized(torch.stack(torch._foreach_lerp(gradients, averages, momentum)))
                torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
                scale = max(1, shape[0] / shape[1]) ** 0.5
                torch._foreach_add_(matrices, list(updates.unbind()), alpha=-lr * scale)


def train_tokenizer(documents: int = 20_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer on the shop's text.

    A word never carries a space, a quote or a digit with it: so the word after a space and the word after a
    JSON quote are one token, and copying the one to the other is copying a token.
    """
    bpe = Tokenizer(models.BPE())
    pieces = Regex(r"\p{L}+|\p{N}|(?:[^\p{L}\p{N}\s]+ ?)+|\s")  # words, single digits, punctuation, single spaces
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((document(Dice("tokenizer", i)) for i in range(documents)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[PREFIX, SUFFIX, MIDDLE],
        clean_up_tokenization_spaces=False,
    )


def row(tokenizer, context: int, make, *seed) -> list[int]:
    """`context` tokens: documents that `make` gives, one after the other, the last one cut."""
    dice, ids = Dice(*seed), []
    while len(ids) < context:
        ids += [*tokenizer.encode(make(dice)), tokenizer.eos_token_id]
    return ids[:context]


@dataclass(frozen=True)
class Steps:
    """What each step of a recipe reads, (rows, context) tokens, by the step's number alone."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerFast

    def __getitem__(self, step: int) -> torch.Tensor:
        text, context, rows = self.recipe.stage(step)
        seed = "pretrain", self.recipe.seed, step
        return torch.tensor([row(self.tokenizer, context, TEXTS[text], *seed, r) for r in range(rows)])


def new_model(recipe: Recipe, tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    set_copying_heads(model)
    return model


def _optimizers(model, recipe: Recipe):
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    taken = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in taken]
    return (
        Muon(matrices, lr=recipe.muon_lr),
        torch.optim.AdamW(others, lr=recipe.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    )


def _save_checkpoint(path: Path, model, optimizers, progress: dict) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": value for key, value in state.items()}
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata={"progress": json.dumps(progress)})


def _load_checkpoint(path: Path, model, optimizers) -> dict:
    with safe_open(path, "pt") as file, torch.no_grad():
        progress = json.loads(file.metadata()["progress"])
        for name, p in model.named_parameters():
            p.copy_(file.get_tensor(f"model.{name}"))
        for i, optimizer in enumerate(optimizers):
            state: dict[int, dict] = {}
            for key in tuple(file.keys()):
                if key.startswith(f"optimizer.{i}."):
                    _, _, j, name = key.split(".")
                    state.setdefault(int(j), {})[name] = file.get_tensor(key)
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return progress


def pretrain(recipe: Recipe, tokenizer, checkpoint: Path, checkpoint_every: int = 50, device: str = "cpu"):
    """Trains one model, or continues at `checkpoint`. Returns (model, progress).

    progress: the recipe, the steps done, seconds of training, the loss of every step in nats a token.
    """
    model, arithmetic = new_model(recipe, tokenizer).to(device), autocast(device)
    optimizers = _optimizers(model, recipe)
    base_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    progress = {"recipe": json.loads(json.dumps(asdict(recipe))), "step": 0, "seconds": 0.0, "losses": []}
    if checkpoint.exists():
        wanted, progress = progress["recipe"], _load_checkpoint(checkpoint, model, optimizers)
        if progress["recipe"] != wanted:
            raise ValueError(f"{checkpoint} belongs to another recipe; delete it to start anew")
    bar = progress_bar(True, total=recipe.steps, initial=progress["step"], unit="step", mininterval=2)
    started = time.perf_counter() - progress["seconds"]
    steps = range(progress["step"], recipe.steps)
    writers = 0 if device == "cpu" else min(4, os.cpu_count())  # a GPU reads faster than one process writes
    texts = DataLoader(Steps(recipe, tokenizer), batch_size=None, sampler=steps, num_workers=writers)
    for step, ids in zip(steps, texts, strict=True):
        ids = ids.to(device)  # (rows, context)
        with arithmetic:
            logits = model(input_ids=ids).logits  # (rows, context, vocabulary)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, lrs in zip(optimizers, base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * recipe.lr_factor(step)
            optimizer.step()
        model.zero_grad()
        progress["losses"].append(round(loss.item(), 4))
        progress |= {"step": step + 1, "seconds": time.perf_counter() - started}
        bar.update()
        bar.set_postfix(loss=f"{sum(progress['losses'][-50:]) / len(progress['losses'][-50:]):.3f}")
        if (step + 1) % checkpoint_every == 0 or step + 1 == recipe.steps:
            _save_checkpoint(checkpoint, model, optimizers, progress)
    bar.close()
    return model.eval(), progress


@torch.no_grad()
def validation(model, tokenizer, documents: int = 40) -> dict:
    """Loss on documents that training never saw, beside the generator's own entropy, by kind of document.

    Both in nats a token. The entropy is an upper bound (see Dice) for a reader who knows the generator by heart.
    """
    results = {}
    for kind in KINDS:
        loss = entropy = tokens = 0
        for i in range(documents):
            dice = Dice("validation", kind.__name__, i)
            ids = [*tokenizer.encode(kind(dice)), tokenizer.eos_token_id][: model.config.max_position_embeddings]
            ids = torch.tensor([ids], device=model.device)
            logits = model(input_ids=torch.cat([ids.new_full((1, 1), tokenizer.eos_token_id), ids[:, :-1]], 1)).logits
            loss += F.cross_entropy(logits[0].float(), ids[0], reduction="sum").item()
            entropy, tokens = entropy + dice.nats, tokens + ids.numel()
        results[kind.__name__] = {"loss": loss / tokens, "entropy": entropy / tokens, "tokens": tokens}
    return results


def card(name: str, measurement: dict) -> str:
    """The model card, from the measurement of its pretraining."""
    run, kinds = measurement["results"], measurement["results"]["validation"]
    tokens = sum(kind["tokens"] for kind in kinds.values())
    loss, entropy = (sum(k[key] * k["tokens"] for k in kinds.values()) / tokens for key in ("loss", "entropy"))
    rows = [f"| {kind} | {k['loss']:.2f} | {k['entropy']:.2f} |" for kind, k in kinds.items()]
    recipe, hardware = run["recipe"], measurement["hardware"]
    return "\n".join(
        [
            f"# {name}",
            "",
            f'A base model of {run["parameters"]:,} parameters for the course "Finetuning, measured": a Llama of '
            f"{recipe['layers']} layers, width {recipe['hidden_size']}, {recipe['heads']} heads and a context of "
            f"{recipe['context']} tokens, in BF16.",
            "",
            f"- **Data:** {run['tokens']:,} tokens of the shop's text, generated as it was read and none of it twice; "
            "see the data card in `data/README.md`. Everything in it is made up.",
            f"- **Training:** Muon for the matrices, AdamW for the rest, {run['arithmetic']}. A few attention heads "
            "were set by hand to copy before training began (`course/lab/pretrain/copying.py`).",
            f"- **Loss:** {loss:.2f} nats a token on validation text. {entropy:.2f} is the most that a reader who "
            "knows the generator by heart would need.",
            f"- **Hardware:** {hardware['gpu'] or hardware['cpu']}, {run['device']}, {run['seconds']:,.0f} seconds.",
            f"- **Command:** `{measurement['command']}`, on {measurement['date']}.",
            "- **Use:** to be finetuned in this course. It knows one made-up shop and nothing of the world.",
            "",
            "| kind of text | loss (nats a token) | generator's entropy, at most |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m course.lab.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RECIPES)}; default: all, shop-l where a GPU is")
    parser.add_argument("--folder", type=Path, default=DATA / "models", help="where the finished models go")
    parser.add_argument("--checkpoints", type=Path, default=DATA.parent / "build" / "pretrain")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in RECIPES:
            parser.error(f"names: got {name!r}, known are {', '.join(RECIPES)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = options.names or [name for name in RECIPES if device == "cuda" or name != "shop-l"]
    tokenizer = train_tokenizer()
    for name in names:
        recipe = RECIPES[name]
        print(f"{name}: {recipe.tokens:,} tokens in {recipe.steps:,} steps on {device}")
        checkpoint, every = options.checkpoints / f"{name}.safetensors", 500 if device == "cuda" else 50
        model, progress = pretrain(recipe, tokenizer, checkpoint, every, device)
        results = {
            **progress,
            "device": device,
            "arithmetic": "BF16 autocast" if detect().autocast_dtype else "FP32",
            "parameters": model.num_parameters(),
            "tokens": recipe.tokens,
        }
        results["validation"] = validation(model, tokenizer)
        results["losses"] = progress["losses"][::10]
        metering.save_measurement(f"pretrain-{name}", results, command=f"python -m course.lab.pretrain {name}")
        folder = save_model(model.to(torch.bfloat16), tokenizer, options.folder / name)
        (folder / "README.md").write_text(card(name, metering.load_measurement(f"pretrain-{name}")), encoding="utf-8")
    if options.folder == DATA / "models":
        write_checksums()
