"""Parameter-efficient finetuning: freeze a model, and train a few numbers that it has or that are added to it.

Every function takes a causal language model of transformers, works on it in place, trains only what its method trains,
and returns it. What is added hangs on the model's own modules: parameters keep their names, and `state_dict`,
`course.finetune` and `course.evaluate` work as before. Adding the same thing twice is refused.

Sources: Houlsby et al. 2019 (adapters); Ben Zaken et al. 2021 (BitFit); Liu et al. 2022, "Few-Shot Parameter-Efficient
Fine-Tuning is Better and Cheaper than In-Context Learning" (IA3); Lester et al. 2021 (prompt tuning); Li & Liang 2021
(prefix tuning); Liu et al. 2021, "GPT Understands, Too" (P-tuning); PEFT 0.21.
"""

import torch
from torch import nn
from torch.nn import functional as F

ATTENTION, FEED_FORWARD = ("attn", "attention"), ("mlp", "ffn", "feed_forward", "moe", "fc2")  # in the parts' names


def trainable_parameters(model):
    """How many numbers of the model are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def train_top_layers(model, layers):
    """Partial finetuning: train the last `layers` decoder layers; embeddings, final norm and head stay frozen."""
    stack = decoder_layers(model)
    check_whole("layers", layers, len(stack))
    return train_only(model, stack[-layers:].parameters())


class Adapter(nn.Module):
    """x + up(gelu(down(x))), from width d to size m and back: 2·d·m + d + m parameters. It begins as the identity."""

    def __init__(self, width, size):
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        for p in self.up.parameters():
            nn.init.zeros_(p)  # the paper begins near the identity, this begins with it

    def forward(self, x):
        return x + self.up(F.gelu(self.down(x)))


def add_adapters(model, size):
    """Bottleneck adapters: one of `size` after each layer's attention, one after its feed-forward.

    They stand before the residual sum, as in the paper, which also trains the norms; here those stay frozen.
    """
    layers = decoder_layers(model, "adapter")
    check_whole("size", size)
    places = [_part(layer, words) for layer in layers for words in (ATTENTION, FEED_FORWARD)]
    for place in places:
        place.adapter = Adapter(model.get_input_embeddings().embedding_dim, size).to(model.device, model.dtype)
        place.register_forward_hook(_adapted)
    return train_only(model, [p for place in places for p in place.adapter.parameters()])


def _adapted(place, args, output):
    # Attention gives a tuple, in which its weights come second.
    return (place.adapter(output[0]), *output[1:]) if isinstance(output, tuple) else place.adapter(output)


def add_bitfit(model):
    """BitFit: train the biases that the model has, and only those, as PEFT's bias="all" does.

    A model without any, such as Llama, gets one of zeros on each linear layer inside its decoder layers. Its config
    then says so where it has a word for it, or a saved model would be loaded without them.
    """
    layers = decoder_layers(model)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    if not biases:
        for linear in (module for module in layers.modules() if hasattr(module, "out_features")):
            linear.bias = nn.Parameter(torch.zeros(linear.out_features, device=model.device, dtype=model.dtype))
            biases.append(linear.bias)
        for word in {"attention_bias", "mlp_bias"} & vars(model.config).keys():
            setattr(model.config, word, True)
    return train_only(model, biases)


def add_ia3(model, outputs=("k_proj", "v_proj", "c_attn"), inputs=("down_proj", "mlp.c_proj")):
    """IA3: a trained factor, 1 at first, for every number in keys, in values and between the feed-forward's halves.

    That is the paper's choice, and PEFT's for Llama. PEFT's for Qwen and Gemma has queries instead of keys, which is
    outputs=("q_proj", "v_proj"). GPT-2 makes queries, keys and values in one layer, so all are scaled, as in PEFT.

    Args:
        outputs, inputs: how the names of the linear layers end whose output, or whose input, is scaled.
    """
    decoder_layers(model, "ia3")
    chosen = [(linear, 1) for linear in linears_ending(model, "outputs", outputs)]
    chosen += [(linear, 0) for linear in linears_ending(model, "inputs", inputs)]
    if len(dict(chosen)) < len(chosen):
        raise ValueError(f"outputs={outputs!r}, inputs={inputs!r}: both name the same layer; name it in one of them")
    for linear, side in chosen:
        linear.ia3 = nn.Parameter(torch.ones(linear_sizes(linear)[side], device=model.device, dtype=model.dtype))
        if side:
            linear.register_forward_hook(lambda linear, args, output: output * linear.ia3)
        else:
            linear.register_forward_pre_hook(lambda linear, args: args[0] * linear.ia3)
    return train_only(model, [linear.ia3 for linear, _ in chosen])


class Prompt(nn.Module):
    """Embeddings (tokens, hidden) that are read before every sequence; an encoder may make them from others."""

    def __init__(self, embedding, encoder=None):
        super().__init__()
        self.embedding, self.encoder = nn.Parameter(embedding), encoder or nn.Identity()

    def embeddings(self):
        return self.encoder(self.embedding)

    def forward(self, decoder):
        """The KV cache after the prompt. All rows of a batch begin with it, so it is read once, in a batch of one."""
        return decoder.forward(inputs_embeds=self.embeddings()[None], use_cache=True).past_key_values  # runs no hooks


class Prefix(nn.Module):
    """Keys and values (1, heads, tokens, head size) that each layer finds in its KV cache before every sequence."""

    def __init__(self, cache):
        super().__init__()
        self.cache_type = type(cache)
        self.keys = nn.ParameterList(layer.keys for layer in cache.layers)
        self.values = nn.ParameterList(layer.values for layer in cache.layers)

    def forward(self, decoder):
        return self.cache_type(zip(self.keys, self.values, strict=True), config=decoder.config)


def add_prompt(model, tokens):
    """Prompt tuning: train the embeddings of virtual tokens, the soft prompt, that stand before every sequence.

    They count towards the model's context, but no logits are given for them. In a batch padded on the left,
    positions go on after the prompt, as in training; PEFT 0.21 counts the padding, so its answers depend on it.

    Args:
        tokens: how many; they begin as words sampled from the vocabulary. Or the ids of the words to begin with.
    """
    ids = _first_ids(model, tokens)
    return _put_first(model, Prompt(model.get_input_embeddings()(ids).detach()), len(ids))


def add_p_tuning(model, tokens, hidden):
    """P-tuning: `add_prompt`, but an MLP with layers of `hidden` makes the embeddings from random ones; both train.

    The MLP is PEFT's default; the paper tries an LSTM, too. After training, only what it gives is needed.
    """
    decoder_layers(model, "soft_tokens")
    check_whole("tokens", tokens)
    check_whole("hidden", hidden)
    width = model.get_input_embeddings().embedding_dim
    first, middle, last = nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, width)
    encoder = nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last)
    return _put_first(model, Prompt(torch.randn(tokens, width), encoder), tokens)


def add_prefix(model, tokens):
    """Prefix tuning: train the keys and values that virtual tokens have in each layer; `tokens` as in `add_prompt`.

    They begin as those of real words, which the paper found better than random ones. The paper makes them with an MLP
    during training (PEFT's prefix_projection=True); here they are trained themselves, which is PEFT's default.
    """
    ids = _first_ids(model, tokens)
    with torch.no_grad():
        cache = model(input_ids=ids[None], use_cache=True).past_key_values
    return _put_first(model, Prefix(cache), len(ids))


def _put_first(model, soft, count):
    decoder = model.base_model
    decoder.soft_tokens, soft.count = soft.to(model.device, model.dtype), count
    decoder.register_forward_pre_hook(_after_soft_tokens, with_kwargs=True)
    decoder.register_forward_hook(_keep_no_cache, with_kwargs=True)
    return train_only(model, soft.parameters())


def _after_soft_tokens(decoder, args, kwargs):
    """A sequence that begins finds the soft tokens in its KV cache. Mask and positions make room for them."""
    if decoder.training and any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules()):
        raise ValueError("model: gradient checkpointing drops the KV cache, which soft tokens need; disable it")
    kwargs = dict(zip(("input_ids",), args, strict=False)) | kwargs  # GPT-2 gets its ids by position
    cache, soft = kwargs.get("past_key_values"), decoder.soft_tokens
    if cache is None or not cache.get_seq_length():
        first = soft(decoder)
        cache = kwargs["past_key_values"] = type(first)(config=decoder.config) if cache is None else cache
        batch = len(kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"])
        for number, layer in enumerate(first.layers):
            cache.update(*(x.expand(batch, -1, -1, -1) for x in (layer.keys, layer.values)), number)
    if kwargs.get("attention_mask") is not None:  # (batch, seen and new)
        kwargs["attention_mask"] = F.pad(kwargs["attention_mask"], (soft.count, 0), value=1)
    if kwargs.get("position_ids") is not None:
        kwargs["position_ids"] = kwargs["position_ids"] + soft.count
    return (), kwargs


def _keep_no_cache(decoder, args, kwargs, output):
    """Some models give back any cache they were given, and generate(use_cache=False) would go on from it."""
    if kwargs.get("use_cache") is False:
        output.past_key_values = None


def _first_ids(model, tokens):
    """The ids (tokens,) of the words that soft tokens begin as; `tokens` says how many, or which."""
    decoder_layers(model, "soft_tokens")
    words, whole = model.get_input_embeddings().num_embeddings, type(tokens) is int
    ids = tokens if isinstance(tokens, list) else []
    if not (tokens > 0 if whole else ids and all(type(i) is int and 0 <= i < words for i in ids)):
        raise ValueError(f"tokens={tokens!r}; accepted are a whole number from 1 up, or a list of ids below {words}")
    return (torch.randint(words, (tokens,)) if whole else torch.tensor(ids)).to(model.device)


def _part(layer, words):
    """The part of a decoder layer that has one of the words in its name, and is no norm."""
    parts = dict(layer.named_children())
    for name in parts:
        if any(word in name for word in words) and "norm" not in name:
            return parts[name]
    raise ValueError(f"model: no part of its {type(layer).__name__} is called {' or '.join(words)}, but {list(parts)}")


def linears_ending(model, argument, names):
    """The linear layers whose names end in one of `names`."""
    ends = tuple(f".{name}" for name in ((names,) if isinstance(names, str) else names))
    found = [module for name, module in model.named_modules() if f".{name}".endswith(ends) and linear_sizes(module)]
    if ends and not found:
        raise ValueError(f"{argument}={names!r}: no linear layer's name ends so; accepted are ends such as 'v_proj'")
    return found


def linear_sizes(module):
    """(inputs, outputs) of a linear layer, or of GPT-2's Conv1D; None of another module."""
    for size_in, size_out in (("in_features", "out_features"), ("nx", "nf")):
        if hasattr(module, size_in):
            return getattr(module, size_in), getattr(module, size_out)


def decoder_layers(model, added=None):
    """The model's list of decoder layers. Refuses another kind of model, and one to which `added` was added."""
    config = getattr(model, "config", None)
    count = config.get_text_config().num_hidden_layers if hasattr(config, "get_text_config") else None
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:
        raise ValueError(f"model: got {type(model).__name__}; accepted is a causal language model of transformers")
    if added and any(hasattr(module, added) for module in model.modules()):
        raise ValueError(f"model: has {added} already; load it anew to add another")
    return lists[0]


def check_whole(name, value, high=None):
    if type(value) is not int or not 1 <= value <= (high or value):
        raise ValueError(f"{name}={value!r}; accepted are whole numbers from 1 {f'to {high}' if high else 'up'}")


def train_only(model, parameters):
    model.requires_grad_(False)
    for p in parameters:
        p.requires_grad_(True)
    return model
