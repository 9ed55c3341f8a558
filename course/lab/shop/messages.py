"""The three kinds of customer message, each with the record that it asks for."""

import json

from course.lab.shop.dice import Dice, expand, fill, misspell
from course.lab.shop.world import Product, address, date, person, products, read

TYPO_SHARE = 0.15  # of the messages, in a word that carries no field of the record


def _message(core: str, slots: dict, dice: Dice, closing: bool = True) -> str:
    texts = read("messages")
    parts = [
        dice.pick(texts["greetings"]),
        expand(core, dice),
        dice.pick(texts["closings"]) if closing else "",
    ]
    template = " ".join(part for part in parts if part)
    if dice.chance(TYPO_SHARE):
        template = misspell(template, dice)
    return fill(template, slots)


def _product(dice: Dice, held_out: bool) -> Product:
    return dice.pick([product for product in products() if product.held_out == held_out])


def recommend(dice: Dice, phrasing: str, held_out: bool) -> tuple[str, dict]:
    """A wish: (message, record). `phrasing` is "seen", "unseen" or "older"."""
    words, product = read("vocabulary"), _product(dice, held_out)
    record = {
        "item": product.name,
        "color": dice.pick(words["colors"]),
        "max_price": dice.between(5, 150),
        "for": dice.pick(words["people"]),
    }
    core = dice.pick(read("messages")["recommend"][phrasing])
    slots = {
        "item": product.name,
        "items": product.plural,
        "color": record["color"],
        "Color": record["color"].capitalize(),
        "price": record["max_price"],
        "who": record["for"],
    }
    return _message(core, slots, dice), record


def change(dice: Dice, phrasing: str, held_out: bool) -> tuple[str, dict]:
    """A change to an order: (message, record)."""
    words, product = read("vocabulary"), _product(dice, held_out)
    cores = read("messages")["change"][phrasing]
    kind = dice.pick(tuple(cores))
    number = dice.between(2, 12)
    value, said = {
        "address": lambda: (address(dice),) * 2,
        "color": lambda: (dice.pick(words["colors"]),) * 2,
        "quantity": lambda: (number, words["numbers"][number - 1]),
        "product": lambda: (_product(dice, held_out).name,) * 2,
        "date": lambda: (date(dice),) * 2,
        "cancel": lambda: (None, None),
    }[kind]()
    record = {"order": dice.between(10000, 99999), "product": product.name, "change": kind, "to": value}
    slots = {
        "order": record["order"],
        "item": product.name,
        "items": product.plural,
        "value": said,
        "Value": str(said).capitalize(),
        "who": dice.pick(words["people"]),
    }
    return _message(dice.pick(cores[kind]), slots, dice), record


def feedback(dice: Dice, phrasing: str, held_out: bool) -> tuple[str, dict]:
    """An opinion: (message, record)."""
    words, texts, product = read("vocabulary"), read("messages")["feedback"], _product(dice, held_out)
    about = dice.pick(tuple(texts["cues"]))
    tone = dice.pick(("happy", "unhappy"))
    record = {"name": person(dice), "product": product.name, "about": about, "tone": tone}
    slots = {
        "item": product.name,
        "name": record["name"],
        "cue": dice.pick(texts["cues"][about][tone]),
        "who": dice.pick(words["people"]),
        "weekday": dice.pick(words["weekdays"]),
    }
    return _message(dice.pick(texts[phrasing]), slots, dice, closing=False), record


MESSAGES = {"recommend": recommend, "change": change, "feedback": feedback}
RECORD_KEYS = {task: tuple(make(Dice(task), "seen", False)[1]) for task, make in MESSAGES.items()}


def example(task: str, dice: Dice, phrasing: str, held_out: bool) -> dict:
    """Prompt and completion of one message task, without its id."""
    message, record = MESSAGES[task](dice, phrasing, held_out)
    request = read("messages")[task]["request"]
    return {
        "task": task,
        "prompt": f"{message}\n{request}\n",
        "completion": json.dumps(record, ensure_ascii=False),
        "phrasing": phrasing,
        "product": "unseen" if held_out else "seen",
    }
