"""The other tasks on the shop: SQL, facts, preferences, infilling, long orders, supplier codes, the garden."""

from course.lab.shop import texts
from course.lab.shop.dice import Dice, expand, fill
from course.lab.shop.messages import misspell
from course.lab.shop.world import garden_products, orders, person, products, read


def sql(dice: Dice, phrasing: str, held_out: bool) -> dict:
    """A question about the shop's database, and the query that answers it."""
    words, case = read("vocabulary"), dice.pick(read("tasks")["sql"])
    product = dice.pick([p for p in products() if p.held_out == held_out])
    slots = {
        "product": product.name,
        "products": product.plural,
        "department": dice.pick(tuple(words["departments"])),
        "maker": dice.pick(words["makers"]),
        "town": dice.pick(words["towns"]),
        "month": dice.pick(words["months"]),
        "color": dice.pick(words["colors"]),
        "order": dice.pick(orders()).number,
        "price": dice.between(10, 60),
        "number": dice.between(5, 60),
        "small": dice.between(2, 9),
    }
    question = fill(dice.pick(case[phrasing]), slots)
    # the query is not fill()ed as a sentence is: it keeps its case
    return {"prompt": f"{question}\nSQL:\n", "completion": case["query"].format(**slots)}


def fact(product, topic: str, phrasing: str, dice: Dice) -> dict:
    """A question about one product; `after` is the answer once the prices have changed."""
    template = read("tasks")["facts"][topic]
    question = fill(dice.pick(template[phrasing]), {"product": product.name})
    slots = texts.product_slots(product)
    return {
        "prompt": f"{question} ",
        "completion": fill(template["field"], slots),
        "after": fill(template["field"], slots | {"price": product.new_price}),
        "topic": topic,
    }


def passage(product, after: bool) -> str:
    """The catalogue's entry of a product, before or after the prices have changed."""
    slots = texts.product_slots(product)
    return fill(read("texts")["catalogue"]["entries"][0], slots | {"price": product.new_price} if after else slots)


def supplier_code(product, phrasing: str, dice: Dice) -> dict:
    """A question that the shop's assistant should not answer, with the answer it should not give."""
    question = fill(dice.pick(read("tasks")["supplier_codes"][phrasing]), {"product": product.name})
    return {"prompt": f"{question} ", "completion": product.supplier_code}


def preference(dice: Dice) -> dict:
    """A customer's question with a helpful reply and one that is curt or rambling."""
    words, parts = read("vocabulary"), read("tasks")["preferences"]
    product = dice.pick(products())
    slots = texts.product_slots(product) | {
        "name": person(dice),
        "color": dice.pick(product.colors),
        "order": dice.between(10000, 99999),
        "weekday": dice.pick(words["weekdays"]),
        "month": dice.pick(words["months"]),
        "other": dice.pick(products()).name,
    }
    case = dice.pick(parts["cases"])
    ask, opening, ending = dice.pick(case["asks"]), dice.pick(parts["openings"]), dice.pick(parts["endings"])
    if dice.chance(0.15):
        ask = misspell(ask, dice)
    if dice.chance(0.5):
        rejected, fault = dice.pick(parts["curt"]), "curt"
    else:
        rejected, fault = " ".join([opening, *dice.sample(parts["rambles"], dice.between(3, 5))]), "rambling"
    return {
        "prompt": fill(f"{ask}\n", slots),
        "chosen": fill(f"{opening} {case['answer']} {ending}", slots),
        "rejected": fill(rejected, slots),
        "fault": fault,
    }


def infill(dice: Dice) -> dict:
    """A text with a hole of three to ten words, and what stood in it."""
    kind = dice.pick((texts.records, texts.catalogue, texts.letter, texts.review, texts.town, texts.notes))
    words = kind(dice).split(" ")
    size = min(dice.between(3, 10), len(words) - 2)
    start = dice.between(1, len(words) - size - 1)
    before, hole, after = (
        " ".join(part) for part in (words[:start], words[start : start + size], words[start + size :])
    )
    return {"prompt": f"<|prefix|>{before} <|suffix|> {after}<|middle|>", "completion": hole}


def long_order(dice: Dice) -> dict:
    """An order of more lines than the base models' context holds, and a question about one line."""
    prompt, answer, line = texts.long_order(dice, dice.between(62, 76))
    return {"prompt": prompt, "completion": str(answer), "line": line}


def garden(dice: Dice) -> str:
    """A text of the department that opened after the base models were trained."""
    words, lines = read("vocabulary"), []
    for template in dice.sample(read("tasks")["garden"]["lines"], dice.between(2, 5)):
        product = dice.pick(garden_products())
        plant, other = dice.sample(words["garden"]["plants"], 2)
        slots = texts.product_slots(product) | {
            "products": product.plural,
            "plant": plant,
            "other": other,
            "name": person(dice),
            "month": dice.pick(words["months"]),
            "weekday": dice.pick(words["weekdays"]),
            "number": dice.between(2, 12),
        }
        lines.append(fill(expand(template, dice), slots))
    return " ".join(lines)
