"""The shop's data sets: where they lie, what an example must look like, and how it becomes tokens."""

import hashlib
import json
import os
import sqlite3
from pathlib import Path

import torch

from course.lab.files import written_whole

DATA = Path(os.environ.get("COURSE_DATA", Path(__file__).resolve().parents[2] / "data"))


class DataError(ValueError):
    """A record that cannot be used; the message names the place, the field and what is wrong with it."""


_EXAMPLE = {"id": str, "task": str, "prompt": str, "completion": str}
_MESSAGE = _EXAMPLE | {"phrasing": str, "product": str}
_TEXT = {"id": str, "task": str, "text": str}
FIELDS = {  # task -> the fields of each record
    "recommend": _MESSAGE,
    "change": _MESSAGE,
    "feedback": _MESSAGE,
    "sql": _MESSAGE,
    "facts": _EXAMPLE | {"after": str, "topic": str, "phrasing": str, "name": str},
    "supplier_codes": _EXAMPLE | {"phrasing": str},
    "preferences": {"id": str, "task": str, "prompt": str, "chosen": str, "rejected": str, "fault": str},
    "infill": _EXAMPLE,
    "longorders": _EXAMPLE | {"line": int},
    "garden": _TEXT,
    "pretraining": _TEXT,
    "passages": _TEXT,  # its splits are "before" and "after" the price change
}


def load(task, split="train", limit=None):
    """The records of one split of a task, each checked.

    Args:
        task: a name in FIELDS.
        split: "train", "validation" or "test" ("before" or "after" for passages).
        limit: how many records from the start; None for all.

    Raises:
        DataError: an unknown task or split, or a record that is broken, with its file, line and field.
    """
    if task not in FIELDS:
        raise DataError(f"task: got {task!r}, known are {', '.join(FIELDS)}")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise DataError(f"limit: got {limit!r}, accepted is a whole number from 1, or None for all")
    path = DATA / "shop" / task / f"{split}.jsonl"
    if not path.is_file():
        there = sorted(file.stem for file in path.parent.glob("*.jsonl"))
        if there and split not in there:
            raise DataError(f"split: got {split!r}, {task} has {', '.join(there)}")
        raise DataError(f"{_short(path)} is missing. `make data` writes it anew.")
    records = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if limit is not None and len(records) == limit:
                break
            records.append(_record(line, FIELDS[task], f"{_short(path)}, line {number}"))
    if not records:
        raise DataError(f"{_short(path)} is empty. `make data` writes it anew.")
    return records


def _short(path):
    return path.relative_to(DATA.parent).as_posix()


def _record(line, fields, where):
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: this is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON object is needed, not {type(record).__name__}")
    for field, kind in fields.items():
        if field not in record:
            raise DataError(f"{where}: the field {field!r} is missing; it has {sorted(record)}")
        if type(record[field]) is not kind or record[field] == "":
            raise DataError(f"{where}: {field!r} must be a {kind.__name__} that is not empty, not {record[field]!r}")
    return record


def database():
    """The shop's SQLite database, made anew in memory and then closed to writing (sqlite3.Connection)."""
    path = DATA / "shop" / "shop.sql"
    if not path.is_file():
        raise DataError(f"{_short(path)} is missing. `make data` writes it anew.")
    connection = sqlite3.connect(":memory:")
    connection.executescript(path.read_text(encoding="utf-8"))
    connection.execute("PRAGMA query_only = ON")
    return connection


def _sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_checksums(folder=None):
    """Write SHA256SUMS over the data sets and the models; returns how many files it holds."""
    folder = Path(folder or DATA)
    files = [file for part in ("shop", "models") for file in sorted((folder / part).rglob("*")) if file.is_file()]
    sums = {file.relative_to(folder).as_posix(): _sha256(file) for file in files}
    with written_whole(folder / "SHA256SUMS") as path:
        path.write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")
    return len(sums)


def expected_checksums(folder=None):
    """Relative name -> SHA-256 as SHA256SUMS has it."""
    path = Path(folder or DATA) / "SHA256SUMS"
    if not path.is_file():
        raise DataError(f"{path.parent.name}/SHA256SUMS is missing: the data folder is not complete")
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def verify(folder=None, below=""):
    """What is wrong with the bundled files whose names begin with `below`, one sentence each; [] when all is well."""
    folder = Path(folder or DATA)
    try:
        expected = expected_checksums(folder)
    except DataError as error:
        return [str(error)]
    problems = []
    for name in (name for name in expected if name.startswith(below)):
        file = folder / name
        if not file.is_file():
            problems.append(f"{folder.name}/{name} is missing")
        elif _sha256(file) != expected[name]:
            problems.append(f"{folder.name}/{name} has changed")
    return problems


def check_example(example, where="example"):
    """Raise DataError unless `prompt` and `completion` are both strings with something in them."""
    if not isinstance(example, dict):
        raise DataError(f"{where}: a dict with prompt and completion is needed, not {type(example).__name__}")
    for field in ("prompt", "completion"):
        if field not in example:
            raise DataError(f"{where}: the field {field!r} is missing; it has {sorted(map(str, example))}")
        if not isinstance(example[field], str) or not example[field]:
            raise DataError(f"{where}: {field!r} must be a string that is not empty, not {example[field]!r}")


def encode_prompt(prompt, tokenizer):
    """Token ids of a prompt as the model sees it before it answers: BOS, if the tokenizer has one, then the text."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return bos + tokenizer(prompt, add_special_tokens=False)["input_ids"]


def encode(example, tokenizer, prompt_loss_weight=0.0, max_length=None):
    """Turn an example into token ids and, for each token, its weight as a target of the loss.

    Prompt and completion are tokenized apart, so that the prompt's tokens are those that generation sees.

    Returns:
        {"input_ids": list of int, "weights": list of float}, both (tokens,). A prompt token weighs
        `prompt_loss_weight`, a completion token and the closing EOS 1, BOS 0 because nothing predicts it.

    Raises:
        DataError: a field is missing, or the example has more than `max_length` tokens.
    """
    where = str(example.get("id", "example")) if isinstance(example, dict) else "example"
    check_example(example, where)
    prompt = encode_prompt(example["prompt"], tokenizer)
    completion = tokenizer(example["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    if max_length is not None and len(prompt) + len(completion) > max_length:
        raise DataError(
            f"{where}: prompt ({len(prompt)} tokens) and completion ({len(completion)} tokens) together are longer"
            f" than the {max_length} tokens that fit"
        )
    weights = [float(prompt_loss_weight)] * len(prompt) + [1.0] * len(completion)
    if tokenizer.bos_token_id is not None:
        weights[0] = 0.0
    return {"input_ids": prompt + completion, "weights": weights}


def collate(encoded, pad_id):
    """Stack encoded examples into tensors (batch, seq) padded on the right: input_ids, attention_mask, weights."""
    length = max(len(item["input_ids"]) for item in encoded)
    batch = {
        "input_ids": torch.full((len(encoded), length), pad_id),
        "attention_mask": torch.zeros(len(encoded), length, dtype=torch.long),
        "weights": torch.zeros(len(encoded), length),
    }
    for row, item in enumerate(encoded):
        count = len(item["input_ids"])
        batch["input_ids"][row, :count] = torch.tensor(item["input_ids"])
        batch["attention_mask"][row, :count] = 1
        batch["weights"][row, :count] = torch.tensor(item["weights"])
    return batch
