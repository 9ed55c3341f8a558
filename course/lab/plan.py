"""`python -m course plan`: the planner's answer as a table with bars, or as JSON."""

import json
import sys
from dataclasses import asdict

from course.activations import METHODS
from course.lab.planner import RESERVE, SETTINGS, as_dict, make_plan, parse_size, size_text
from course.memory import BYTES, NF4, OPTIMIZERS, PRECISIONS, SHARDINGS


def as_text(plan, gpu=None, width=32):
    """The same as a table, with a bar for each part."""
    told, memory = as_dict(plan, gpu), plan.memory()
    parts = memory.parts if plan.mode == "training" else asdict(memory)
    usual, always = SETTINGS[plan.mode], {"dtype", "method", "optimizer", "precision", "attention", "batch", "seq"}
    shown = ", ".join(f"{name} {x}" for name, x in plan.settings.items() if name in always or x != usual[name])
    lines = [f"{plan.shape.name}, {told['parameters']:,} parameters: {plan.mode}, {shown}", ""]
    for name, value in parts.items():
        lines.append(
            f"{name.replace('_', ' '):12s} {size_text(value):>10s}  {'█' * round(width * value / memory.total)}"
        )
    lines.append(f"{'total':12s} {size_text(memory.total):>10s}  = {memory.total / 1e9:,.2f} GB")
    if plan.settings.get("devices", 1) > 1:
        lines.append(f"on each of {plan.settings['devices']} devices")
    if plan.mode == "training" and memory.paged:
        lines.append(
            f"{'paged':12s} {size_text(memory.paged):>10s}  not in the total: it leaves the GPU when that is full"
        )
    if plan.mode == "training":
        lines += ["", "at each moment of a step:"]
        for name, moment in memory.moments.items():
            mark = "  the peak" if name == memory.peak else ""
            lines.append(
                f"{name:12s} {size_text(moment.total):>10s}  {'▒' * round(width * moment.total / memory.total)}{mark}"
            )
    lines += ["", *plan.notes] if plan.notes else []
    if gpu is not None:
        lines += ["", f"{size_text(gpu)} of memory, of which {size_text(RESERVE)} kept for the GPU's own use: "]
        lines[-1] += "it fits." if told["fits"] else "it does not fit."
        lines.append(_most(plan, told["largest_batch"], told["largest_seq"]))
        for remedy in told["remedies"]:
            lines.append(f"It would fit with {remedy['change']}: {size_text(remedy['total'])}. Cost: {remedy['cost']}.")
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


def _most(plan, batch, seq):
    """The largest batch and the longest seq that fit, as a sentence."""
    s, context = plan.settings, plan.shape.context
    most = f"the largest batch that fits is {batch:,}" if batch else "no batch fits"
    longest = f"the longest seq that fits is {seq:,}" if seq else "no seq fits"
    beyond = f" ({plan.shape.name} was made for {context:,})" if 0 < context < seq else ""
    return f"At seq {s['seq']:,} {most}; at batch {s['batch']:,} {longest}{beyond}."
