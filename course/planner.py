"""Will it fit? The memory formulas as a question with an answer: what it takes, the most that fits, what to change.

On the command line: `python -m course plan --model llama-2-7b --method qlora --gpu 24GiB`.
"""

import json
import re
import sys
from dataclasses import dataclass

from course.memory import (
    BYTES,
    METHODS,
    OPTIMIZERS,
    PRECISIONS,
    ModelShape,
    inference_memory,
    training_memory,
)

UNITS = {"GIB": 2**30, "GB": 10**9, "MIB": 2**20, "MB": 10**6, "B": 1}
# What a GPU's own context and the allocator's unused rest take; an assumption, the one number here that is not counted.
RESERVE = 2**29
INFERENCE, TRAINING = ("dtype",), ("method", "optimizer", "precision", "checkpointing", "attention", "rank", "foreach")
DEFAULTS = {
    "dtype": "bf16",
    "method": "full",
    "optimizer": "adamw",
    "precision": "bf16",
    "checkpointing": False,
    "attention": "sdpa",
    "rank": 16,
    "foreach": False,
}


@dataclass(frozen=True)
class Plan:
    """One way to run or train a model: `settings` are the arguments of inference_memory or training_memory."""

    shape: ModelShape
    mode: str
    settings: dict

    def memory(self, **changes):
        compute = training_memory if self.mode == "training" else inference_memory
        return compute(self.shape, **self.settings | changes)

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

    def changes(self):
        """What could be changed, the cheapest first: (what, what it costs, the settings)."""
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
        if not s["checkpointing"]:
            found.append(("checkpointing", "about a third more time", {"checkpointing": True}))
        if s["precision"] != "bf16":
            found.append(("all in BF16", "small updates can be lost (chapter 06)", {"precision": "bf16"}))
        if s["method"] in {"full", "partial"}:
            change = {"method": "lora", "precision": s["precision"]}
            found.append((f"LoRA, rank {s['rank']}", "capacity to learn (chapter 08)", change))
        if s["method"] != "qlora":
            change = {"method": "qlora", "precision": "bf16"}
            found.append(("QLoRA", "slower steps, weights rounded to 4 bits (chapter 10)", change))
        return [*found, self._half_the_sequence()]

    def _half_the_sequence(self):
        return "half the sequence", "longer texts are cut", {"seq": max(1, self.settings["seq"] // 2)}

    def remedies(self, gpu):
        """Changes that make it fit, the cheapest first; where no single one does, as many as it takes."""
        single = [change for change in self.changes() if self.fits(gpu, **change[2])]
        if single:
            return single
        names, costs, together = [], [], {}
        for name, cost, change in self.changes():
            together |= change
            names.append(name)
            costs.append(cost)
            if self.fits(gpu, **together):
                return [(" + ".join(names), "; ".join(costs), together)]
        return []


def make_plan(model, mode="training", batch=1, seq=2048, accumulation=1, **given):
    """A Plan from names and numbers; settings left out have the defaults of the memory functions.

    Raises:
        ValueError: a setting that belongs to the other mode or that is impossible; the message names it.
    """
    if mode not in {"training", "inference"}:
        raise ValueError(f"mode: {mode!r}; accepted are training, inference")
    own, other = (TRAINING, INFERENCE) if mode == "training" else (INFERENCE, TRAINING)
    for name in given:
        if name in other:
            hint = "precision" if name == "dtype" else "dtype" if name == "precision" else None
            raise ValueError(f"{name}: no setting of {mode}" + (f"; there it is {hint}" if hint else ""))
    settings = {name: given.get(name, DEFAULTS[name]) for name in own} | {"batch": batch, "seq": seq}
    if mode == "training":
        settings["accumulation"] = accumulation
    plan = Plan(ModelShape.from_config(model), mode, settings)
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
    parts = {name: value for name, value in memory.as_dict().items() if name not in {"total", "peak", "moments"}}
    shown = ", ".join(f"{name} {value}" for name, value in plan.settings.items() if value not in (False, None))
    lines = [f"{plan.shape.name}, {told['parameters']:,} parameters: {plan.mode}, {shown}", ""]
    for name, value in parts.items():
        lines.append(f"{name.replace('_', ' '):12s} {_gib(value):>10s}  {'█' * round(width * value / memory.total)}")
    lines.append(f"{'total':12s} {_gib(memory.total):>10s}  = {memory.total / 1e9:,.2f} GB")
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


def add_settings(parser):
    """The options of `python -m course plan`."""
    parser.add_argument("--model", required=True, help="a known name, a folder, or a Hub id")
    parser.add_argument("--mode", default="training", choices=("training", "inference"))
    parser.add_argument("--dtype", help=f"of the weights in inference: {', '.join([*BYTES, 'nf4'])}")
    parser.add_argument("--method", help=f"what is trained: {', '.join(METHODS)}")
    parser.add_argument("--optimizer", help=", ".join(OPTIMIZERS))
    parser.add_argument("--precision", help=f"of training: {', '.join(PRECISIONS)}")
    parser.add_argument("--attention", help="sdpa or eager")
    parser.add_argument(
        "--checkpointing", action="store_true", default=None, help="compute the blocks again in backward"
    )
    parser.add_argument("--foreach", action="store_true", default=None, help="the foreach version of Adam")
    parser.add_argument("--rank", type=int, help="of the adapters")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=2048, help="tokens in each text")
    parser.add_argument("--accumulation", type=int, default=1, help="batches whose gradients are added up")
    parser.add_argument("--gpu", help="its memory, such as 24GiB: says whether it fits, and what to change")
    parser.add_argument("--json", action="store_true", help="bytes, as JSON")


def main(arguments):
    """Print the plan that parsed `arguments` ask for; returns 0, or 2 for an impossible setting."""
    try:
        chosen = {name: value for name in (*INFERENCE, *TRAINING) if (value := getattr(arguments, name)) is not None}
        sizes = {"batch": arguments.batch, "seq": arguments.seq, "accumulation": arguments.accumulation}
        plan = make_plan(arguments.model, arguments.mode, **sizes, **chosen)
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
