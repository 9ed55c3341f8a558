"""Seeded choices that are the same on every platform, and that know how much information they made.

Only `random.Random.random` is used: Python keeps its sequence stable across versions, which it does not
promise for `choice`, `shuffle` or `sample`.
"""

import math
import random
import re
from collections.abc import Mapping, Sequence


class Dice:
    """Random choices from a seed such as `Dice("pretrain", 7)`.

    `nats` sums the information of every choice made, -ln(probability). The text made from these choices
    cannot be predicted with fewer nats on average, except where two different choices give the same text:
    so `nats` is an upper bound of the text's entropy.
    """

    def __init__(self, *seed):
        self._random = random.Random("/".join(map(str, seed)))
        self.nats = 0.0

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        self.nats += math.log(n)
        return int(self._random.random() * n)

    def between(self, low: int, high: int) -> int:
        """A number from low to high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        hit = self._random.random() < probability
        self.nats -= math.log(probability if hit else 1 - probability)
        return hit

    def pick(self, options: Sequence):
        return options[self.below(len(options))]

    def weighted(self, weights: Mapping):
        """One key of `weights`, with probability proportional to its value."""
        total = sum(weights.values())
        mark = self._random.random() * total
        for key, weight in weights.items():
            if mark < weight:
                self.nats -= math.log(weight / total)
                return key
            mark -= weight
        raise ValueError(f"weights: {weights!r} has no positive weight")

    def sample(self, options: Sequence, k: int) -> list:
        """k different options in random order."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in range(k)]


class Drawn(dict):
    """Values drawn before it is known which of them the text will use: what was not read does not count as nats."""

    def __init__(self, dice: Dice, draw: Mapping):
        """`draw`: function that draws -> names of the values that it returns, as a tuple where there are several."""
        super().__init__()
        self.dice, self.groups = dice, {}
        for make, names in draw.items():
            before = dice.nats
            self.update(zip(names, make(), strict=True))
            self.groups |= dict.fromkeys(names, [dice.nats - before])
            dice.nats = before

    def __getitem__(self, name):
        group = self.groups[name]
        self.dice.nats += group.pop() if group else 0.0
        return super().__getitem__(name)


def expand(template: str, dice: Dice) -> str:
    """Chooses one side of every `[a|b]` in a template."""
    return re.sub(r"\[([^\[\]]*)\]", lambda match: dice.pick(match[1].split("|")), template)


def fill(template: str, slots: Mapping) -> str:
    """Puts `slots` into a template, then mends "a orange" to "an orange" and capitalizes the sentences."""
    text = re.sub(r"\{(\w+)\}", lambda match: str(slots[match[1]]), template)
    text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def misspell(template: str, dice: Dice) -> str:
    """One slip of the pen in a word that is not a slot: a letter dropped, doubled or swapped with the next."""
    words = template.split(" ")
    candidates = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if candidates:
        i = dice.pick(candidates)
        word, at = words[i], dice.between(1, len(words[i]) - 2)
        slip = dice.pick(("drop", "double", "swap"))
        if slip == "drop":
            words[i] = word[:at] + word[at + 1 :]
        elif slip == "double":
            words[i] = word[:at] + word[at] + word[at:]
        else:
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)
