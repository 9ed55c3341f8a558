"""Score what a model writes: exact answers, valid JSON, fields, the rows that SQL returns, perplexity."""

import json
import math
import time
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig

from course.lab.data import DataError, check_example, database, encode_prompt
from course.lab.losses import context_length, encode_all, mean_loss
from course.lab.runtime import progress_bar
from course.lab.sql import same_rows

JSON_TASKS = ("recommend", "change", "feedback")
TASKS = (*JSON_TASKS, "sql", "facts", "infill", "longorders", "supplier_codes")
INVALID = object()  # what parse_json returns where there is no JSON; None would be JSON's null


@dataclass
class Scores:
    """Rates are shares from 0 to 1; None where no example is of that kind."""

    n: int
    exact: float  # the answer equals the completion, spaces around it aside; JSON is compared as parsed
    valid_json: float | None
    fields: dict[str, float] = field(default_factory=dict)  # of the examples whose completion has the field
    sql: float | None = None  # the query returns the rows of the gold query
    by_phrasing: dict[str, float] = field(default_factory=dict)  # exact, for "seen" and "unseen" apart
    outputs: list[str] = field(default_factory=list, repr=False)
    seconds: float = 0.0


def evaluate(model, tokenizer, examples, batch_size=32, max_new_tokens=None, progress=True):
    """Let the model answer every prompt (greedily) and compare with the completions.

    A JSON answer is right when it parses to the same value: spaces and the order of keys do not count,
    types do.

    Args:
        examples: dicts with `prompt`, `completion` and, if the task is more than plain text, `task`.
        max_new_tokens: None: a quarter more than the longest completion has, or what the context leaves.

    Raises:
        ValueError (DataError for an example): nothing to evaluate, a missing field, an unknown task, a prompt
            that does not fit the context.
    """
    examples = list(examples)
    if not examples:
        raise ValueError("examples is empty; at least one example is needed")
    for number, example in enumerate(examples):
        check_example(example, f"examples[{number}]")
        if example.get("task", "facts") not in TASKS:
            raise DataError(f"examples[{number}]: task {example['task']!r} is none of {', '.join(TASKS)}")
    start = time.perf_counter()
    prompts = [example["prompt"] for example in examples]
    if max_new_tokens is None:
        longest = max(len(tokenizer(example["completion"])["input_ids"]) for example in examples) + 1
        longest_prompt = max(len(encode_prompt(prompt, tokenizer)) for prompt in prompts)
        room = (context_length(model) or math.inf) - longest_prompt
        max_new_tokens = max(1, min(longest + longest // 4, room))
    outputs = generate(model, tokenizer, prompts, max_new_tokens, batch_size, progress)
    return score(examples, outputs, time.perf_counter() - start)


def score(examples, outputs, seconds=0.0):
    """Compare outputs with the completions of their examples; see `evaluate`."""
    exact, valid, fields, sql, phrasings = [], [], {}, [], {}
    connection = database() if any(example.get("task") == "sql" for example in examples) else None
    for example, output in zip(examples, outputs, strict=True):
        gold, task = example["completion"], example.get("task")
        right = output.strip() == gold.strip()
        if task in JSON_TASKS:
            parsed, wanted = parse_json(output), parse_json(gold)
            right = _same(parsed, wanted)
            valid.append(parsed is not INVALID)
            for key, value in (wanted if isinstance(wanted, dict) else {}).items():
                got = isinstance(parsed, dict) and key in parsed and _same(parsed[key], value)
                fields.setdefault(key, []).append(got)
        elif task == "sql":
            sql.append(same_rows(connection, output, gold))
        exact.append(right)
        if "phrasing" in example:
            phrasings.setdefault(example["phrasing"], []).append(right)

    def rate(hits):
        return sum(hits) / len(hits) if hits else None

    return Scores(
        n=len(exact),
        exact=rate(exact),
        valid_json=rate(valid),
        fields={key: rate(hits) for key, hits in fields.items()},
        sql=rate(sql),
        by_phrasing={key: rate(hits) for key, hits in sorted(phrasings.items())},
        outputs=list(outputs),
        seconds=seconds,
    )


def parse_json(text):
    """The value that a JSON text stands for, or INVALID. NaN and Infinity are Python's, not JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return INVALID


def _refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def _same(one, other):
    """Equal as JSON: the order of keys does not count, but 1 is neither true nor "1"."""
    if INVALID in (one, other):
        return False
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@torch.no_grad()
def generate(model, tokenizer, prompts, max_new_tokens, batch_size=32, progress=True):
    """Continue each prompt greedily until EOS or `max_new_tokens`; returns the new texts in the same order.

    Prompts of like length share a batch, padded on the left, so that all rows end where the next token goes.

    Raises:
        ValueError (DataError for a prompt): no prompts, a size below 1, a prompt that leaves too little room.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts={prompts!r}, but it takes a list of at least one string")
    for name, size in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size!r}, but it takes a whole number from 1 up")
    encoded = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    room = (context_length(model) or math.inf) - max_new_tokens
    for number, ids in enumerate(encoded):
        if not 0 < len(ids) <= room:
            raise DataError(
                f"prompts[{number}] has {len(ids)} tokens; from 1 to {room} fit, which leaves"
                f" {max_new_tokens} (max_new_tokens) of the model's context of {context_length(model)}"
            )
    was_training = model.training
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]), reverse=True)  # the slowest batch comes first
    texts = [""] * len(prompts)
    with progress_bar(progress, desc="generate", total=len(prompts), unit="prompt") as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            written = write(model, tokenizer, [encoded[i] for i in rows], max_new_tokens)
            for i, text in zip(rows, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
                texts[i] = text
            bar.update(len(rows))
    model.train(was_training)
    return texts


def write(model, tokenizer, encoded, max_new_tokens):
    """What a model writes greedily after each of a batch's prompts, given as lists of ids: (rows, new tokens)."""
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    length = max(map(len, encoded))
    ids = torch.full((len(encoded), length), settings.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(encoded):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=settings,
    )[:, length:]


def perplexity(model, tokenizer, texts_or_examples, batch_size=16, progress=True):
    """exp of the mean loss of a token. Of a text every token counts, of an example those of the completion.

    The first token of a text counts only after a BOS, since nothing else predicts it. A text longer than the
    context is cut into pieces of that length, each read from its own beginning.

    Raises:
        ValueError (DataError for an example): nothing to read, or a text too short to predict anything in.
    """
    items = list(texts_or_examples)
    if not items or isinstance(texts_or_examples, str):
        raise ValueError(f"texts_or_examples={texts_or_examples!r}, but it takes a list with something in it")
    context = context_length(model)
    if not isinstance(items[0], str):
        encoded = encode_all("texts_or_examples", items, tokenizer, 0.0, context)
    else:
        encoded = []
        for text in items:
            ids = encode_prompt(text, tokenizer)
            step = context or max(1, len(ids))
            pieces = [ids[i : i + step] for i in range(0, len(ids), step)]
            encoded += [{"input_ids": piece, "weights": [1.0] * len(piece)} for piece in pieces if len(piece) > 1]
        if not encoded:
            raise ValueError("texts_or_examples: no text has two tokens, so there is nothing to predict")
    was_training = model.training
    loss = mean_loss(model, encoded, tokenizer.pad_token_id or 0, batch_size, progress=progress)
    model.train(was_training)
    return math.exp(loss)
