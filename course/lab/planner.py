"""Will it fit? The memory formulas as a question with an answer: what it takes, the most that fits, what to change.

On the command line, through `course.lab.plan`: `python -m course plan --model llama-2-7b --method qlora --gpu 24GiB`.
"""

import inspect
import re
from dataclasses import dataclass

from course.activations import METHODS, USED_BY
from course.memory import BYTES, NF4, inference_memory, training_memory, weight_bytes
from course.model_shape import MOE, ModelShape

UNITS = {"GIB": 2**30, "GB": 10**9, "MIB": 2**20, "MB": 10**6, "B": 1}
# What a GPU's own context and the allocator's unused rest take; an assumption, the one number here that is not counted.
RESERVE = 2**29
COMPUTE = {"training": training_memory, "inference": inference_memory}
# The settings of each mode and their defaults: the arguments of these functions.
SETTINGS = {
    mode: {name: found.default for name, found in inspect.signature(compute).parameters.items() if name != "shape"}
    for mode, compute in COMPUTE.items()
}


@dataclass(frozen=True)
class Plan:
    """One way to run or train a model: `settings` are the arguments of inference_memory or training_memory."""

    shape: ModelShape
    mode: str
    settings: dict

    def memory(self, **changes):
        return COMPUTE[self.mode](self.shape, **self.settings | changes)

    def fits(self, gpu, **changes):
        return self.memory(**changes).total + RESERVE <= gpu

    @property
    def ceiling(self):
        """Tokens of the longest text that can be: a learned table of positions ends."""
        prompt = self.settings["virtual_tokens"] if self.settings.get("method") == "prompt" else 0
        return self.shape.context - prompt if self.shape.positions else 2**24

    def largest(self, name, gpu):
        """The largest "batch" or "seq" that fits in `gpu` bytes, all else equal; 0 where not even 1 does."""
        low, high = 0, self.ceiling + 1 if name == "seq" else 2**24
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(gpu, **{name: middle}) else (low, middle)
        return low

    def changes(self, gpu=0):
        """What could be changed, the cheapest first: (what, what it costs, the settings); gpu: bytes of a device."""
        s, found = self.settings, []

        def offer(what, cost, **change):
            found.append((what, cost, change))

        if self.mode == "inference":
            costs = {"bf16": "nothing measurable", "int8": "a little accuracy", "nf4": "some accuracy"}
            for dtype, cost in costs.items():
                if (BYTES | NF4)[dtype] < (BYTES | NF4)[s["dtype"]]:
                    offer(f"weights in {dtype}", cost, dtype=dtype)
            if s["batch"] > 1:
                fewer = max(1, min(self.largest("batch", gpu), s["batch"] - 1))
                offer(f"a batch of {fewer:,}", "fewer answers a second", batch=fewer)
            offer("half the sequence", "longer texts are cut", seq=max(1, s["seq"] // 2))
            return found
        if s["attention"] == "eager":
            offer("attention through SDPA", "nothing: the same result, sooner", attention="sdpa")
        if s["foreach"]:
            offer("a fused optimizer", "nothing: the same result", foreach=False)
        if s["batch"] > 1:
            texts = s["batch"] * s["accumulation"]
            offer(f"batches of 1, {texts} a step", "a little speed", batch=1, accumulation=texts)
        if s["optimizer"] in {"adam", "adamw"}:
            cost = "averages rounded to 8 bits, which Dettmers et al. 2022 saw cost nothing"
            offer("AdamW in 8 bits", cost, optimizer="adamw_8bit", foreach=False)
        if s["checkpointing"] is not True:
            offer("checkpointing", "up to a third more time", checkpointing=True)
        if s["precision"] != "bf16":
            offer("all in BF16", "small updates can be lost (chapter 06)", precision="bf16")
        if s["method"] in {"full", "partial"}:
            offer(f"LoRA, rank {s['rank']}", "capacity to learn (chapter 08)", method="lora")
        if s["method"] in {"full", "partial", "lora"} and self.shape.family not in MOE:
            cost = "slower steps, weights rounded to 4 bits (chapter 10)"
            offer("QLoRA", cost, method="qlora", precision="bf16")
        offer("half the sequence", "longer texts are cut", seq=max(1, s["seq"] // 2))
        return found + self._more_devices(gpu)

    def _more_devices(self, gpu, **others):
        """As few as it takes beside the changes `others`, or as many as are offered: one change, or none."""
        s = self.settings
        change = {"sharding": "zero3"} | ({"precision": "bf16"} if s["precision"] == "autocast" else {})
        more = [n for n in (2**k for k in range(1, 11)) if n >= s["devices"] + (s["sharding"] == "zero3")]
        devices = next((n for n in more if self.fits(gpu, **others | change | {"devices": n})), max(more, default=0))
        name = f"{devices:,} devices that share all (ZeRO-3{', all in BF16' if 'precision' in change else ''})"
        cost = "more GPUs, and what travels between them (chapter 15)"
        return [(name, cost, change | {"devices": devices})] if more else []

    def remedies(self, gpu):
        """Changes that make it fit, the cheapest first.

        Where no single one does that leaves texts and devices as they are, as many together as it takes.
        """
        changes = self.changes(gpu)
        single = [change for change in changes if self.fits(gpu, **change[2])]
        mild = [change for change in changes if not change[2].keys() & {"seq", "devices"}]
        if any(change in mild for change in single):
            return single
        return self._together(mild, gpu) + single or self._together(changes, gpu)

    def _together(self, changes, gpu):
        """As few of the changes as it takes, as one; none where all of them are not enough."""
        taken = []
        for change in changes:
            if not self.fits(gpu, **_merged(taken)):
                taken += self._more_devices(gpu, **_merged(taken)) if "devices" in change[2] else [change]
        for change in reversed(taken):  # the dearest first: is it needed still?
            fewer = [other for other in taken if other is not change]
            taken = fewer if self.fits(gpu, **_merged(fewer)) else taken
        names, costs = " + ".join(name for name, _, _ in taken), "; ".join(cost for _, cost, _ in taken)
        return [(names, costs, _merged(taken))] if self.fits(gpu, **_merged(taken)) else []

    @property
    def notes(self):
        """What is worth knowing about these numbers, in sentences."""
        s, shape, notes = self.settings, self.shape, []
        dtype = "nf4" if s.get("method") == "qlora" else s.get("dtype")
        if 0 < shape.context < s["seq"]:
            notes.append(f"seq {s['seq']:,} is more than the {shape.context:,} tokens that {shape.name} was made for.")
        if self.mode == "inference":
            notes.append("All of the context is read at once and stays in every layer's cache, sliding window or not.")
        if dtype in {"int8", *NF4} and shape.family in MOE:
            notes.append("Stacked experts and their router stay at 16 bits, as transformers loads them.")
        if dtype == "nf4":
            saved = weight_bytes(shape, "nf4") - weight_bytes(shape, "nf4_double")
            notes.append(f"Double quantization (Dettmers et al. 2023) is not in it; it would save {size_text(saved)}.")
        return notes


def make_plan(model, mode="training", **given):
    """A Plan from names and numbers; settings left out have the defaults of the memory functions, seq if it can be.

    Raises:
        ValueError: a setting that belongs to the other mode or that is impossible; the message names it.
    """
    if mode not in SETTINGS:
        raise ValueError(f"mode: {mode!r}; accepted are {', '.join(SETTINGS)}")
    for name in given.keys() - SETTINGS[mode].keys():
        hint = {"dtype": "; there it is precision", "precision": "; there it is dtype"}.get(name, "")
        raise ValueError(f"{name}: no setting of {mode}{hint}")
    plan = Plan(ModelShape.from_config(model), mode, SETTINGS[mode] | given)
    for name in USED_BY.keys() & given.keys():
        if plan.settings["method"] in METHODS and plan.settings["method"] not in USED_BY[name]:
            raise ValueError(f"{name}: method {plan.settings['method']!r} has none; {', '.join(USED_BY[name])} do")
    if "seq" not in given:
        plan.settings["seq"] = min(plan.settings["seq"], plan.ceiling)
    plan.memory()  # says what is impossible
    return plan


def parse_size(text):
    """Bytes of "24GiB", "80 GB" or "16384MiB"; a unit there must be, since "24" could be any."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]+)\s*", str(text))
    unit = UNITS.get(found[2].upper()) if found else None
    if unit is None or float(found[1]) * unit < 1:
        raise ValueError(f"gpu: {text!r} is no size; accepted is a number with GiB, GB, MiB or MB, such as 24GiB")
    return round(float(found[1]) * unit)


def as_dict(plan, gpu=None):
    """The breakdown in bytes, the settings, and, for a GPU of `gpu` bytes, whether it fits and what to do."""
    shape = plan.shape
    told = plan.memory().as_dict() | {
        "model": shape.name,
        "mode": plan.mode,
        "settings": plan.settings,
        "parameters": shape.parameters,
        "active_parameters": shape.active_parameters,
        "notes": plan.notes,
    }
    if gpu is not None:
        told |= {
            "gpu": gpu,
            "reserve": RESERVE,
            "fits": plan.fits(gpu),
            "largest_batch": plan.largest("batch", gpu),
            "largest_seq": plan.largest("seq", gpu),
            "remedies": [
                {"change": name, "cost": cost, "settings": change, "total": plan.memory(**change).total}
                for name, cost, change in ([] if plan.fits(gpu) else plan.remedies(gpu))
            ],
        }
    return told


def _merged(changes):
    return {name: value for _, _, change in changes for name, value in change.items()}


def size_text(size):
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 / 100 else f"{size / 2**20:,.2f} MiB" if size else "0"
