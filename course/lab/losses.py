"""The loss of the course: cross-entropy in which every token has its own weight."""

from contextlib import nullcontext

import torch
from torch.nn import functional as F

from course.lab.data import check_example, collate, encode
from course.lab.runtime import progress_bar


def prepare(encoded, pad_id):
    """Make encoded examples ready for `weighted_loss`: what goes in, and targets where the loss has a weight.

    Returns:
        input_ids (batch, seq - 1); columns (kept,), in which some row has a target, counted from the end;
        targets and weights (batch, kept); tokens, a number.
    """
    batch = collate(encoded, pad_id)
    ids, weights = batch["input_ids"], batch["weights"][:, 1:]
    columns = weights.any(dim=0).nonzero().flatten()
    return {
        "input_ids": ids[:, :-1],
        "columns": columns - weights.shape[1],
        "targets": ids[:, 1:][:, columns],
        "weights": weights[:, columns],
        "tokens": sum(len(item["input_ids"]) for item in encoded),
    }


def weighted_loss(model, batch):
    """The sum over a prepared batch of weight times cross-entropy, in fp32; a scalar tensor."""
    ids, columns = batch["input_ids"].to(model.device), batch["columns"].to(model.device)
    # No attention mask: padding stands on the right, where a causal model never looks from a real token, and
    # without a mask attention takes its fast path. Logits are made for the columns with a target only.
    logits = model(input_ids=ids, logits_to_keep=columns, use_cache=False).logits
    targets, weights = (batch[key].to(logits.device).flatten() for key in ("targets", "weights"))
    targets = targets.masked_fill(weights == 0, -100)  # ignored, so that not even a NaN there gets through
    return F.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="none") @ weights


def context_length(model, max_length=None):
    """The most tokens that fit: the smaller of `max_length` and the model's context, where known; or None."""
    context = getattr(model.config, "max_position_embeddings", None)
    return min((length for length in (max_length, context) if length), default=None)


def encode_all(name, examples, tokenizer, prompt_loss_weight, max_length):
    """Check and encode every example; `name` is the argument that a ValueError blames."""
    examples = list(examples)
    if not examples:
        raise ValueError(f"{name} is empty; at least one example is needed")
    for number, example in enumerate(examples):
        check_example(example, f"{name}[{number}]")
    return [encode(example, tokenizer, prompt_loss_weight, max_length) for example in examples]


@torch.no_grad()
def mean_loss(model, encoded, pad_id, batch_size, autocast=None, progress=False):
    """The loss of encoded examples, the mean over their weighted tokens. Leaves the model in eval mode."""
    model.eval()
    total = weight = 0.0
    for start in progress_bar(progress, range(0, len(encoded), batch_size), desc="loss", unit="batch"):
        batch = prepare(encoded[start : start + batch_size], pad_id)
        with autocast or nullcontext():
            total += weighted_loss(model, batch).item()
        weight += batch["weights"].sum().item()
    return total / weight
