"""Will it fit? The memory formulas as a question with an answer: what it takes, the most that fits, what to change.

On the command line: `python -m course plan --model llama-2-7b --method qlora --gpu 24GiB`.
"""

import inspect
import json
import re
import sys
from dataclasses import asdict, dataclass

from course.activations import METHODS, USED_BY
from course.memory import BYTES, NF4, OPTIMIZERS, PRECISIONS, SHARDINGS, inference_memory, training_memory, weight_bytes
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
            notes.append(f"Double quantization (Dettmers et al. 2023) is not in it; it would save {_size(saved)}.")
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


def as_text(plan, gpu=None, width=32):
    """The same as a table, with a bar for each part."""
    told, memory = as_dict(plan, gpu), plan.memory()
    parts = memory.parts if plan.mode == "training" else asdict(memory)
    usual, always = SETTINGS[plan.mode], {"dtype", "method", "optimizer", "precision", "attention", "batch", "seq"}
    shown = ", ".join(f"{name} {x}" for name, x in plan.settings.items() if name in always or x != usual[name])
    lines = [f"{plan.shape.name}, {told['parameters']:,} parameters: {plan.mode}, {shown}", ""]
    for name, value in parts.items():
        lines.append(f"{name.replace('_', ' '):12s} {_size(value):>10s}  {'█' * round(width * value / memory.total)}")
    lines.append(f"{'total':12s} {_size(memory.total):>10s}  = {memory.total / 1e9:,.2f} GB")
    if plan.settings.get("devices", 1) > 1:
        lines.append(f"on each of {plan.settings['devices']} devices")
    if plan.mode == "training" and memory.paged:
        lines.append(f"{'paged':12s} {_size(memory.paged):>10s}  not in the total: it leaves the GPU when that is full")
    if plan.mode == "training":
        lines += ["", "at each moment of a step:"]
        for name, moment in memory.moments.items():
            mark = "  the peak" if name == memory.peak else ""
            lines.append(
                f"{name:12s} {_size(moment.total):>10s}  {'▒' * round(width * moment.total / memory.total)}{mark}"
            )
    lines += ["", *plan.notes] if plan.notes else []
    if gpu is not None:
        lines += ["", f"{_size(gpu)} of memory, of which {_size(RESERVE)} kept for the GPU's own use: "]
        lines[-1] += "it fits." if told["fits"] else "it does not fit."
        lines.append(_most(plan, told["largest_batch"], told["largest_seq"]))
        for remedy in told["remedies"]:
            lines.append(f"It would fit with {remedy['change']}: {_size(remedy['total'])}. Cost: {remedy['cost']}.")
        if not told["fits"] and not told["remedies"]:
            lines.append("No change of these settings makes it fit: a smaller model or a larger GPU would.")
    return "\n".join(lines)


HELP = {
    "dtype": f"of the weights in inference: {', '.join([*BYTES, *NF4])}",
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


def _merged(changes):
    return {name: value for _, _, change in changes for name, value in change.items()}


def _most(plan, batch, seq):
    """The largest batch and the longest seq that fit, as a sentence."""
    s, context = plan.settings, plan.shape.context
    most = f"the largest batch that fits is {batch:,}" if batch else "no batch fits"
    longest = f"the longest seq that fits is {seq:,}" if seq else "no seq fits"
    beyond = f" ({plan.shape.name} was made for {context:,})" if 0 < context < seq else ""
    return f"At seq {s['seq']:,} {most}; at batch {s['batch']:,} {longest}{beyond}."


def _size(size):
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 / 100 else f"{size / 2**20:,.2f} MiB" if size else "0"
