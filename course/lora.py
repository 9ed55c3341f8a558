"""LoRA: a frozen matrix W learns its change as a product of two thin ones, W' = W + (alpha / rank) · B A.

Sources: Hu et al. 2021, "LoRA"; start values, names and files are those of PEFT 0.21. Some texts write A and B the
other way round; here, as in the paper and in PEFT, A (rank, in) reads and B (out, rank) writes. Many adapters in one
batch: Sheng et al. 2023, "S-LoRA".
"""

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from course.peft_methods import linear_sizes
from course.quantization import QuantizedLinear

PEFT_PREFIX = "base_model.model."  # stands before every name in PEFT's files
BEYOND_OURS = (  # settings of PEFT that make an adapter more than W + (alpha / rank) · B A
    "use_rslora", "use_dora", "use_qalora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save",
    "target_parameters", "trainable_token_indices",
)  # fmt: skip


@dataclass(frozen=True)
class LoRAConfig:
    """What an adapter is.

    rank: of B A, at least 1. alpha: B A is multiplied by alpha / rank. target_modules: the last parts of the names of
    linear layers, such as ("q_proj", "v_proj"), or "all-linear" for all but the head, as in PEFT. dropout: the share
    of an adapter's inputs that are set to zero in training.
    """

    rank: int
    alpha: float
    target_modules: str | tuple[str, ...] = "all-linear"
    dropout: float = 0.0

    def __post_init__(self):
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank={self.rank!r}; a whole number of at least 1 is accepted")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha!r}; a positive number is accepted")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}; a share of at least 0 and below 1 is accepted")
        if self.target_modules != "all-linear":
            if isinstance(self.target_modules, str) or not self.target_modules:
                raise ValueError(f"target_modules={self.target_modules!r}; 'all-linear' or a list of names is accepted")
            object.__setattr__(self, "target_modules", tuple(sorted(self.target_modules)))

    @property
    def scaling(self):
        return self.alpha / self.rank


class LoRALinear(nn.Module):
    """A linear layer that stays as it is, and beside it B A. A is random and B zero, so at first nothing changes.

    base: torch.nn.Linear, GPT-2's Conv1D, a QuantizedLinear or another subclass. lora_A (rank, in) and lora_B
    (out, rank) are FP32, as in PEFT, whatever the base is stored in.
    """

    def __init__(self, base, config):
        super().__init__()
        self.base, self.config, self.merged = base, config, False
        size_out, size_in = _sizes(base)
        device = next(chain(base.parameters(), base.buffers())).device
        self.lora_A = nn.Parameter(torch.empty(config.rank, size_in, device=device))
        self.lora_B = nn.Parameter(torch.zeros(size_out, config.rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # uniform, up to 1 / √in
        self.dropout = nn.Dropout(config.dropout)

    def from_base(self, x):
        return self.base(x)

    def forward(self, x):  # (..., in)
        result = self.from_base(x)  # (..., out)
        if self.merged:
            return result
        reduced = F.linear(self.dropout(x).to(self.lora_A.dtype), self.lora_A)  # (..., rank)
        change = F.linear(reduced * self.config.scaling, self.lora_B)
        return result.add_(change)  # summed in FP32, rounded once, as in PEFT

    @torch.no_grad()
    def delta(self):
        """The change of the weight, (alpha / rank) · B A: FP32, in the shape of the base's weight."""
        delta = self.config.scaling * (self.lora_B @ self.lora_A)
        return delta.T if _is_conv1d(self.base) else delta

    @torch.no_grad()
    def add_to_weight(self, sign):
        weight = self.base.weight
        weight.copy_((weight.float() + sign * self.delta()).to(weight.dtype))  # summed in FP32, rounded once
        self.merged = sign > 0


class Dequantized(torch.autograd.Function):
    """x Wᵀ with a W that is made of its codes in forward and again in backward, so that nothing keeps it between.

    Autograd would keep the restored W of each layer, which together are the 16-bit model that was to be avoided.
    """

    @staticmethod
    def forward(ctx, x, quantized):  # (..., in)
        ctx.quantized = quantized
        return F.linear(x, quantized.dequantize(x.dtype))  # (..., out)

    @staticmethod
    def backward(ctx, gradient):  # (..., out)
        return gradient @ ctx.quantized.dequantize(gradient.dtype), None


class QLoRALinear(LoRALinear):
    """LoRA beside a weight that is stored as codes, a QuantizedLinear. Gradients go to A and B, and through W to x."""

    def from_base(self, x):
        result = Dequantized.apply(x, self.base.quantized)
        return result if self.base.bias is None else result + self.base.bias

    @torch.no_grad()
    def add_to_weight(self, sign):
        """Codes cannot hold the sum, so a linear layer takes their place, in the dtype that the weight had."""
        quantized, linear = self.base.quantized, nn.Linear(1, 1, bias=False, device="meta")
        weight = (quantized.dequantize(torch.float32) + sign * self.delta()).to(quantized.dtype)
        linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), self.base.bias
        linear.out_features, linear.in_features = weight.shape
        self.base, self.merged = linear, True


def add_lora(model, config):
    """Freeze the model and give the linear layers that `config` names adapters, in place; returns the model.

    Raises:
        ValueError: a name that no linear layer has; a model that has adapters already, or no linear layer inside; a
            layer through which no gradient can pass, or whose weight has a dtype that is not computed in.
    """
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("model: has adapters already; load_lora puts other values into them")
    chosen = chosen_linears(model, config.target_modules)
    for name, module in chosen.items():
        if isinstance(module, QuantizedLinear) and type(module) is not QuantizedLinear:
            kind = type(module).__name__
            raise ValueError(f"{name}: no gradient passes {kind}; quantize_model(model, scheme) makes layers it passes")
        if type(module) is nn.Linear and module.weight.dtype.itemsize < 2:
            advice = "move the model to torch.bfloat16, then quantize_model stores it in fewer bits"
            raise ValueError(f"{name}: has weights in {module.weight.dtype}, which is not computed in; {advice}")
    model.requires_grad_(False)
    adapted = {}
    for module in dict.fromkeys(chosen.values()):
        layer = QLoRALinear if type(module) is QuantizedLinear else LoRALinear
        adapted[module] = layer(module, config).train(module.training)
    for name, module in chosen.items():
        _put(model, name, adapted[module])  # a layer with several names stays shared
    return model


def merge_lora(model, unload=False):
    """Add every adapter to its weight, in place; returns the model, which then costs what it cost without them.

    The sum is made in FP32 and rounded once to the weight's dtype, which is all that the outputs can differ by.
    unload: put the plain layers back, so that the model can be saved as an ordinary one. Over a QuantizedLinear this
        makes a layer of the restored weight plus the adapter, in the dtype that the weight had before its codes.

    Raises:
        ValueError: no adapters; merged already; a weight that is stored as codes, which cannot hold the sum.
    """
    layers = _layers(model, every_name=True)
    for name, layer in layers.items():
        if layer.merged and not unload:
            raise ValueError(f"{name}: is merged already; a second merge would add the adapter twice")
        weight, ours = dict(layer.base.named_parameters()).get("weight"), isinstance(layer, QLoRALinear)
        if (weight is None or not weight.is_floating_point()) and not (ours and unload):
            kind = type(layer.base).__name__
            advice = "merge_lora(model, unload=True) puts" if ours else "put"
            raise ValueError(f"{name}: {kind} stores codes; {advice} a linear layer of the restored weight there")
    for name, layer in layers.items():
        if not layer.merged:
            layer.add_to_weight(1)
        if unload:
            _put(model, name, layer.base)
    return model


def unmerge_lora(model):
    """Take every merged adapter off its weight, in place; returns the model.

    The weight comes back up to the rounding of its dtype. FP32 hardly shows it; in BF16 many swaps add up.

    Raises:
        ValueError: no adapters; not merged.
    """
    layers = _layers(model)
    if apart := [name for name, layer in layers.items() if not layer.merged]:
        raise ValueError(f"{apart[0]}: is not merged, so there is nothing to take off")
    for layer in layers.values():
        layer.add_to_weight(-1)
    return model


def lora_state_dict(model):
    """The adapter alone, {"….q_proj.lora_A": (rank, in), "….q_proj.lora_B": (out, rank), …}, detached, not copied."""
    parts = ((f"{name}.lora_{part}", layer, part) for name, layer in _layers(model).items() for part in "AB")
    return {name: getattr(layer, f"lora_{part}").detach() for name, layer, part in parts}


def save_lora(model, folder, base_name=None):
    """Write the adapter into a folder as PEFT does: adapter_model.safetensors and adapter_config.json.

    base_name: the Hub id or folder of the base model, so that PEFT finds it.
    """
    layer, folder = next(iter(_layers(model).values())), Path(folder)
    config, targets = layer.config, layer.config.target_modules
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "inference_mode": True,
        "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "bias": "none",
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "fan_in_fan_out": _is_conv1d(layer.base),
    }  # fmt: skip
    tensors = {f"{PEFT_PREFIX}{name}.weight": p.contiguous() for name, p in lora_state_dict(model).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def read_lora(folder):
    """(LoRAConfig, state dict as of lora_state_dict) of an adapter that `save_lora` or PEFT wrote.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is no LoRA, or one that does more than W + (alpha / rank) · B A; the settings are named.
    """
    folder = Path(folder)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    kind, bias = settings.get("peft_type"), settings.get("bias", "none")
    beyond = [f"{key}={settings[key]!r}" for key in BEYOND_OURS if settings.get(key)]
    if kind != "LORA" or bias != "none" or beyond:
        got = ", ".join([f"peft_type={kind!r}", f"bias={bias!r}", *beyond])
        raise ValueError(f"{folder}: plain LoRA without biases is accepted; got {got}")
    config = LoRAConfig(*(settings[key] for key in ("r", "lora_alpha", "target_modules", "lora_dropout")))
    state = load_file(folder / "adapter_model.safetensors")
    return config, {name.removeprefix(PEFT_PREFIX).removesuffix(".weight"): tensor for name, tensor in state.items()}


@torch.no_grad()
def load_lora(model, folder):
    """Put a saved adapter into the model, in place, and return it: added, or in place of the one that is there.

    Raises:
        ValueError: it does not fit the model's layers, or not the adapter that is there. The model is as it was.
    """
    config, state = read_lora(folder)
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    if any(layer.merged or layer.config.scaling != config.scaling for layer in layers):
        why = f"its alpha / rank is {config.scaling:g}; the adapter there must have the same and not be merged"
        raise ValueError(f"{folder}: {why}")
    shapes = {name: tuple(p.shape) for name, p in (lora_state_dict(model) if layers else {}).items()}
    chosen = {} if layers else chosen_linears(model, config.target_modules)
    for module, name in {m: name for name, m in reversed(chosen.items())}.items():  # by its first name, as in PEFT
        size_out, size_in = _sizes(module)
        shapes |= {f"{name}.lora_A": (config.rank, size_in), f"{name}.lora_B": (size_out, config.rank)}
    if wrong := dict(shapes.items() ^ {name: tuple(p.shape) for name, p in state.items()}.items()):
        raise ValueError(f"{folder}: does not fit the model in {', '.join(sorted(wrong)[:3])}")
    for name, p in lora_state_dict(model if layers else add_lora(model, config)).items():
        p.copy_(state[name])
    return model


class AdapterBank(nn.Module):
    """A linear layer and many adapters: each row of a batch goes through its own, all of them in two batched products.

    A (adapters + 1, rank, in) and B (adapters + 1, out, rank), with the scaling in B. The last one is zero: the base
    alone. Smaller ranks are filled up with zeros, which change nothing. rows: which adapter each row takes, or None:
    the base alone for all.
    """

    def __init__(self, base, adapters, rank):
        super().__init__()
        size_out, size_in = _sizes(base)
        device, count = next(chain(base.parameters(), base.buffers())).device, len(adapters) + 1
        self.base, self.rows = base, None
        self.register_buffer("A", torch.zeros(count, rank, size_in, device=device))
        self.register_buffer("B", torch.zeros(count, size_out, rank, device=device))
        for i, (a, b, scaling) in enumerate(adapters):
            self.A[i, : len(a)], self.B[i, :, : len(a)] = a, b * scaling

    def forward(self, x):  # (batch, seq, in)
        result = self.base(x)
        if self.rows is None:
            return result
        if len(self.rows) != len(x):
            raise ValueError(f"names: {len(self.rows)} were given to adapter_rows, for a batch of {len(x)} rows")
        reduced = torch.bmm(x.to(self.A.dtype), self.A[self.rows].mT)  # (batch, seq, rank)
        return result + torch.bmm(reduced, self.B[self.rows].mT).to(result.dtype)


def add_adapter_bank(model, adapters):
    """Give a model many adapters to serve at once, in place, and return it; `adapter_rows` says who takes which.

    adapters: {name: (LoRAConfig, state dict)}, each as `read_lora` gives it. Ranks and layers may differ.

    Raises:
        ValueError: no adapter; a model that has some; an adapter for a layer that is not there or of another shape.
    """
    if not adapters or any(isinstance(module, LoRALinear | AdapterBank) for module in model.modules()):
        raise ValueError(f"adapters: one or more for a model without adapters; got {list(adapters)}")
    rank, linears, banks = max(config.rank for config, _ in adapters.values()), _linears(model), {}
    for layer in dict.fromkeys(name.rpartition(".")[0] for _, state in adapters.values() for name in state):
        parts = []
        for name, (config, state) in adapters.items():
            given = {key: tensor for key, tensor in state.items() if key.rpartition(".")[0] == layer}
            size_out, size_in = _sizes(linears[layer]) if layer in linears else (None, None)
            fitting = {f"{layer}.lora_A": (config.rank, size_in), f"{layer}.lora_B": (size_out, config.rank)}
            if given and {key: tuple(tensor.shape) for key, tensor in given.items()} != fitting:
                raise ValueError(f"adapters[{name!r}]: does not fit the model in {layer}")
            a, b = (given[key] for key in fitting) if given else (torch.zeros(0, 1), torch.zeros(1, 0))
            parts.append((a, b, config.scaling))
        banks[layer] = AdapterBank(linears[layer], parts, rank)
    for layer, bank in banks.items():
        _put(model, layer, bank)
    model.adapter_names = (*adapters, None)
    return model.requires_grad_(False)


@contextmanager
def adapter_rows(model, names):
    """Inside, row i of every batch goes through the adapter names[i]; None is the base alone.

    ValueError: a model that add_adapter_bank has not prepared, or a name that it has no adapter for.
    """
    banks = [module for module in model.modules() if isinstance(module, AdapterBank)]
    known = model.adapter_names if banks else ()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"names: no adapter is called {unknown[0]!r}; there are {list(known)}")
    before, rows = [bank.rows for bank in banks], torch.tensor([known.index(name) for name in names])
    try:
        for bank in banks:
            bank.rows = rows.to(bank.A.device)
        yield model
    finally:
        for bank, earlier in zip(banks, before, strict=True):
            bank.rows = earlier


def _is_conv1d(module):
    """Whether it is GPT-2's linear layer in transformers, whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D"


def _sizes(linear):
    """(out, in) of a linear layer."""
    return linear_sizes(linear)[::-1]


def _linears(model):
    """All linear layers by name; one that has an adapter is the LoRALinear."""
    kinds, modules = nn.Linear | QuantizedLinear | LoRALinear, model.named_modules(remove_duplicate=False)
    return {n: m for n, m in modules if (isinstance(m, kinds) or _is_conv1d(m)) and not n.endswith(".base")}


def chosen_linears(model, targets):
    """The linear layers that a LoRAConfig's target_modules names, by name."""
    linears = _linears(model)
    if targets == "all-linear":
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        chosen = {name: m for name, m in linears.items() if m is not head}
    else:
        chosen = {name: m for name, m in linears.items() if any(f".{name}".endswith(f".{t}") for t in targets)}
        if unknown := [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in linears)]:
            known = sorted({name.rpartition(".")[2] for name in linears})
            raise ValueError(f"target_modules: no linear layer is called {unknown}; there are {known}")
    if not chosen or "" in chosen:
        raise ValueError("model: one that has linear layers inside is accepted; it has none, or is one itself")
    return chosen


def _put(model, name, module):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _layers(model, every_name=False):
    """The model's LoRA layers by name, the first or each that they have; ValueError where there are none."""
    modules = model.named_modules(remove_duplicate=not every_name)
    layers = {name: m for name, m in modules if isinstance(m, LoRALinear)}
    if not layers:
        raise ValueError("model: has no LoRA layers; add_lora or load_lora gives it some")
    return layers
