"""The pretraining text: documents of many kinds about the shop, much of it copied, rephrased or put into records.

Copying has to be learned from text in which copying pays: an item said once and needed again, after a space, after
a quote, capitalized, in the plural, under another key.
"""

import json

from course.lab.shop.dice import Dice, Drawn, expand, fill
from course.lab.shop.messages import MESSAGES, RECORD_KEYS, misspell
from course.lab.shop.world import Product, address, date, order, person, products, read


def made_up(dice: Dice) -> str:
    """A word that no list holds, for example "dovatel"."""
    onsets = [*"bcdfghklmnprstvz", "br", "st", "tr", "pl"]
    parts = [dice.pick(onsets) + dice.pick("aeiou")]
    parts += [dice.pick("bdfgklmnprstvz") + dice.pick("aeiou") for _ in range(dice.below(3))]
    return "".join(parts) + dice.pick(["", "n", "l", "r", "s", "t"])


def situation(dice: Dice) -> Drawn:
    """Facts for one document, by field."""
    words = read("vocabulary")

    def goods():
        product = dice.pick(products())
        return product.name, product.plural, product.code

    return Drawn(
        dice,
        {
            goods: ("product", "products", "code"),
            lambda: [dice.between(2, 12)]: ("quantity",),
            lambda: [person(dice)]: ("name",),
            lambda: [dice.pick(words["towns"])]: ("town",),
            lambda: [dice.pick(words["colors"])]: ("color",),
            lambda: [dice.between(4, 150)]: ("price",),
            lambda: [dice.pick(words["people"])]: ("who",),
            lambda: [dice.between(10000, 99999)]: ("order",),
            lambda: [address(dice)]: ("street",),
            lambda: [date(dice)]: ("date",),
            lambda: [dice.pick(words["makers"])]: ("maker",),
            lambda: [dice.pick(words["months"])]: ("month",),
            lambda: [dice.pick(words["weekdays"])]: ("weekday",),
        },
    )


class _Spoken:
    """The slots of a situation as a sentence says them: the quantity also as a word, some with a capital."""

    def __init__(self, facts: Drawn, dice: Dice):
        self.facts, self.as_word = facts, dice.pick((False, True, True))

    def __getitem__(self, slot: str):
        if slot.lower() != slot:
            return str(self[slot.lower()]).capitalize()
        value = self.facts[slot]
        return read("vocabulary")["numbers"][value - 1] if slot == "quantity" and self.as_word else value


def _sentences(fields: list[str], facts: dict, dice: Dice) -> str:
    """Sentences that state every field, in random order, some of them two at a time."""
    texts, rest, said = read("texts")["facts"], list(fields), []
    for pair, templates in texts["joint"].items():
        first, second = pair.split()
        if first in rest and second in rest and dice.chance(0.6):
            rest = [field for field in rest if field not in (first, second)]
            said.append(dice.pick(templates))
    said += [dice.pick(texts[field]) for field in rest]
    if dice.chance(0.3):
        said.append(dice.pick(read("texts")["records"]["fillers"]))
    return fill(expand(" ".join(dice.sample(said, len(said))), dice), _Spoken(facts, dice))


def _record(facts: dict, keys: dict, style: str) -> str:
    """The facts under their keys, in one of seven notations."""
    record = {key: facts[field] for field, key in keys.items()}
    if style == "json":
        return json.dumps(record)
    if style == "json lines":
        return json.dumps(record, indent=1)
    if style == "list":
        return json.dumps(list(record.values()))
    if style == "card":
        return "\n".join(f"{key.capitalize()}: {value}" for key, value in record.items())
    if style == "title card":
        return "\n".join(f"{key.capitalize()}: {str(value).capitalize()}" for key, value in record.items())
    if style == "quoted":
        return ", ".join(f'{key} = "{value}"' for key, value in record.items())
    return " | ".join(record) + "\n" + " | ".join(map(str, record.values()))  # table


STYLES = {"json": 10, "json lines": 1, "list": 2, "card": 2, "title card": 1, "quoted": 2, "table": 1}


def _keys(names: dict, dice: Dice) -> dict[str, str]:
    """A key for each field, of those that `names` lists, but never all the keys of one task's record."""
    while True:
        keys = {field: dice.pick(options) for field, options in names.items()}
        if not any(set(fields) <= set(keys.values()) for fields in RECORD_KEYS.values()):
            return keys


def records(dice: Dice) -> str:
    """One to four passages, each followed by its record, all in one schema."""
    texts = read("texts")
    fields = dice.sample(tuple(texts["keys"]), dice.between(2, 5))
    keys = _keys({field: texts["keys"][field] for field in fields}, dice)
    style, lead = dice.weighted(STYLES), dice.pick(texts["records"]["leads"])
    passages = []
    for _ in range(dice.between(1, 4)):
        facts = situation(dice)
        more = dice.sample([f for f in texts["keys"] if f not in fields], dice.below(3))
        passages.append(f"{_sentences(fields + more, facts, dice)}\n{lead}\n{_record(facts, keys, style)}")
    return "\n\n".join(passages)


def reading(dice: Dice) -> str:
    """One to three facts and their record as JSON: the shortest text in which a value is found by what it means."""
    texts, facts = read("texts"), situation(dice)
    fields = dice.sample(tuple(texts["keys"]), dice.between(1, 3))
    keys = {field: dice.pick(texts["keys"][field]) for field in fields}
    return f"{_sentences(fields, facts, dice)}\n{_record(facts, keys, 'json')}"


def forms(dice: Dice, task: str | None = None, rare: str = "seen") -> str:
    """One or two customer messages, each with its record, under names that tasks do not use.

    `rare`: the phrasings that most of the messages have, "seen" or another of those in messages.toml.
    """
    texts = read("texts")
    names = texts["keys"] | texts["forms"]["keys"]
    values = {field: dice.pick(options) for field, options in texts["forms"]["values"].items()}
    task, lead = task or dice.pick(tuple(MESSAGES)), dice.pick(texts["records"]["leads"])
    fields = texts["forms"]["fields"][task]
    keys = _keys({field: names[fields[field]] for field in dice.sample(tuple(fields), len(fields))}, dice)
    blocks = []
    for _ in range(dice.between(1, 2)):
        phrasing = rare if rare != "seen" and dice.chance(0.7) else "seen"
        message, record = MESSAGES[task](dice, phrasing, dice.chance(0.2))
        named = {key: values.get(field, {}).get(record[field], record[field]) for field, key in keys.items()}
        blocks.append(f"{message}\n{lead}\n{json.dumps(named)}")
    return "\n\n".join(blocks)


def answers(dice: Dice) -> str:
    """A passage and questions about it, answered in its own words."""
    facts, keys = situation(dice), read("texts")["keys"]
    fields = dice.sample(tuple(keys), dice.between(3, 6))
    lines = [_sentences(fields, facts, dice)]
    for field in dice.sample(fields, dice.between(1, 3)):
        lines.append(f"{dice.pick(keys[field]).capitalize()}? {str(facts[field])[:1].upper()}{str(facts[field])[1:]}.")
    return "\n".join(lines)


def _items(dice: Dice, count: int) -> list[str]:
    """Things to list, of one kind or of many; the made-up words can only be copied, never guessed."""
    words = read("vocabulary")
    kinds = {
        "made up": lambda: made_up(dice),
        "color": lambda: dice.pick(words["colors"]),
        "person": lambda: person(dice),
        "town": lambda: dice.pick(words["towns"]),
        "product": lambda: dice.pick(products()).name,
        "noun": lambda: dice.pick(products()).noun,
        "number": lambda: str(dice.between(1, 999)),
        "order": lambda: str(dice.between(10000, 99999)),
        "relative": lambda: dice.pick(words["people"]),
        "maker": lambda: dice.pick(words["makers"]),
        "count": lambda: dice.pick(words["numbers"]),
        "date": lambda: date(dice),
        "address": lambda: address(dice),
    }
    weights = dict.fromkeys(kinds, 1) | {"made up": 4}
    mixed, kind = dice.chance(0.5), dice.weighted(weights)
    return [kinds[dice.weighted(weights) if mixed else kind]() for _ in range(count)]


def copies(dice: Dice) -> str:
    """A short list, word for word again."""
    texts, items = read("texts")["echo"], ", ".join(_items(dice, dice.between(2, 5)))
    lines = [f"{dice.pick(texts['asks'])}: {items}"]
    lines += [f"{dice.pick(texts['answers'])}: {items}" for _ in range(dice.between(1, 3))]
    return "\n".join(lines)


def echo(dice: Dice) -> str:
    """A list, then the same list again in other clothes."""
    texts, items = read("texts")["echo"], _items(dice, dice.between(3, 9))
    lines = [f"{dice.pick(texts['asks'])}: {', '.join(items)}"]
    for _ in range(dice.between(1, 3)):
        clothes = dice.pick(("plain", "json", "quoted", "capital", "numbered", "brackets", "words"))
        lines.append(f"{dice.pick(texts['answers'])}: {_dress(items, clothes)}")
    return "\n".join(lines)


def _dress(items: list[str], clothes: str) -> str:
    if clothes == "json":
        return json.dumps(items)
    if clothes == "quoted":
        return " and ".join(f'"{item}"' for item in items)
    if clothes == "capital":
        return ", ".join(item[:1].upper() + item[1:] for item in items)
    if clothes == "numbered":
        return " ".join(f"{i}) {item}" for i, item in enumerate(items, 1))
    if clothes == "brackets":
        return "".join(f"({item})" for item in items)
    return (" " if clothes == "words" else ", ").join(items)


def plurals(dice: Dice) -> str:
    """Products with their plurals and numbers with their words, both ways round."""
    words, lines = read("vocabulary"), []
    for product in dice.sample(products(), dice.between(2, 5)):
        number = dice.between(2, 12)
        word = words["numbers"][number - 1]
        lines.append(
            fill(
                dice.pick(
                    (
                        "one {item}, {number} {items} ({digits})",
                        '{number} {items}: "item": "{item}", "n": {digits}',
                        "{digits} {items} = {number} times a {item}",
                        "a {item} and another {item} are {items}; {digits} is {number}",
                    )
                ),
                {"item": product.name, "items": product.plural, "number": word, "digits": number},
            )
        )
    return "\n".join(lines)


def product_slots(product: Product) -> dict:
    colors = ", ".join(product.colors[:2]) + " and " + product.colors[2]
    fields = ("code", "department", "price", "maker", "town", "weight")
    slots = {field: getattr(product, field) for field in fields}
    return slots | {"product": product.name, "Product": product.name.capitalize(), "colors": colors}


def catalogue(dice: Dice, choice=None) -> str:
    """Entries and questions about one to three products: facts to be known by heart."""
    texts, blocks = read("texts")["catalogue"], []
    for product in dice.sample(choice or products(), dice.between(1, 3)):
        slots = product_slots(product)
        lines = [fill(dice.pick(texts["entries"]), slots)] if dice.chance(0.7) else []
        for pair in dice.sample(texts["questions"], dice.between(1, 3)):
            question, answer = fill(pair, slots).split("|")
            lines.append(f"{question} {answer}")
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def review(dice: Dice, choice=None) -> str:
    texts, cues = read("texts")["reviews"], read("messages")["feedback"]["cues"]
    about, tone = dice.pick(tuple(cues)), dice.pick(("happy", "unhappy"))
    cue = dice.pick(cues[about][tone])
    slots = {
        "item": dice.pick(choice or products()).name,
        "name": person(dice),
        "town": dice.pick(read("vocabulary")["towns"]),
        "cue": cue,
        "Cue": cue.capitalize(),
        "stars": dice.pick((4, 5) if tone == "happy" else (1, 2)),
        "subject": texts["subjects"][about],
    }
    text = fill(dice.pick(texts["frames"]), slots)
    return f"{text} {dice.pick(texts['verdicts'][tone])}"


def opinions(dice: Dice) -> str:
    """What customers say of the shop, each with the shop's names for its subject and its mood."""
    texts, cues = read("texts")["forms"], read("messages")["feedback"]["cues"]
    keys = {
        field: dice.pick(texts["keys"][key]) for field, key in dice.sample((("about", "topic"), ("tone", "mood")), 2)
    }
    values = {field: dice.pick(texts["values"][field]) for field in keys}
    as_json, lines = dice.chance(0.5), []
    for _ in range(dice.between(2, 6)):
        meant = {"about": dice.pick(tuple(cues)), "tone": dice.pick(("happy", "unhappy"))}
        said = dice.pick(cues[meant["about"]][meant["tone"]])
        named = {key: values[field][meant[field]] for field, key in keys.items()}
        notes = json.dumps(named) if as_json else ", ".join(f"{key}: {value}" for key, value in named.items())
        lines.append(f"{said[0].upper()}{said[1:]}. {notes}")
    return "\n".join(lines)


def letter(dice: Dice) -> str:
    """A customer's message in one of the seen phrasings, and what the shop writes back."""
    message, record = MESSAGES[dice.pick(tuple(MESSAGES))](dice, "seen", dice.chance(0.2))
    item, name = record.get("item") or record["product"], record.get("name") or person(dice)
    words = read("vocabulary")
    slots = {
        "name": name,
        "item": item,
        "town": dice.pick(words["towns"]),
        "weekday": dice.pick(words["weekdays"]),
    }
    signature = "" if "name" in record else f" {name}"
    return f"{message}{signature}\n{fill(dice.pick(read('texts')['letters']['replies']), slots)}"


def orders_table(dice: Dice) -> str:
    """A few orders as a table, then one of its lines in words."""
    rows = [order(dice) for _ in range(dice.between(2, 4))]
    lines = ["number | customer | goods | shade | pieces"]
    lines += [f"{o.number} | {o.customer} | {o.product.name} | {o.color} | {o.quantity}" for o in rows]
    o = dice.pick(rows)
    goods = o.product.name if o.quantity == 1 else o.product.plural
    lines.append(f"{o.customer} has order {o.number}: {o.quantity} {o.color} {goods}.")
    return "\n".join(lines)


def long_order(dice: Dice, lines: int) -> tuple[str, int, int]:
    """An order with many lines and a question about one: (text, answer, the line asked about from 1)."""
    words, goods = read("vocabulary"), dice.sample(products(), lines)
    counts = [dice.between(2, 99) for _ in goods]
    asked = dice.below(lines)
    parts = [f"Order {dice.between(10000, 99999)} of {person(dice)}:"]
    parts += [f"{n} {dice.pick(words['colors'])} {p.plural}" for n, p in zip(counts, goods, strict=True)]
    parts.append(f"How many {goods[asked].plural} are in the order? ")
    return "\n".join(parts), counts[asked], asked + 1


def short_order(dice: Dice) -> str:
    text, answer, _ = long_order(dice, dice.between(3, 20))
    return text + str(answer)


def town(dice: Dice) -> str:
    """Plain prose about one town. What is said of it is the same whenever it is said."""
    words, texts = read("vocabulary"), read("texts")["town"]
    name, lines = dice.pick(words["towns"]), []
    for i in dice.sample(range(len(texts["facts"])), dice.between(3, 6)):
        fixed = Dice("town", name, i)  # the town's own dice: a fact costs no information but its choice
        slots = {
            "town": name,
            "other": fixed.pick(words["towns"]),
            "weekday": fixed.pick(words["weekdays"]),
            "month": fixed.pick(words["months"]),
            "pride": fixed.pick(texts["prides"]),
            "km": fixed.between(3, 90),
            "years": fixed.between(5, 95),
            "name": person(fixed),
            "maker": fixed.pick(words["makers"]),
            "street": fixed.pick(words["streets"]),
            "who": fixed.pick(words["people"]),
        }
        lines.append(fill(expand(texts["facts"][i], fixed), slots))
    return " ".join(lines)


def notes(dice: Dice) -> str:
    """The shop's notebook: some lines, then one of them again."""
    lines = []
    for _ in range(dice.between(2, 5)):
        template = dice.pick(read("texts")["notes"]["lines"])
        if dice.chance(0.1):
            template = misspell(template, dice)
        lines.append("- " + fill(template, situation(dice)))
    if dice.chance(0.6):
        lines.append("First: " + lines[0][2:] if dice.chance(0.5) else "Last: " + lines[-1][2:])
    return "\n".join(lines)


KINDS = {
    records: 18,
    forms: 30,
    reading: 10,
    opinions: 5,
    copies: 8,
    echo: 12,
    plurals: 5,
    answers: 8,
    catalogue: 12,
    letter: 6,
    review: 6,
    orders_table: 4,
    short_order: 4,
    town: 4,
    notes: 5,
}


def document(dice: Dice) -> str:
    """One document of the pretraining text, of a random kind."""
    return dice.weighted(KINDS)(dice)


def copying(dice: Dice) -> str:
    """A document of which a third or more stands in it already: what a base model reads early."""
    return dice.weighted({copies: 1, reading: 1})(dice)


def close_reading(dice: Dice) -> str:
    """A document of any kind, but most often one in which a message is understood: what a base model reads late."""
    kind = dice.weighted({"change": 6, forms: 8, opinions: 4, reading: 2, document: 6})
    return forms(dice, kind) if kind in MESSAGES else kind(dice)


def older_letters(dice: Dice) -> str:
    """Close reading once more, with phrasings that stand nowhere else: what a base model reads later."""
    kind = dice.weighted({"recommend": 3, "change": 7, "feedback": 1, opinions: 1, echo: 1, reading: 1, document: 5})
    return forms(dice, kind, "older") if kind in MESSAGES else kind(dice)


def oldest_letters(dice: Dice) -> str:
    """Changes to orders, said in still other ways: what a base model reads last."""
    kind = dice.weighted({"recommend": 2, "change": 9, opinions: 1, echo: 1, reading: 2, document: 5})
    return forms(dice, kind, "oldest" if kind == "change" else "older") if kind in MESSAGES else kind(dice)
