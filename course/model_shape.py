"""Shapes of transformer models, from a configuration alone, and the bytes that they take: no torch is needed.

A decoder is an embedding, a stack of blocks, a last norm and a head. `ModelShape` lists the matrices and norms of the
blocks, from which every count follows. The memory of training is in `training_memory`, moment by moment.
"""

import difflib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import NamedTuple

SHAPES = Path(__file__).parents[1] / "data" / "model_shapes"
MOE = {"mixtral", "qwen3_moe", "deepseek_v2"}
# Families whose blocks are Llama's: RMSNorm, rotary positions, a feed-forward network with a gate.
GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", *MOE}
FUSED_QKV = {"gpt2", "falcon", "bloom", "gpt_neox"}
FAMILIES = sorted(GATED | FUSED_QKV | {"opt", "phi"})


class Linear(NamedTuple):
    """A matrix of a block: `copies` of it where there are experts, of which `active` work on a token."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1
    active: int = 1
    reads: str = ""  # which activation it reads; matrices that read the same one share it

    @property
    def parameters(self):
        return self.copies * self.outputs * (self.inputs + self.bias)

    @property
    def tensors(self):
        """Shapes of its parameters: experts are stacked into one."""
        stack = (self.copies,) if self.copies > 1 else ()
        return [(*stack, self.outputs, self.inputs)] + [(self.outputs,)] * self.bias


class Block(NamedTuple):
    """One layer: its matrices, and the widths of its norms (each kept `norm_bias` says with a bias or without)."""

    linears: tuple
    norms: tuple  # widths of the norms over the hidden state
    head_norms: tuple = ()  # (width of the weight, width of what is normed): norms of queries and keys

    @property
    def experts(self):
        """How many of its experts work on a token; 0 where there are none."""
        return max((linear.active for linear in self.linears if linear.copies > 1), default=0)

    @property
    def feed_forward(self):
        """Width between the two halves of the feed-forward network; with experts, of those that a token meets."""
        return sum(linear.inputs * linear.active for linear in self.linears if linear.reads == "product")


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder; make one with `ModelShape.from_config`."""

    name: str
    family: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    blocks: tuple  # one Block a layer
    tied: bool  # the head is the embedding
    positions: int = 0  # rows of a learned table of positions
    context: int = 0  # tokens of the longest text that it was made for; 0 where the configuration does not say
    norm_bias: bool = False  # LayerNorm has a bias, RMSNorm has none
    head_bias: bool = False
    embedding_norm: bool = False
    activation: str = "silu"
    softcap: bool = False
    key_width: int = 0  # numbers that the cache keeps for each token and layer
    value_width: int = 0

    @classmethod
    def from_config(cls, source):
        """A shape from a name in data/model_shapes, a folder, a dict with transformers' field names, or a Hub id.

        Raises:
            ValueError: no such model (near names are given), a field that is missing, or an unknown family.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, dict):
            return _shape(source.get("_name_or_path") or source.get("model_type", "model"), source)
        if hasattr(source, "to_dict"):  # a configuration object of transformers
            return _shape(source.to_dict().get("_name_or_path") or source.model_type, source.to_dict())
        name = str(source)
        folder = Path(name).expanduser()
        if folder.is_dir():
            if not (folder / "config.json").exists():
                raise ValueError(f"model: the folder {name!r} has no config.json")
            return _shape(folder.name, _read(folder / "config.json"))
        file = SHAPES / f"{name.lower()}.json"
        if name.lower() in known_models():
            return _shape(name.lower(), _read(file))
        if (bundled := SHAPES.parent / "models" / name / "config.json").exists():
            return _shape(name, _read(bundled))
        return _shape(name, _from_hub(name))

    @property
    def layers(self):
        return len(self.blocks)

    @property
    def gated(self):
        return self.family in GATED

    @property
    def embedding_tensors(self):
        """Shapes of what comes before the blocks: the embedding, learned positions, a norm."""
        norm = [(self.hidden,)] * 2 if self.embedding_norm else []
        return [(self.vocabulary, self.hidden)] + [(self.positions, self.hidden)] * (self.positions > 0) + norm

    def block_tensors(self, block):
        """Shapes of a block's parameters, in the order of the model's own."""
        norms = [(width,) for width in block.norms for _ in range(1 + self.norm_bias)]
        return [t for linear in block.linears for t in linear.tensors] + norms + [(w,) for w, _ in block.head_norms]

    @property
    def top_tensors(self):
        """Shapes of what comes after the blocks: the last norm, a head that is not the embedding, its bias."""
        own = [] if self.tied else [(self.vocabulary, self.hidden)]
        return [(self.hidden,)] * (1 + self.norm_bias) + own + [(self.vocabulary,)] * self.head_bias

    def block_parameters(self, block):
        return sum(map(prod, self.block_tensors(block)))

    @cached_property
    def parameters(self):
        """All parameters; a tied matrix counts once, as in transformers' `num_parameters()`."""
        blocks = sum(self.block_parameters(block) * count for block, count in Counter(self.blocks).items())
        return blocks + sum(map(prod, self.embedding_tensors + self.top_tensors))

    @cached_property
    def active_parameters(self):
        """Those that one token uses: of experts only the ones that its router picks."""
        linears = [linear for block in self.blocks for linear in block.linears]
        return self.parameters - sum(x.parameters * (x.copies - x.active) // x.copies for x in linears)


def known_models():
    """Names in data/model_shapes."""
    return sorted(file.stem for file in SHAPES.glob("*.json"))


def _read(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model: {path.name} of {path.parent.name!r} is not JSON: {error}") from None


def _from_hub(name):
    near = difflib.get_close_matches(name.lower().rpartition("/")[2], known_models(), n=3, cutoff=0.5)
    advice = f"near: {', '.join(near)}" if near else f"known: {', '.join(known_models())}"
    if name.count("/") != 1:
        raise ValueError(f"model: {name!r} is no known model, folder or Hub id; {advice}")
    import urllib.request  # takes longer to load than all the rest

    address = f"https://huggingface.co/{name}/resolve/main/config.json"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise ValueError(f"model: the Hub did not give the config.json of {name!r} ({error}); {advice}") from None


def _shape(name, config):
    family = config.get("model_type")
    if family == "gemma3" and "text_config" in config:
        family, config = "gemma3_text", {"model_type": "gemma3_text", **config["text_config"]}
    if family not in FAMILIES:
        raise ValueError(f"model: {name!r} is of the family {family!r}; known are {', '.join(FAMILIES)}")

    def size(*names, default=None):
        found = next((config[key] for key in names if config.get(key) is not None), default)
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            raise ValueError(f"model: {name!r} needs a whole number above 0 for {names[0]!r}; got {found!r}")
        return found

    hidden, layers = size("hidden_size", "n_embd"), size("num_hidden_layers", "n_layer")
    heads = size("num_attention_heads", "n_head")
    new_falcon = bool(config.get("new_decoder_architecture"))
    kv_heads = size("num_key_value_heads", default=heads)
    if family == "falcon":
        several = heads if new_falcon or not config.get("multi_query", True) else 1
        kv_heads = size("num_kv_heads", default=heads) if new_falcon else several
    head_dim = size("head_dim", default=hidden // heads)
    if family == "opt" and (config.get("word_embed_proj_dim", hidden) != hidden or not config["do_layer_norm_before"]):
        raise ValueError(f"model: {name!r} has a projected embedding or late norms, which are not modelled")
    key, value = kv_heads * head_dim, kv_heads * head_dim
    if family == "deepseek_v2":
        nope, rope = size("qk_nope_head_dim"), size("qk_rope_head_dim")
        key, value = heads * (nope + rope), heads * size("v_head_dim")
    tied_default = family not in {"llama", "mistral", "qwen2", "qwen3", "phi3", "phi", "gpt_neox", *MOE}
    attention = _attention(family, config, size, hidden, heads * head_dim, kv_heads * head_dim)
    norms = 4 if family in {"gemma2", "gemma3_text"} else 2
    if family == "phi" or (family == "falcon" and config.get("parallel_attn", True) and not new_falcon):
        norms = 1
    head_norms = ()
    if family in {"qwen3", "qwen3_moe", "gemma3_text"}:
        head_norms = ((head_dim, heads * head_dim), (head_dim, kv_heads * head_dim))
    if family == "deepseek_v2":
        head_norms = tuple((size(rank), size(rank)) for rank in ("q_lora_rank", "kv_lora_rank") if config.get(rank))
    return ModelShape(
        name=name,
        family=family,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=size("vocab_size"),
        blocks=tuple(
            Block(attention + _feed_forward(family, config, size, hidden, layer), (hidden,) * norms, head_norms)
            for layer in range(layers)
        ),
        tied=config.get("tie_word_embeddings", tied_default),
        positions=size("n_positions", "max_position_embeddings") + 2 * (family == "opt") if family in LEARNED else 0,
        context=config.get("n_positions") or config.get("max_position_embeddings") or 0,
        norm_bias=family not in GATED,
        head_bias=family == "phi",
        embedding_norm=family == "bloom",
        activation=_activation(family, config),
        softcap=family == "gemma2",
        key_width=key,
        value_width=value,
    )


LEARNED = {"gpt2", "opt"}  # families with a learned table of positions


def _activation(family, config):
    given = config.get("hidden_activation") or config.get("hidden_act") or config.get("activation_function")
    usual = {"gpt2": "gelu_new", "phi": "gelu_new", "opt": "relu", **dict.fromkeys(FUSED_QKV - {"gpt2"}, "gelu")}
    return given or usual.get(family, "silu")


def _attention(family, config, size, hidden, query, key):
    bias = {"qwen2": True, "phi": True, "gpt2": True, "opt": True, "bloom": True, "gpt_neox": True}.get(family)
    bias = bool(config.get("bias" if family == "falcon" else "attention_bias", False)) if bias is None else bias
    if family == "deepseek_v2":
        heads, nope, rope = size("num_attention_heads"), size("qk_nope_head_dim"), size("qk_rope_head_dim")
        value, rank = size("v_head_dim"), size("kv_lora_rank")
        low = config.get("q_lora_rank")
        queries = [Linear("q_a_proj", hidden, low, reads="normed"), Linear("q_b_proj", low, heads * (nope + rope))]
        return (
            *(queries if low else [Linear("q_proj", hidden, heads * (nope + rope), reads="normed")]),
            Linear("kv_a_proj_with_mqa", hidden, rank + rope, reads="normed"),
            Linear("kv_b_proj", rank, heads * (nope + value), reads="latent"),
            Linear("o_proj", heads * value, hidden, reads="context"),
        )
    if family in FUSED_QKV or family == "phi3":
        name = {"gpt2": "c_attn", "phi3": "qkv_proj"}.get(family, "query_key_value")
        inputs = (Linear(name, hidden, query + 2 * key, bias, reads="normed"),)
    else:
        wide = {"q": query, "k": key, "v": key}
        inputs = tuple(Linear(f"{x}_proj", hidden, width, bias, reads="normed") for x, width in wide.items())
    usual = "dense" if family in FUSED_QKV else "o_proj"
    out = {"gpt2": "c_proj", "opt": "out_proj", "phi": "dense"}.get(family, usual)
    return (*inputs, Linear(out, query, hidden, bias and family != "qwen2", reads="context"))


def _feed_forward(family, config, size, hidden, layer):
    if family not in GATED:
        width = size("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", default=4 * hidden)
        bias = family != "falcon" or bool(config.get("bias", False))
        names = {"gpt2": ("c_fc", "c_proj"), "opt": ("fc1", "fc2"), "phi": ("fc1", "fc2")}
        up, down = names.get(family, ("dense_h_to_4h", "dense_4h_to_h"))
        # with one norm a block, attention and feed-forward read the same activation
        shared = family == "phi" or (family == "falcon" and not config.get("new_decoder_architecture"))
        return (
            Linear(up, hidden, width, bias, reads="normed" if shared else "normed again"),
            Linear(down, width, hidden, bias, reads="product"),
        )
    width, experts, active, shared = size("intermediate_size"), 1, 1, 0
    if family == "mixtral":
        experts, active = size("num_local_experts"), size("num_experts_per_tok")
    if family == "qwen3_moe":
        experts, active = size("num_experts", "num_local_experts"), size("num_experts_per_tok")
        width = size("moe_intermediate_size")
    if family == "deepseek_v2" and layer >= config["first_k_dense_replace"]:
        experts, active, width = size("n_routed_experts"), size("num_experts_per_tok"), size("moe_intermediate_size")
        shared = size("n_shared_experts") * width
    bias = bool(config.get("mlp_bias", False))
    router = (Linear("gate", hidden, experts, reads="normed again"),) if experts > 1 else ()
    more = _gated("shared_experts.", hidden, shared, False) if shared else ()
    if family == "phi3":
        joint = Linear("gate_up_proj", hidden, 2 * width, bias, reads="normed again")
        return (joint, Linear("down_proj", width, hidden, bias, reads="product"))
    return router + _gated("", hidden, width, bias, experts, active) + more


def _gated(prefix, hidden, width, bias, copies=1, active=1):
    return (
        Linear(f"{prefix}gate_proj", hidden, width, bias, copies, active, "normed again"),
        Linear(f"{prefix}up_proj", hidden, width, bias, copies, active, "normed again"),
        Linear(f"{prefix}down_proj", width, hidden, bias, copies, active, "product"),
    )


def one_of(name, value, accepted):
    if value not in accepted:
        raise ValueError(f"{name}: {value!r} is not offered; accepted are {', '.join(accepted)}")
    return value


def whole(name, value):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}; accepted is a whole number above 0")
    return value
