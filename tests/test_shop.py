"""The generated world: the same bytes everywhere, splits that measure generalization, records that can be solved."""

import hashlib
import json
import math
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course.lab import data
from course.lab.shop import MESSAGES, Dice, close_reading, document, example, older_letters, oldest_letters
from course.lab.shop.build import files
from course.lab.shop.dice import expand, fill, misspell
from course.lab.shop.world import garden_products, products, read

SPLITS = ("train", "validation", "test")
TASKS = [task for task in data.FIELDS if task != "passages"]


def test_every_file_is_generated_byte_for_byte_again():
    committed = {n: d for n, d in data.expected_checksums().items() if n.startswith("shop/")}
    generated = {f"shop/{name}": hashlib.sha256(content).hexdigest() for name, content in files()}
    assert generated == committed


def test_bundled_files_are_intact():
    assert data.verify() == []


@pytest.mark.parametrize("task", TASKS)
def test_sizes_and_unique_ids(task):
    sizes = [len(data.load(task, split)) for split in SPLITS]
    assert sizes == ([6000, 400, 400] if task == "pretraining" else [2000, 200, 400])
    ids = [record["id"] for split in SPLITS for record in data.load(task, split)]
    assert len(set(ids)) == len(ids)


def test_the_data_sets_stay_under_15_megabytes():
    assert sum(path.stat().st_size for path in (data.DATA / "shop").rglob("*")) < 15e6


def test_several_hundred_products_with_a_fifth_held_out():
    assert len({product.name for product in products()}) == 400
    assert 0.15 < sum(product.held_out for product in products()) / 400 < 0.25


def _pattern(template):
    """A regular expression for the texts of a phrasing (typos aside)."""
    parts = re.split(r"(\{\w+\}|\[[^\]]*\])", template)
    return "".join(
        ".+" if part.startswith("{") else f"(?:{part[1:-1]})" if part.startswith("[") else re.escape(part)
        for part in parts
    )


@pytest.mark.parametrize("task", MESSAGES)
def test_phrasings(task):
    phrasings = read("messages")[task]
    if task == "change":
        phrasings = {split: sum(phrasings[split].values(), []) for split in ("seen", "unseen")}
    assert len(set(phrasings["seen"])) >= 30 and len(set(phrasings["unseen"])) >= 8
    unseen = re.compile("|".join(_pattern(phrasing) for phrasing in phrasings["unseen"]), re.IGNORECASE)
    trained = [record["prompt"] for split in ("train", "validation") for record in data.load(task, split)]
    trained += [record["text"] for record in data.load("pretraining")]
    late = close_reading, older_letters, oldest_letters  # what the base models read last
    trained += [make(Dice("phrasings", make.__name__, i)) for make in late for i in range(300)]
    assert not [text for text in trained if unseen.search(text)]
    hits = [
        bool(unseen.search(record["prompt"])) for record in data.load(task, "test") if record["phrasing"] == "unseen"
    ]
    assert sum(hits) / len(hits) > 0.7  # the search finds what it is meant to find; typos hide the rest


@pytest.mark.parametrize("task", [*MESSAGES, "sql"])
def test_splits_measure_generalization(task):
    held_out = {product.name for product in products() if product.held_out}
    for record in data.load(task, "train"):
        assert record["phrasing"] == record["product"] == "seen"
        assert not any(f'"{name}"' in record["completion"] for name in held_out)
    test = data.load(task, "test")
    assert Counter((record["phrasing"], record["product"]) for record in test) == {
        (phrasing, product): 100 for phrasing in ("seen", "unseen") for product in ("seen", "unseen")
    }
    prompts = {record["prompt"] for record in data.load(task, "train")}
    if task != "sql":  # a question such as "Top price in toys?" has only so many forms
        assert not [record for record in test if record["prompt"] in prompts]


@pytest.mark.parametrize("task", MESSAGES)
def test_every_record_can_be_read_off_its_message(task):
    plurals = {product.name: product.plural for product in products()}
    numbers = read("vocabulary")["numbers"]
    for record in data.load(task, "test"):
        message = record["prompt"].lower()
        for field, value in json.loads(record["completion"]).items():
            if field in ("about", "tone", "change") or value is None:
                continue
            forms = [str(value).lower(), plurals.get(value, "-").lower()]
            if isinstance(value, int) and value <= 12:
                forms.append(numbers[value - 1])
            assert any(form in message for form in forms), (field, value, message)


def test_a_share_of_the_messages_has_a_typo():
    words = {word for split in SPLITS for record in data.load("recommend", split) for word in record["prompt"].split()}
    count = Counter(word for record in data.load("recommend") for word in record["prompt"].split())
    rare = [word for word in words if word.isalpha() and count[word] == 1]
    assert len(rare) > 100  # a misspelt word hardly ever comes twice


def test_the_pretraining_text_holds_no_record_of_a_task():
    """Neither all of a task's keys in one record, nor the names that a task gives to the kinds of a message."""
    texts = [record["text"] for split in SPLITS for record in data.load("pretraining", split)]
    records = [found for text in texts for found in re.findall(r"\{[^{}]*\}", text)]
    assert len(records) > 3000
    for task in MESSAGES:
        gold = [json.loads(record["completion"]) for record in data.load(task)]
        assert all(any(f'"{key}"' not in record for key in gold[0]) for record in records)
        for field in {"change", "about", "tone"} & gold[0].keys():
            kinds = {record[field] for record in gold}
            assert not [record for record in records if any(f': "{kind}"' in record for kind in kinds)]


def test_every_query_runs_and_most_find_something():
    connection = data.database()
    rows = [connection.execute(r["completion"]).fetchall() for split in SPLITS for r in data.load("sql", split)]
    assert sum(bool(found) for found in rows) / len(rows) > 0.95


def test_no_garden_word_is_in_the_pretraining_text():
    words = read("vocabulary")["garden"]
    new = {noun.split(":")[0] for noun in words["nouns"]} | set(words["plants"]) | set(words["materials"])
    texts = " ".join(document(Dice("check", i)) for i in range(3000)).lower()
    assert not [word for word in new if re.search(rf"\b{word}\b", texts)]
    assert {product.department for product in garden_products()} == {"garden"}


def test_prices_change_and_the_passages_say_so():
    before, after = data.load("passages", "before"), data.load("passages", "after")
    assert len(before) == len(after) == 400
    for product, old, new in zip(products(), before, after, strict=True):
        assert product.price != product.new_price > 0
        assert f"Price: {product.price} euros" in old["text"] and f"Price: {product.new_price} euros" in new["text"]


# dice


def test_dice_are_even_and_know_their_information():
    dice = Dice("test")
    counts = Counter(dice.below(6) for _ in range(6000))
    assert set(counts) == set(range(6)) and all(abs(count - 1000) < 150 for count in counts.values())
    assert dice.nats == pytest.approx(6000 * math.log(6))
    dice = Dice("coin")
    hits = sum(dice.chance(0.1) for _ in range(10_000))
    assert 850 < hits < 1150
    assert dice.nats == pytest.approx(-hits * math.log(0.1) - (10_000 - hits) * math.log(0.9))


def test_dice_of_one_seed_agree_and_of_two_differ():
    assert [Dice("a", 1).below(1000) for _ in range(3)] == [Dice("a", 1).below(1000)] * 3
    assert [Dice("a", i).below(10**9) for i in range(3)] != [Dice("b", i).below(10**9) for i in range(3)]


def test_sample_has_no_repetitions():
    assert sorted(Dice("s").sample(range(20), 20)) == list(range(20))


def test_templates():
    assert expand("a [x|y] b", Dice(0)) in ("a x b", "a y b")
    assert fill("a {color} mug. i see a {color} hat.", {"color": "orange"}) == "An orange mug. I see an orange hat."


@given(st.integers(0, 10_000))
def test_a_typo_leaves_the_slots_alone(seed):
    template = "please change the address of order {order} to {value}"
    slip = misspell(template, Dice(seed))
    assert "{order}" in slip and "{value}" in slip


@pytest.mark.parametrize("task", MESSAGES)
def test_a_message_depends_on_its_seed_alone(task):
    first = example(task, Dice("same"), "seen", False)
    document(Dice("something else"))
    assert example(task, Dice("same"), "seen", False) == first


# loading


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DATA", tmp_path / "data")
    (tmp_path / "data/shop/recommend").mkdir(parents=True)
    return tmp_path / "data"


GOOD = dict(id="1", task="recommend", prompt="p", completion="c", phrasing="seen", product="seen")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: this is not JSON"),
        ("[1]", "line 2: a JSON object is needed, not list"),
        (
            json.dumps({k: v for k, v in GOOD.items() if k != "completion"}),
            "line 2: the field 'completion' is missing",
        ),
        (json.dumps(GOOD | {"prompt": 7}), "line 2: 'prompt' must be a str that is not empty, not 7"),
        (json.dumps(GOOD | {"prompt": ""}), "line 2: 'prompt' must be a str that is not empty, not ''"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(folder, line, message):
    (folder / "shop/recommend/train.jsonl").write_text(f"{json.dumps(GOOD)}\n{line}\n", encoding="utf-8")
    with pytest.raises(data.DataError, match="data/shop/recommend/train.jsonl, " + re.escape(message)):
        data.load("recommend")


def test_missing_and_unknown_files_are_named(folder):
    (folder / "shop/recommend/train.jsonl").write_text("", encoding="utf-8")
    for arguments, message in [
        (("recommend",), "train.jsonl is empty"),
        (("change",), "data/shop/change/train.jsonl is missing. `make data` writes it anew"),
        (("recommend", "tset"), "split: got 'tset', recommend has train"),
        (("recomend",), "task: got 'recomend', known are recommend"),
        (("recommend", "train", 0), "limit: got 0"),
    ]:
        with pytest.raises(data.DataError, match=re.escape(message)):
            data.load(*arguments)
    with pytest.raises(data.DataError, match="shop.sql is missing"):
        data.database()


def test_a_changed_or_missing_file_is_found(folder):
    file = folder / "shop/recommend/train.jsonl"
    file.write_text("a", encoding="utf-8")
    (folder / "shop/shop.sql").write_text("b", encoding="utf-8")
    assert "SHA256SUMS is missing" in data.verify(folder)[0]
    assert data.write_checksums(folder) == 2 and data.verify(folder) == []
    file.write_text("c", encoding="utf-8")
    (folder / "shop/shop.sql").unlink()
    problems = ["data/shop/recommend/train.jsonl has changed", "data/shop/shop.sql is missing"]
    assert sorted(data.verify(folder)) == problems


def test_the_database_cannot_be_written_to():
    with pytest.raises(Exception, match="readonly"):
        data.database().execute("DELETE FROM orders")
