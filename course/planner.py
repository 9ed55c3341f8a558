"""Will it fit? The memory formulas as a question with an answer: what it takes, the most that fits, what to change.

On the command line: `python -m course plan --model llama-2-7b --method qlora --gpu 24GiB`.
"""

import inspect
import json
import re
import sys
from dataclasses import dataclass

from course.memory import (
    BYTES,
    METHODS,
    OPTIMIZERS,
    PRECISIONS,
    SHARDINGS,
    ModelShape,
    inference_memory,
    training_memory,
)
from course.model_shape import MOE

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

    def largest(self, name, gpu, ceiling=2**24):
        """The largest "batch" or "seq" that fits in `gpu` bytes, all else equal; 0 where not even 1 does."""
        low, high = 0, 1
        while high < ceiling and self.fits(gpu, **{name: high}):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(gpu, **{name: middle}) else (low, middle)
        return low

    def changes(self, gpu=0):
        """What could be changed, the cheapest first: (what, what it costs, the settings); gpu: bytes of a device."""
        s, found = self.settings, []
        halved = s["batch"] // 2
        if self.mode == "inference":
            for dtype, cost in {
                "bf16": "nothing measurable",
                "int8": "a little accuracy",
                "nf4": "some accuracy",
            }.items():
                if _bits(dtype) < _bits(s["dtype"]):
                    found.append((f"weights in {dtype}", cost, {"dtype": dtype}))
            if halved:
                return [*found, ("fewer texts at a time", "fewer answers a second", {"batch": halved})]
            return [*found, self._half_the_sequence()]
        if s["attention"] == "eager":
            found.append(("attention through SDPA", "nothing: the same result, sooner", {"attention": "sdpa"}))
        if s["foreach"]:
            found.append(("a fused optimizer", "nothing: the same result", {"foreach": False}))
        if halved:
            change = {"batch": 1, "accumulation": s["batch"] * s["accumulation"]}
            found.append((f"batches of 1, {change['accumulation']} a step", "a little speed", change))
        if s["optimizer"] in {"adam", "adamw"}:
            change = {"optimizer": "adamw_8bit", "foreach": False}
            found.append(
                ("AdamW in 8 bits", "averages rounded to 8 bits, which Dettmers et al. 2022 saw cost nothing", change)
            )
        if s["checkpointing"] is not True:
            found.append(("checkpointing", "about a third more time", {"checkpointing": True}))
        if s["precision"] != "bf16":
            found.append(("all in BF16", "small updates can be lost (chapter 06)", {"precision": "bf16"}))
        if s["method"] in {"full", "partial"}:
            change = {"method": "lora", "precision": s["precision"]}
            found.append((f"LoRA, rank {s['rank']}", "capacity to learn (chapter 08)", change))
        if s["method"] in {"full", "partial", "lora"} and self.shape.family not in MOE:
            change = {"method": "qlora", "precision": "bf16"}
            found.append(("QLoRA", "slower steps, weights rounded to 4 bits (chapter 10)", change))
        more = [n for n in (2, 4, 8) if n > s["devices"]]
        if more:  # as few as it takes
            devices = next((n for n in more if self.fits(gpu, devices=n, sharding="zero3")), more[-1])
            change = {"devices": devices, "sharding": "zero3"}
            cost = "more GPUs, and what travels between them (chapter 15)"
            return [*found, self._half_the_sequence(), (f"{devices} devices that share all (ZeRO-3)", cost, change)]
        return [*found, self._half_the_sequence()]

    def _half_the_sequence(self):
        return "half the sequence", "longer texts are cut", {"seq": max(1, self.settings["seq"] // 2)}

    def remedies(self, gpu):
        """Changes that make it fit, the cheapest first; where no single one does, as many as it takes."""
        changes = self.changes(gpu)
        single = [change for change in changes if self.fits(gpu, **change[2])]
        if single:
            return single
        names, costs, together = [], [], {}
        for name, cost, change in changes:
            together |= change
            names.append(name)
            costs.append(cost)
            if self.fits(gpu, **together):
                return [(" + ".join(names), "; ".join(costs), together)]
        return []


def make_plan(model, mode="training", **given):
    """A Plan from names and numbers; settings left out have the defaults of the memory functions.

    Raises:
        ValueError: a setting that belongs to the other mode or that is impossible; the message names it.
    """
    if mode not in SETTINGS:
        raise ValueError(f"mode: {mode!r}; accepted are {', '.join(SETTINGS)}")
    for name in given.keys() - SETTINGS[mode].keys():
        hint = {"dtype": "; there it is precision", "precision": "; there it is dtype"}.get(name, "")
        raise ValueError(f"{name}: no setting of {mode}{hint}")
    plan = Plan(ModelShape.from_config(model), mode, SETTINGS[mode] | given)
    plan.memory()  # says what is impossible
    return plan


def parse_size(text):
    """Bytes of "24GiB", "80 GB", "16384MiB" or a plain number."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", str(text))
    unit = UNITS.get(found[2].upper() or "B") if found else None
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


def as_text(plan, gpu=None, width=32):
    """The same as a table, with a bar for each part."""
    told, memory = as_dict(plan, gpu), plan.memory()
    parts = {
        name: value for name, value in memory.as_dict().items() if name not in {"total", "paged", "peak", "moments"}
    }
    usual, always = SETTINGS[plan.mode], {"dtype", "method", "optimizer", "precision", "attention", "batch", "seq"}
    shown = ", ".join(f"{name} {x}" for name, x in plan.settings.items() if name in always or x != usual[name])
    lines = [f"{plan.shape.name}, {told['parameters']:,} parameters: {plan.mode}, {shown}", ""]
    for name, value in parts.items():
        lines.append(f"{name.replace('_', ' '):12s} {_gib(value):>10s}  {'█' * round(width * value / memory.total)}")
    lines.append(f"{'total':12s} {_gib(memory.total):>10s}  = {memory.total / 1e9:,.2f} GB")
    if plan.settings.get("devices", 1) > 1:
        lines.append(f"on each of {plan.settings['devices']} devices")
    if plan.mode == "training" and memory.paged:
        lines.append(f"{'paged':12s} {_gib(memory.paged):>10s}  not in the total: it leaves the GPU when that is full")
    if plan.mode == "training":
        lines += ["", "at each moment of a step:"]
        most = memory.total
        for name, moment in memory.moments.items():
            mark = "  the peak" if name == memory.peak else ""
            lines.append(f"{name:12s} {_gib(moment.total):>10s}  {'▒' * round(width * moment.total / most)}{mark}")
    if gpu is not None:
        verdict = "it fits" if told["fits"] else "it does not fit"
        lines += ["", f"{_gib(gpu)} of memory, of which {_gib(RESERVE)} kept for the GPU's own use: {verdict}."]
        lines.append(
            f"The largest batch that fits is {told['largest_batch']:,}, the longest seq {told['largest_seq']:,}."
        )
        for remedy in told["remedies"]:
            lines.append(f"It would fit with {remedy['change']}: {_gib(remedy['total'])}. Cost: {remedy['cost']}.")
        if not told["fits"] and not told["remedies"]:
            lines.append("No change of these settings makes it fit: a smaller model or a larger GPU would.")
    return "\n".join(lines)


HELP = {
    "dtype": f"of the weights in inference: {', '.join([*BYTES, 'nf4'])}",
    "method": f"what is trained: {', '.join(METHODS)}",
    "optimizer": ", ".join(OPTIMIZERS),
    "precision": f"of training: {', '.join(PRECISIONS)}",
    "attention": "sdpa or eager",
    "checkpointing": "compute the blocks again in backward: all, or every N-th",
    "rank": "of LoRA's matrices, or the width of an adapter",
    "targets": "matrices that LoRA or IA3 work on: q_proj,v_proj",
    "last_layers": "blocks that partial finetuning trains",
    "virtual_tokens": "of prompt tuning",
    "foreach": "the foreach version of Adam",
    "padded": "the texts of a batch differ in length",
    "batch": "texts at a time, on each device",
    "seq": "tokens in each text",
    "accumulation": "batches whose gradients are added up",
    "devices": "GPUs that train together",
    "sharding": f"what they share: {', '.join(SHARDINGS)}",
}


def add_settings(parser):
    """The options of `python -m course plan`."""
    parser.add_argument("--model", required=True, help="a known name, a folder, or a Hub id")
    parser.add_argument("--mode", default="training", help=" or ".join(SETTINGS))
    for name, default in (SETTINGS["inference"] | SETTINGS["training"]).items():
        kind = {"action": "store_true"} if default is False else {"type": type(default)} if default else {}
        if name == "checkpointing":
            kind = {"nargs": "?", "const": True, "type": int, "metavar": "N"}
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, help=HELP[name], **kind)
    parser.add_argument("--gpu", help="its memory, such as 24GiB: says whether it fits, and what to change")
    parser.add_argument("--json", action="store_true", help="bytes, as JSON")


def main(arguments):
    """Print the plan that parsed `arguments` ask for; returns 0, or 2 for an impossible setting."""
    names = SETTINGS["inference"] | SETTINGS["training"]
    chosen = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    try:
        if "targets" in chosen:
            chosen["targets"] = tuple(chosen["targets"].split(","))
        plan = make_plan(arguments.model, arguments.mode, **chosen)
        gpu = parse_size(arguments.gpu) if arguments.gpu else None
        print(json.dumps(as_dict(plan, gpu), indent=1) if arguments.json else as_text(plan, gpu))
    except ValueError as error:
        print(f"python -m course plan: {error}", file=sys.stderr)
        return 2
    return 0


def _bits(dtype):
    return {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "nf4": 4.5}[dtype]


def _gib(size):
    return f"{size / 2**30:,.2f} GiB"
