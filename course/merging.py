"""Merge models of the same form: state dicts in, a state dict out, computed in FP32 and stored as the inputs are.

Conventions are those of mergekit 0.1.5; docstrings say where a paper or PEFT 0.21 differs. Tied tensors stay tied.
"""

import math
import operator
import re
import zlib

import torch

from course.lora import LoRAConfig

BLOCK = 2**18  # numbers that are merged at a time: few enough for a processor's cache
EMBEDDING = re.compile(r"embed|\bwte\b|\bwpe\b")  # tensors that a token meets before the first layer
LAYER = re.compile(r"(.*?\.)(\d+)(\..+)")  # what stands before a layer's number, the number, the rest


def linear(models, weights, normalize=True):
    """Σ weight · model, divided by the sum of the weights if normalize: a uniform soup, a federated round."""
    weights = _numbers("weights", weights, models)
    total = sum(weights) if normalize else 1
    if abs(total) < 1e-8:
        raise ValueError(f"weights={weights}: their sum is zero, and nothing can be divided by it")
    return _merge(_named(models), lambda *_: _sum([weight / total for weight in weights]))


def greedy_soup(models, score):
    """Average the models that help, best first: (state dict, their numbers). score(state dict): higher is better."""
    chosen, soup, best = [], None, -math.inf
    for number in sorted(range(len(models)), key=lambda i: -score(models[i])):
        trial = linear([models[i] for i in (*chosen, number)], 1)
        if (reached := score(trial)) >= best:
            chosen, soup, best = [*chosen, number], trial, reached
    return soup, chosen


def task_vector(model, base):
    """What finetuning has changed, model − base, in FP32 (Ilharco et al. 2022, arXiv 2212.04089)."""
    return _merge({"model": model, "base": base}, lambda *_: _sum([1, -1]), torch.float32)


def task_arithmetic(base, vectors, weights):
    """base + Σ weight · vector, not divided; a negative weight takes a task away. vectors: of task_vector."""
    weights = [1, *_numbers("weights", weights, vectors)]
    return _merge({"base": base} | _named(vectors, "vectors"), lambda *_: _sum(weights), dtypes=False)


def slerp(a, b, t):
    """From a (t = 0) to b (t = 1) along an arc, as in mergekit: each tensor is a vector, `arc_weights` act on it."""
    (t,) = _numbers("t", t, [a], 0, 1)

    def on_the_arc(name, *pair):
        x, y = (tensor.reshape(-1).float() for tensor in pair)
        return _sum(arc_weights((x @ y / (x.norm() * y.norm()).clamp(min=1e-30)).item(), t))

    return _merge({"a": a, "b": b}, on_the_arc)


def arc_weights(cosine, t):
    """What SLERP multiplies a and b by: sin((1 − t) θ) / sin θ and sin(t θ) / sin θ, with θ = arccos(cosine)."""
    if abs(cosine) > 0.9995:  # nearly parallel: the straight line, as in mergekit
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def ties(base, models, density, weights, normalize=True):
    """Trim each task vector, elect a sign for each number, add those that agree (Yadav et al. 2023, arXiv 2306.01708).

    density: the share of each tensor that stays, the largest; one number or one a model. As in mergekit, weights act
    before the election, and the sum is divided by the weights of those that agree, if normalize. PEFT elects before it
    weighs and divides by a count, and the paper has no weights: all the same where they are 1.
    """
    densities = _numbers("density", density, models, 1e-6, 1)

    def trimmed(name, number, base, model):
        sizes = task_vector({name: model}, {name: base})[name].abs_().view(-1).numpy(force=True)
        dropped = sizes.size - int(densities[number] * sizes.size)
        if not dropped:
            return lambda change: change
        sizes.partition(dropped - 1)  # the dropped first, in place: no second tensor
        largest_dropped = sizes[dropped - 1].item()
        return lambda change: change * (change.abs() > largest_dropped)

    return _sparse(base, models, weights, trimmed, True, normalize)


def dare(base, models, density, weights, seed, consensus="linear"):
    """Drop numbers of each task vector at random, divide the others by the density, add (Yu et al. 2023, 2311.03099).

    density: the chance of each number to stay, the paper's 1 − p. consensus: "linear" adds all; "ties" elects signs and
    adds those that agree, undivided. Dividing by the density is the paper's and PEFT's way; mergekit keeps the L1 norm.
    """
    densities = _numbers("density", density, models, 1e-6, 1)
    if consensus not in ("linear", "ties"):
        raise ValueError(f"consensus={consensus!r}; 'linear' or 'ties' is accepted")

    def thinned(name, number, base, model):
        dice = torch.Generator().manual_seed(zlib.crc32(f"{seed} {number} {name}".encode()))
        kept = densities[number]
        return lambda change: change / kept * (torch.rand(change.shape, generator=dice).to(change) < kept)

    return _sparse(base, models, weights, thinned, consensus == "ties", False)


def stack_layers(models, slices):
    """A model of layers of others; its tensors are theirs, not copies. A merge without any arithmetic ("passthrough").

    slices: (model's number, first layer, end layer), the end not included. The embedding is that of the first slice's
    model, the final norm and the head are the last's; a head that is tied to the embedding follows it.
    """
    counts = [_layers(model) for model in models]
    if not slices or any(not 0 <= m < len(models) or not 0 <= start < end <= counts[m] for m, start, end in slices):
        raise ValueError(f"slices={slices}; (model, first, end) is accepted, within models of {counts} layers")
    first, last = ({n: t for n, t in models[slices[i][0]].items() if not LAYER.fullmatch(n)} for i in (0, -1))
    embedding = {tensor.data_ptr() for name, tensor in last.items() if EMBEDDING.search(name)}
    result = {name: (first if tensor.data_ptr() in embedding else last)[name] for name, tensor in last.items()}
    for place, (m, layer) in enumerate((m, layer) for m, start, end in slices for layer in range(start, end)):
        of_layer = [match for match in map(LAYER.fullmatch, models[m]) if match and int(match[2]) == layer]
        result |= {f"{match[1]}{place}{match[3]}": models[m][match[0]] for match in of_layer}
    return result


def _layers(model):
    return len({match[2] for match in map(LAYER.fullmatch, model) if match})


def depth_upscale(model, drop):
    """Two copies in a row, the first without its last `drop` layers, the second without its first (SOLAR, 2023)."""
    return stack_layers([model], [(0, 0, _layers(model) - drop), (0, drop, _layers(model))])


def upcycle_moe(model, experts, top_k, seed=0):
    """A Llama's state dict made a Mixtral's: several feed-forward networks in each layer, a router before them.

    experts: how many copies of the model's own, or a list of state dicts, one an expert. top_k: to how many of them a
    token goes; the configuration stores it (num_experts_per_tok). The router is random, of standard deviation 0.02. The
    weights of the chosen sum to 1, so copies give the dense model's output (Komatsuzaki et al. 2022, arXiv 2212.05055).
    """
    sources = [model] * experts if isinstance(experts, int) else list(experts)
    if not 1 <= top_k <= len(sources):
        raise ValueError(f"experts, top_k: got {len(sources)} and {top_k}; at least one, and a top_k up to that")
    _check_alike({"model": model} | _named(sources, "experts"))
    result = {name: tensor for name, tensor in model.items() if ".mlp." not in name}
    dice = torch.Generator().manual_seed(seed)
    for mlp in (name.removesuffix(".gate_proj.weight") for name in model if name.endswith(".mlp.gate_proj.weight")):
        gate, up, down = (torch.stack([s[f"{mlp}.{w}_proj.weight"] for s in sources]) for w in ("gate", "up", "down"))
        result[f"{mlp}.gate.weight"] = (0.02 * torch.randn(len(sources), gate.shape[2], generator=dice)).to(gate)
        result[f"{mlp}.experts.gate_up_proj"] = torch.cat([gate, up], 1)  # (experts, 2 inner, hidden)
        result[f"{mlp}.experts.down_proj"] = down  # (experts, hidden, inner)
    return result


def concat_lora(adapters, weights):
    """One adapter that is the weighted sum of others exactly, of the sum of their ranks (PEFT's combination "cat").

    adapters: pairs (LoRAConfig, state dict) as of course.lora.read_lora; so is the result, with all scaling in its A.
    """
    weights, (configs, states) = _numbers("weights", weights, adapters), zip(*adapters, strict=True)
    if len({frozenset(state) for state in states}) > 1:
        raise ValueError("adapters: all must be of the same layers; their names differ")
    result, rank = {}, sum(config.rank for config in configs)
    for name in states[0]:
        is_b = name.endswith("B")  # (out, rank); A is (rank, in)
        factors = (1 if is_b else weight * config.scaling for weight, config in zip(weights, configs, strict=True))
        result[name] = torch.cat([f * state[name] for f, state in zip(factors, states, strict=True)], int(is_b))
    return LoRAConfig(rank, rank, configs[0].target_modules), result


@torch.no_grad()
def _merge(models, rule_for, dtype=None, dtypes=True):
    """Merge tensor by tensor. models: argument -> state dict; rule_for(name, *tensors) gives a rule that may write."""
    _check_alike(models, dtypes)
    done, result = {}, {}
    for name in next(iter(models.values())):
        tensors = [model[name] for model in models.values()]
        place = tuple((t.data_ptr() or name, *t.shape, *t.stride()) for t in tensors)
        if place not in done:
            rule, flat = rule_for(name, *tensors), [tensor.reshape(-1) for tensor in tensors]
            spaces = [torch.empty(BLOCK, device=tensor.device) for tensor in flat]
            done[place] = merged = torch.empty_like(flat[0], dtype=dtype).view(tensors[0].shape)
            blocks = (tensor.split(BLOCK) for tensor in (*flat, merged.view(-1)))
            for *parts, narrow in zip(*blocks, strict=True):  # what lies between stays in the cache
                block = rule(*(space[: len(part)].copy_(part) for space, part in zip(spaces, parts, strict=True)))
                narrow.copy_(block)
                narrow = narrow if merged.dtype == torch.float16 else block
                if not math.isfinite(narrow.sum(dtype=torch.float32)):
                    raise ValueError(f"{name}: is not finite when merged; is there NaN or infinity in a model?")
        result[name] = done[place]
    return result


def _sum(weights):
    def rule(first, *others):  # in place: new memory for each sum takes longer
        total = first.mul_(weights[0])
        for other, weight in zip(others, weights[1:], strict=True):
            total.add_(other, alpha=weight)
        return total

    return rule


def _sparse(base, models, weights, rule_for, elect, normalize):
    """base + the sum of the weighted changes, made sparse; with `elect`, of those that have the sum's sign."""
    weights = _numbers("weights", weights, models)

    def merged(name, base, *models):
        sparsify = [rule_for(name, number, base, model) for number, model in enumerate(models)]

        def rule(base, *models):
            changes = [sparse(m - base) * w for sparse, m, w in zip(sparsify, models, weights, strict=True)]
            sign = torch.where(sum(changes) >= 0, 1, -1)
            agree = [(change.sign() == sign) | (not elect) for change in changes]
            divisor = sum(map(operator.mul, agree, weights)) if normalize else torch.ones(())
            return base + sum(map(torch.mul, changes, agree)) / torch.where(divisor.abs() < 1e-8, 1, divisor)

        return rule

    return _merge({"base": base} | _named(models), merged)


def _named(models, argument="models"):
    return {f"{argument}[{number}]": model for number, model in enumerate(models)}


def _check_alike(models, dtypes=True):
    """ValueError unless all have floating-point tensors alone, of the same names, shapes and, if asked, dtypes."""
    forms = [{n: (*t.shape, t.dtype if dtypes else "") for n, t in model.items()} for model in models.values()]
    if not forms or not all(t.is_floating_point() for model in models.values() for t in model.values()):
        raise ValueError(f"{[*models] or 'models'}: at least one state dict, of floating-point tensors, is needed")
    for argument, form in zip(models, forms, strict=True):
        if wrong := [name for name in forms[0] | form if forms[0].get(name) != form.get(name)]:
            told = "; ".join(f"{name}: {form.get(name)}, not {forms[0].get(name)}" for name in wrong[:3])
            raise ValueError(f"{argument}: differs from {[*models][0]} in {len(wrong)} tensors: {told}")


def _numbers(argument, values, models, low=-math.inf, high=math.inf):
    """A finite number for each model, out of one for all or a list."""
    numbers = [values] * len(models) if isinstance(values, int | float) else [float(value) for value in values]
    if len(numbers) != len(models) or not all(math.isfinite(n) and low <= n <= high for n in numbers):
        raise ValueError(f"{argument}={values!r}; {len(models)} finite numbers from {low} to {high} are accepted")
    return numbers
