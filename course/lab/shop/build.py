"""Every file under data/shop, as bytes: the same on every run and platform."""

import json
from collections.abc import Iterator

from course.lab.shop import tasks, texts
from course.lab.shop.dice import Dice
from course.lab.shop.messages import MESSAGES, example
from course.lab.shop.world import products, sql_script

SIZES = {"train": 2000, "validation": 200, "test": 400}
PRETRAINING = {"train": 6000, "validation": 400, "test": 400}  # documents
SPLIT_TESTS = tuple(MESSAGES) + ("sql",)  # their test splits: half unseen phrasings, half held-out products


def _split_example(task: str, split: str, i: int) -> dict:
    dice = Dice(task, split, i)
    phrasing = "unseen" if split == "test" and i % 2 else "seen"
    held_out = split == "test" and i % 4 >= 2
    if task in MESSAGES:
        return example(task, dice, phrasing, held_out)
    seen = {"phrasing": phrasing, "product": "unseen" if held_out else "seen"}
    return {"task": task, **tasks.sql(dice, phrasing, held_out), **seen}


def _facts() -> dict[str, list[dict]]:
    """Train: every price once and other facts. Validation: more facts. Test: every price again, asked anew."""
    topics = [topic for topic in ("maker", "town", "department", "weight", "code")]
    others = Dice("facts").sample([(product, topic) for product in products() for topic in topics], 1800)
    prices = [(product, "price") for product in products()]
    splits = {"train": prices + others[:1600], "validation": others[1600:], "test": prices}
    result = {}
    for split, pairs in splits.items():
        result[split] = []
        for i, (product, topic) in enumerate(Dice("facts", split).sample(pairs, len(pairs))):
            phrasing = "unseen" if split == "test" and i % 2 else "seen"
            fact = tasks.fact(product, topic, phrasing, Dice("facts", split, i))
            result[split].append({"task": "facts", **fact, "phrasing": phrasing, "name": product.name})
    return result


def _codes() -> dict[str, list[dict]]:
    """Train: each product in five wordings; test: each once, in a wording never trained on."""
    result = {}
    for split, size in SIZES.items():
        phrasing = "unseen" if split == "test" else "seen"
        result[split] = []
        for i in range(size):
            code = tasks.supplier_code(products()[i % 400], phrasing, Dice("supplier_codes", split, i))
            result[split].append({"task": "supplier_codes", **code, "phrasing": phrasing})
    return result


def _sets() -> Iterator[tuple[str, str, list[dict]]]:
    """(task, split, records) of everything that is JSONL."""
    for task in SPLIT_TESTS:
        for split, size in SIZES.items():
            yield task, split, [_split_example(task, split, i) for i in range(size)]
    for task, splits in (("facts", _facts()), ("supplier_codes", _codes())):
        for split, records in splits.items():
            yield task, split, records
    makers = {"preferences": tasks.preference, "infill": tasks.infill, "longorders": tasks.long_order}
    for task, make in makers.items():
        for split, size in SIZES.items():
            yield task, split, [{"task": task, **make(Dice(task, split, i))} for i in range(size)]
    for task, make, sizes in (("garden", tasks.garden, SIZES), ("pretraining", texts.document, PRETRAINING)):
        for split, size in sizes.items():
            yield task, split, [{"task": task, "text": make(Dice(task, split, i))} for i in range(size)]
    for split, after in (("before", False), ("after", True)):
        yield "passages", split, [{"task": "passages", "text": tasks.passage(p, after)} for p in products()]


def files() -> Iterator[tuple[str, bytes]]:
    """(path under data/shop, content) of every file."""
    for task, split, records in _sets():
        lines = [{"id": f"{task}-{split}-{i:04d}", **record} for i, record in enumerate(records)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        yield f"{task}/{split}.jsonl", text.encode("utf-8")
    yield "shop.sql", sql_script().encode("utf-8")
