"""Read mergekit's configuration files, for the methods that both have, and say what to do for each tensor."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import yaml

from course.lab.data import DataError
from course.merging import EMBEDDING, LAYER, dare, linear, slerp, task_arithmetic, task_vector, ties

KEYS = {"merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source"}
PARAMETERS = {  # method -> those that it takes, with what they are where a recipe does not say
    "linear": {"weight": ..., "normalize": True},
    "task_arithmetic": {"weight": ..., "normalize": False},
    "ties": {"weight": ..., "density": 1.0, "normalize": True, "int8_mask": False},
    "dare_linear": {"weight": ..., "density": 1.0, "normalize": False, "int8_mask": False, "seed": 0},
    "dare_ties": {"weight": ..., "density": 1.0, "normalize": False, "int8_mask": False, "seed": 0},
    "slerp": {"t": ...},
    "passthrough": {},
}  # int8_mask saves mergekit memory; here it does nothing


class Step(NamedTuple):
    """A tensor of the result: its name, (model, tensor) of each that it is made of, and merge(name, tensors)."""

    name: str
    sources: list
    merge: callable


@dataclass
class Recipe:
    method: str
    base: str | None
    slices: list  # each a dict: sources, dicts of model, layer_range, parameters; and parameters
    parameters: dict
    dtype: torch.dtype | None
    layers: int = 0  # of the result; known once there is a plan

    @property
    def names(self):
        """The models, each once, as they come; the base is one of them."""
        named = [source["model"] for part in self.slices for source in part["sources"]]
        return list(dict.fromkeys([*named, *([self.base] if self.base else [])]))

    def plan(self, shapes):
        """The steps, for models of these shapes: model -> {tensor: shape}. DataError where models do not fit."""
        steps, place = [], 0
        for part in self.slices:
            ranges = [source.get("layer_range") or (0, _layers(shapes[source["model"]])) for source in part["sources"]]
            counts = {end - start for start, end in ranges}
            if len(counts) != 1:
                raise DataError(f"slices: sources of one slice have as many layers each; got {ranges}")
            count = counts.pop()
            for offset in range(count):
                t = offset / (count - 1) if count > 1 else 1
                steps += self.steps(part, shapes, t, [start + offset for start, _ in ranges], place)
                place += 1
        self.layers = place
        before, after = (self.steps(self.slices[i], shapes, t) for i, t in ((0, 0), (-1, 1)))
        first = [step for step in before if EMBEDDING.search(step.name)]
        return [*first, *steps, *(step for step in after if not EMBEDDING.search(step.name))]

    def steps(self, part, shapes, t, layers=None, place=None):
        """For one layer of a slice, or for what is outside the layers; t: how far down it lies, from 0 to 1."""
        models = [source["model"] for source in part["sources"]]
        numbers = dict(zip(models, layers or [None] * len(models), strict=True))
        if self.base and self.base not in numbers:
            numbers[self.base] = layers[0] if layers else None
        tensors = {  # model -> the result's name -> the model's
            model: {_renamed(name, place): name for name in shapes[model] if _is_of(name, number)}
            for model, number in numbers.items()
        }
        first, *others = tensors
        for other in others:
            for name in tensors[first] | tensors[other]:
                one, two = (shapes[m].get(tensors[m].get(name)) for m in (first, other))
                if one != two:
                    raise DataError(
                        f"{name}: is {one} in {first} and {two} in {other}; models of one form are accepted"
                    )
        for name in tensors[first]:
            own = {model: tensors[model][name] for model in numbers}
            yield Step(name, list(own.items()), partial(self.merged, part, t, list(own), own[first]))

    def merged(self, part, t, models, place, name, tensors):
        """The tensor of the result, in FP32; passthrough leaves it as it is."""
        if self.method == "passthrough":
            return tensors[0]
        value = partial(self.value, part, t, place)
        states = dict(zip(models, ({name: tensor.float()} for tensor in tensors), strict=True))
        others = [model for model in models if model != self.base]
        if self.method == "slerp":
            return slerp(states[self.base], states[others[0]], value("t"))[name]
        if self.method == "linear":
            return linear([states[m] for m in others], [value("weight", m) for m in others], value("normalize"))[name]
        base, experts = states[self.base], [states[model] for model in others]
        weights = [value("weight", model) for model in others]
        if self.method == "task_arithmetic":
            return task_arithmetic(base, [task_vector(expert, base) for expert in experts], weights)[name]
        densities = [value("density", model) for model in others]
        if self.method == "ties":
            return ties(base, experts, densities, weights, value("normalize"))[name]
        return dare(base, experts, densities, weights, value("seed"), self.method.removeprefix("dare_"))[name]

    def value(self, part, t, tensor, key, model=None):
        """A parameter for a tensor: of the model, else of the slice, else of all, else the default."""
        own = [source.get("parameters") or {} for source in part["sources"] if source["model"] == model]
        for given in (*own, part.get("parameters") or {}, self.parameters):
            if key in given and (found := _setting(given[key], tensor, t)) is not None:
                return found
        default = PARAMETERS[self.method][key]
        if default is ...:
            raise DataError(f"parameters: {self.method} needs {key}{f' for {model}' if model else ''}")
        return default


def _setting(setting, tensor, t):
    """What a setting is for a tensor: a number, or a list of numbers over the layers, or of values with filters."""
    if not isinstance(setting, list):
        return setting
    if all(isinstance(each, int | float) for each in setting):
        place = t * (len(setting) - 1)
        low = int(place)
        high = min(len(setting) - 1, low + 1)
        return (1 - (place - low)) * setting[low] + (place - low) * setting[high]
    matching = (each for each in setting if each.get("filter") in (None, "*") or each["filter"] in tensor)
    return next((_setting(each["value"], tensor, t) for each in matching), None)


def _layers(names):
    return len({match[2] for match in map(LAYER.fullmatch, names) if match})


def _is_of(name, layer):
    match = LAYER.fullmatch(name)
    return match is None if layer is None else bool(match) and int(match[2]) == layer


def _renamed(name, place):
    match = LAYER.fullmatch(name)
    return f"{match[1]}{place}{match[3]}" if match else name


def read_recipe(text):
    """The Recipe in a YAML text. DataError says what is not understood, so that nothing is left out in silence."""
    try:
        told = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"recipe: this is not YAML: {' '.join(str(error).split())}") from None
    method = told.get("merge_method") if isinstance(told, dict) else None
    if method not in PARAMETERS:
        raise DataError(f"merge_method: got {method!r}; accepted are {', '.join(PARAMETERS)}")
    if unknown := told.keys() - KEYS:
        raise DataError(f"recipe: {', '.join(sorted(unknown))} not known; accepted are {', '.join(sorted(KEYS))}")
    if ("models" in told) == ("slices" in told):
        raise DataError("recipe: either models or slices is needed")
    slices = told.get("slices") or [{"sources": told["models"]}]
    for given in [told, *slices, *(source for part in slices for source in part["sources"])]:
        if unknown := (given.get("parameters") or {}).keys() - PARAMETERS[method].keys():
            raise DataError(f"parameters: {method} does not take {', '.join(sorted(unknown))}")
    base, needs_base = told.get("base_model"), method not in ("linear", "passthrough")
    if needs_base != bool(base):
        raise DataError(f"base_model: {method} {'needs one' if needs_base else 'has none'}")
    if method in ("task_arithmetic", "dare_linear", "dare_ties") and (told.get("parameters") or {}).get("normalize"):
        raise DataError(f"normalize: {method} does not divide by the weights here; leave it out")
    if told.get("tokenizer_source", "base") != "base":
        raise DataError(f"tokenizer_source: got {told['tokenizer_source']!r}; only 'base' is accepted")
    dtype = told.get("out_dtype") or told.get("dtype")
    if dtype and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise DataError(f"dtype: got {dtype!r}; accepted are float32, bfloat16 and float16")
    recipe = Recipe(method, base, slices, told.get("parameters") or {}, dtype and getattr(torch, dtype))
    others = [len({source["model"] for source in part["sources"]} - {base}) for part in slices]
    if (method == "slerp" and set(others) != {1}) or (method == "passthrough" and set(others) != {1}) or 0 in others:
        raise DataError(f"{method}: got slices of {others} models besides the base; slerp and passthrough take one")
    return recipe
