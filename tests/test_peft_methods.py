"""Parameter-efficient methods against PEFT, and by what they mean: what trains, what stays, how many numbers.

PEFT has no bottleneck adapter and no partial finetuning; those are held to their definitions.
"""

import copy
import math
import re
from functools import partial

import peft
import pytest
import torch
from fixtures import equal, run, shop_examples, tiny_model, tiny_tokenizer, weights
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import course
from course.lab import training
from course.lab.losses import weighted_loss
from course.lab.models import load_model
from course.peft_methods import (
    add_adapters,
    add_bitfit,
    add_ia3,
    add_p_tuning,
    add_prefix,
    add_prompt,
    train_top_layers,
    trainable_parameters,
)

TOKENS, HIDDEN, SIZE = 5, 24, 4
SHAPE = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 256}
SHAPE |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}


def gpt2():
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
    shape |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**shape, pad_token_id=0, bos_token_id=None, eos_token_id=1)).eval()


def qwen2():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()


def gemma3():
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, head_dim=16, layer_types=kinds, sliding_window=64)).eval()


def shop_s():
    return load_model("shop-s", device="cpu")[0]


MODELS = {"llama": tiny_model, "gpt2": gpt2, "qwen2": qwen2, "gemma3": gemma3, "shop-s": shop_s}
METHODS = {
    "top layers": partial(train_top_layers, layers=1),
    "adapters": partial(add_adapters, size=SIZE),
    "bitfit": add_bitfit,
    "ia3": add_ia3,
    "prompt": partial(add_prompt, tokens=TOKENS),
    "p-tuning": partial(add_p_tuning, tokens=TOKENS, hidden=HIDDEN),
    "prefix": partial(add_prefix, tokens=TOKENS),
}
SOFT = ("prompt", "p-tuning", "prefix")
TINY = {name: make for name, make in MODELS.items() if name != "shop-s"}
every_tiny_model = pytest.mark.parametrize("make", TINY.values(), ids=TINY)
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
every_method = pytest.mark.parametrize("method", METHODS)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def stirred(model, seed=1):
    """The model after its trained numbers were moved at random, as training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in trained(model):
            p.add_(torch.randn_like(p) * (0.3 * p.std(correction=0) + 0.1))
    return model


def batch(lengths=(9, 4, 6), side="left"):
    """Random ids padded on a side, with their mask."""
    torch.manual_seed(2)
    ids, mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long), None
    for row, length in zip(ids, lengths, strict=True):
        row[slice(-length, None) if side == "left" else slice(length)] = torch.randint(2, 300, (length,))
    mask = (ids > 0).long()
    return ids, mask


def written(model, ids, mask=None, **settings):
    """What greedy generation writes, 8 tokens a row, and the logits it chose them by (rows, 8, vocabulary)."""
    mask = torch.ones_like(ids) if mask is None else mask
    settings |= {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    out = model.generate(
        input_ids=ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **settings
    )
    return out.sequences[:, -8:], torch.stack(out.logits, 1)


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=2e-5 * max(1, theirs.abs().max().item()), rtol=0)


# ---- parity with PEFT ----

TASK = {"task_type": "CAUSAL_LM"}


def through_peft(base, method):
    """The base with the method through PEFT, and its trained tensors in the order of ours."""
    if method == "bitfit":
        # LoRA of rank 1 on one layer, which changes nothing while B is 0, brings bias="all" along.
        one = base.get_submodule("transformer.h.0.attn" if hasattr(base, "transformer") else "model.layers.0.self_attn")
        name = next(name for name, _ in one.named_children())
        theirs = peft.get_peft_model(base, peft.LoraConfig(r=1, target_modules=[name], bias="all", **TASK))
        for key, p in theirs.named_parameters():
            p.requires_grad_(p.requires_grad and "lora" not in key)
        return theirs, trained(theirs)
    if method == "ia3":
        theirs = peft.get_peft_model(base, peft.IA3Config(**TASK))
        return theirs, trained(theirs)
    if method == "prompt":
        settings = peft.PromptTuningConfig(num_virtual_tokens=TOKENS, **TASK)
    elif method == "p-tuning":
        settings = peft.PromptEncoderConfig(num_virtual_tokens=TOKENS, encoder_hidden_size=HIDDEN, **TASK)
    else:  # PEFT takes the number of key-value heads from token_dim and num_attention_heads
        config = base.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = heads * config.hidden_size // config.num_attention_heads
        settings = peft.PrefixTuningConfig(
            num_virtual_tokens=TOKENS, num_attention_heads=heads, token_dim=width, **TASK
        )
    theirs = peft.get_peft_model(base, settings)
    return theirs, trained(theirs)


def pair(make, method):
    """Our model, stirred, and PEFT's with equal weights."""
    peft_ia3_takes_queries = method == "ia3" and make in (qwen2, gemma3)
    ours = add_ia3(make(), outputs=("q_proj", "v_proj")) if peft_ia3_takes_queries else METHODS[method](make())
    stirred(ours)
    theirs, tensors = through_peft(make(), method)
    assert trainable_parameters(ours) == theirs.get_nb_trainable_parameters()[0]
    mine = trained(ours)
    if method == "prefix":  # theirs is one matrix (tokens, layer and key or value and head and size)
        soft = ours.base_model.soft_tokens
        flat = [x[0].transpose(0, 1).flatten(1) for both in zip(soft.keys, soft.values, strict=True) for x in both]
        mine = [torch.cat(flat, 1)]
    with torch.no_grad():
        for p, other in zip(mine, tensors, strict=True):
            other.copy_(p.view(other.shape))
    return ours, theirs.eval()


PEFT_HAS = [
    (name, method)
    for name in MODELS
    for method in ("bitfit", "ia3", *SOFT)
    if not (method == "bitfit" and name not in ("gpt2", "qwen2"))  # the others have no biases
    and not (method == "prefix" and name == "gemma3")  # PEFT wants token_dim / heads = head_dim there; see below
]
peft_has = pytest.mark.parametrize("name, method", PEFT_HAS, ids=["-".join(one) for one in PEFT_HAS])


@peft_has
def test_peft_has_as_many_parameters_and_gives_the_same_logits_and_gradients(name, method):
    ours, theirs = pair(MODELS[name], method)
    ids, mask = batch(side="right")
    for given in ({}, {"attention_mask": mask}):
        mine, others = ours(input_ids=ids, **given).logits, theirs(input_ids=ids, **given).logits[:, -ids.shape[1] :]
        assert mine.shape[:2] == ids.shape
        real = mask.bool()
        assert_close(mine[real], others[real])
    mine[real].square().mean().backward()
    others[real].square().mean().backward()
    norms = [
        math.sqrt(sum(p.grad.square().sum().item() for p in trained(model) if p.grad is not None))
        for model in (ours, theirs)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3) and norms[0] > 0


@peft_has
@pytest.mark.filterwarnings("ignore:Position ids are not supported")
def test_peft_writes_the_same(name, method):
    ours, theirs = pair(MODELS[name], method)
    ids, mask = batch()
    if method in ("prompt", "p-tuning"):  # PEFT counts padding as positions there, so it reads row by row
        rows = [row[row > 0][None] for row in ids]
        others = [torch.cat(part) for part in zip(*(written(theirs, row) for row in rows), strict=True)]
        assert (written(theirs, ids, mask)[1][:, 0] - others[1][:, 0]).abs().max() > 1e-4  # what padding does to it
    else:
        others = written(theirs, ids, mask)
    mine = written(ours, ids, mask)
    assert torch.equal(mine[0], others[0])
    assert_close(mine[1], others[1])


def test_prefix_of_a_model_with_its_own_head_size():
    """Gemma's head size is no share of its width; PEFT agrees once it is told both."""
    ours = stirred(add_prefix(gemma3(), TOKENS))
    settings = peft.PrefixTuningConfig(num_virtual_tokens=TOKENS, num_attention_heads=2, token_dim=32, **TASK)
    theirs = peft.get_peft_model(gemma3(), settings).eval()
    soft = ours.base_model.soft_tokens
    flat = [x[0].transpose(0, 1).flatten(1) for both in zip(soft.keys, soft.values, strict=True) for x in both]
    with torch.no_grad():
        trained(theirs)[0].copy_(torch.cat(flat, 1))
    ids, _ = batch((7, 7))
    assert_close(ours(ids).logits, theirs(input_ids=ids).logits)
    assert trainable_parameters(ours) == theirs.get_nb_trainable_parameters()[0] == TOKENS * 2 * 2 * 2 * 16


# ---- counts on paper ----


@pytest.mark.parametrize("make, d, m, n", [(tiny_model, 32, 64, 2), (shop_s, 192, 512, 4)], ids=["llama", "shop-s"])
def test_counts_are_those_on_paper(make, d, m, n):
    """d: width, m: the feed-forward's, n: layers."""
    kv = make().config.num_key_value_heads * make().config.head_dim
    paper = {
        "top layers": 2 * d * d + 2 * d * kv + 3 * d * m + 2 * d,
        "adapters": n * 2 * (2 * d * SIZE + d + SIZE),
        "bitfit": n * (2 * d + 2 * kv + 2 * m + d),
        "ia3": n * (2 * kv + m),
        "prompt": TOKENS * d,
        "p-tuning": TOKENS * d + (d * HIDDEN + HIDDEN) + (HIDDEN * HIDDEN + HIDDEN) + (HIDDEN * d + d),
        "prefix": n * 2 * TOKENS * kv,
    }
    assert {name: trainable_parameters(add(make())) for name, add in METHODS.items()} == paper


# ---- what each method is ----


@every_model
@every_method
def test_only_the_intended_parameters_train(make, method):
    names = {
        "top layers": rf"(layers|h)\.{make().config.num_hidden_layers - 1}\.",
        "adapters": r"\.adapter\.(down|up)\.(weight|bias)$",
        "bitfit": r"bias$",
        "ia3": r"\.ia3$",
        "prompt": r"soft_tokens\.embedding$",
        "p-tuning": r"soft_tokens\.(embedding|encoder\.[024]\.(weight|bias))$",
        "prefix": r"soft_tokens\.(keys|values)\.\d$",
    }
    base = make()
    before, model = weights(base), METHODS[method](base)
    assert model is base
    for name, p in model.named_parameters():
        assert p.requires_grad == bool(re.search(names[method], name)), name
    after = weights(model)
    assert equal(before, {name: after[name] for name in before}), "nothing the model had may change or lose its name"


@every_tiny_model
@pytest.mark.parametrize("method", ["top layers", "adapters", "bitfit", "ia3"])
def test_these_begin_as_the_base_bit_for_bit(make, method):
    ids, mask = batch()
    assert torch.equal(
        METHODS[method](make())(ids, attention_mask=mask).logits, make()(ids, attention_mask=mask).logits
    )


@every_model
def test_a_prompt_of_words_is_those_words(make):
    """A soft prompt that was not trained gives what the words themselves would; so does a prefix."""
    words, (ids, _) = [7, 11, 13, 17, 19], batch((6, 6))
    hard = make()(torch.cat([torch.tensor([words] * 2), ids], 1)).logits[:, len(words) :]
    for add in (add_prompt, add_prefix):
        assert_close(add(make(), words)(ids).logits, hard)
    assert (make()(ids).logits - hard).abs().max() > 1e-3, "the words must matter"


@every_model
def test_adapters_stand_before_the_residual_sum(make):
    """An adapter that turns its input to zero takes attention, or feed-forward, out of the model."""
    ids, _ = batch((6, 6))
    model, bare = add_adapters(make(), 40), make()
    layer = (model.base_model.layers if hasattr(model.base_model, "layers") else model.base_model.h)[0]
    for adapter in [module for module in layer.modules() if type(module).__name__ == "Adapter"]:
        width = adapter.up.out_features
        with torch.no_grad():
            adapter.down = torch.nn.Linear(width, 2 * width)
            adapter.up = torch.nn.Linear(2 * width, width)
            adapter.down.weight.copy_(torch.cat([torch.eye(width), -torch.eye(width)]))
            adapter.down.bias.zero_()  # gelu(x) − gelu(−x) = x
            adapter.up.weight.copy_(torch.cat([-torch.eye(width), torch.eye(width)], 1))
            adapter.up.bias.zero_()
    dropped = (bare.base_model.layers if hasattr(bare.base_model, "layers") else bare.base_model.h)[0]
    for name, part in dropped.named_children():
        if name in ("self_attn", "attn", "mlp"):
            part.register_forward_hook(
                lambda part, args, out: (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0
            )
    assert_close(model(ids).logits, bare(ids).logits)


@every_tiny_model
@every_method
def test_gradients_reach_all_that_trains_and_nothing_else(make, method):
    model = METHODS[method](make())
    if method == "adapters":
        stirred(model)  # while `up` is zero, no gradient passes it on to `down`
    ids, _ = batch((6, 6))
    model.train()(ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    # The gradient of the keys' bias is zero, since a softmax does not see what all its scores have in common.
    silent = sum(not p.grad.any() for p in trained(model))
    assert silent == 0 or method in ("bitfit", "p-tuning"), "a ReLU may sleep"


def test_adapters_first_gradient_is_at_the_way_back_up():
    model = add_adapters(tiny_model(), SIZE)
    model(batch((6, 6))[0]).logits.square().sum().backward()
    grads = {name: p.grad.abs().sum().item() for name, p in model.named_parameters() if p.requires_grad}
    assert all((value > 0) == (".up." in name) for name, value in grads.items())


@pytest.mark.parametrize("make", [gpt2, qwen2], ids=["gpt2", "qwen2"])
def test_bitfit_adds_no_bias_where_there_are_some(make):
    names = set(weights(make()))
    assert set(weights(add_bitfit(make()))) == names


def test_bitfit_on_llama_is_loaded_with_its_biases(tmp_path):
    model = stirred(add_bitfit(tiny_model()))
    model.save_pretrained(tmp_path)
    again, ids = LlamaForCausalLM.from_pretrained(tmp_path).eval(), batch((6, 6))[0]
    assert equal(weights(again), weights(model)) and torch.equal(again(ids).logits, model(ids).logits)
    assert trainable_parameters(add_bitfit(again)) == trainable_parameters(model)


def test_ia3_is_a_scaling_of_weights():
    """Factors on keys and values scale rows of their weights, that between the feed-forward's halves columns."""
    model, plain = stirred(add_ia3(tiny_model())), tiny_model()
    with torch.no_grad():
        for name, module in plain.named_modules():
            factor = getattr(model.get_submodule(name), "ia3", None)
            if factor is not None:
                module.weight *= factor if name.endswith("down_proj") else factor[:, None]
    ids = batch((6, 6))[0]
    assert_close(model(ids).logits, plain(ids).logits)


# ---- batches, generation, the cache ----


@every_model
@every_method
def test_padding_batches_and_the_cache_change_nothing(make, method):
    model = stirred(METHODS[method](make()))
    ids, mask = batch()
    alone = [torch.cat(part) for part in zip(*(written(model, row[row > 0][None]) for row in ids), strict=True)]
    for settings in ({}, {"use_cache": False}):
        tokens, logits = written(model, ids, mask, **settings)
        assert torch.equal(tokens, alone[0])
        assert_close(logits, alone[1])
    # One forward pass over what was written chose the same tokens.
    whole = torch.cat([ids, alone[0]], 1)
    seen = torch.cat([mask, torch.ones_like(alone[0])], 1)
    places = (seen.cumsum(1) - 1).clamp(min=0)
    assert_close(model(whole, attention_mask=seen, position_ids=places).logits[:, -9:-1], alone[1])
    beams = model.generate(ids, attention_mask=mask, num_beams=2, max_new_tokens=3, pad_token_id=0, do_sample=False)
    assert beams.shape[0] == len(ids)


@every_tiny_model
@pytest.mark.parametrize("method", SOFT)
def test_soft_tokens_leave_no_mark_on_logits_and_outputs(make, method):
    model = METHODS[method](make())
    ids, _ = batch((6, 6))
    whole = model(ids).logits
    assert whole.shape[:2] == ids.shape
    assert_close(model(ids, logits_to_keep=torch.tensor([-3, -1])).logits, whole[:, [-3, -1]])
    assert_close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, whole)
    out = model(ids[:, :4], use_cache=True)  # and then on from its cache
    assert_close(model(ids[:, 4:], past_key_values=out.past_key_values).logits, whole[:, 4:])
    assert model(ids, use_cache=False).past_key_values is None
    assert_close(model(ids, use_cache=False, return_dict=False)[0], whole)


@every_method
def test_runs_in_bf16(method):
    model = stirred(METHODS[method](tiny_model().bfloat16()))
    ids, mask = batch()
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert written(model, ids, mask)[1].isfinite().all()
    mixed = METHODS[method](tiny_model()).train()
    with torch.autocast("cpu", torch.bfloat16):
        mixed(ids, use_cache=False).logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in trained(mixed))


# ---- the course's own loop ----


@every_method
@pytest.mark.parametrize("make", [tiny_model, gpt2, qwen2], ids=["llama", "gpt2", "qwen2"])
def test_finetune_lowers_the_loss_and_moves_nothing_else(make, method):
    model = METHODS[method](make())
    before = weights(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    _, history = run(shop_examples(16), model, learning_rate=3e-2, epochs=6)
    assert sum(history.losses[-4:]) < sum(history.losses[:4]) - 0.005  # an epoch each, so the same examples
    after = weights(model)
    assert equal({name: before[name] for name in frozen}, {name: after[name] for name in frozen})
    assert not equal(before, after)
    scores = course.evaluate(model, tiny_tokenizer(), shop_examples(5, seed=3), batch_size=3, progress=False)
    assert scores.n == 5


@every_method
def test_an_interrupted_run_goes_on_to_the_same_weights(method, tmp_path, monkeypatch):
    def fresh():
        torch.manual_seed(4)
        return METHODS[method](tiny_model(dropout=0.1))

    whole, all_of_it = run(model=fresh())
    passes = iter(range(10**6))

    def stops(model, prepared):
        if next(passes) == 3:
            raise KeyboardInterrupt
        return weighted_loss(model, prepared)

    monkeypatch.setattr(training, "weighted_loss", stops)
    assert run(model=fresh(), checkpoint_dir=tmp_path)[1].stopped == "interrupted"
    monkeypatch.undo()
    model, history = run(model=fresh(), checkpoint_dir=tmp_path)
    assert history.losses == all_of_it.losses and equal(weights(model), weights(whole))


@every_tiny_model
@every_method
def test_what_was_trained_is_saved_by_name_and_copied(make, method):
    model = stirred(METHODS[method](make()))
    ids, mask = batch()
    logits = model(ids, attention_mask=mask).logits
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in names}
    assert names == set(saved)
    torch.manual_seed(99)
    again = METHODS[method](make())
    _, unexpected = again.load_state_dict(saved, strict=False)
    assert not unexpected and torch.equal(again(ids, attention_mask=mask).logits, logits)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in trained(model):
            p.zero_()
    assert torch.equal(twin(ids, attention_mask=mask).logits, logits), "a copy must not look at the original"


# ---- what is refused ----


@pytest.mark.parametrize("method", ["adapters", "ia3", *SOFT])
def test_the_second_time_is_refused_and_changes_nothing(method):
    model = METHODS[method](tiny_model())
    before = weights(model)
    for again in SOFT if method in SOFT else [method]:
        with pytest.raises(ValueError, match=r"^model: has \w+ already; load it anew"):
            METHODS[again](model)
    assert equal(before, weights(model)) and trained(model)


def test_methods_that_add_nothing_can_follow_one_another():
    model = train_top_layers(train_top_layers(tiny_model(), 2), 1)
    assert trainable_parameters(model) == trainable_parameters(train_top_layers(tiny_model(), 1))
    assert trainable_parameters(add_bitfit(add_bitfit(model))) == trainable_parameters(add_bitfit(tiny_model()))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", None])
@pytest.mark.parametrize(
    "name, call",
    [
        ("layers", lambda value: train_top_layers(tiny_model(), value)),
        ("size", lambda value: add_adapters(tiny_model(), value)),
        ("tokens", lambda value: add_prompt(tiny_model(), value)),
        ("tokens", lambda value: add_prefix(tiny_model(), value)),
        ("tokens", lambda value: add_p_tuning(tiny_model(), value, 8)),
        ("hidden", lambda value: add_p_tuning(tiny_model(), 5, value)),
    ],
)
def test_a_number_that_is_none_is_refused(name, call, value):
    with pytest.raises(ValueError, match=rf"^{name}={re.escape(repr(value))}; accepted are .*whole number"):
        call(value)


@pytest.mark.parametrize("tokens", [[], [1, 300], [-1], [1.0], [True], ["red"]])
def test_ids_that_are_none_are_refused(tokens):
    with pytest.raises(ValueError, match=r"^tokens=\[.*\]; accepted are .* a list of ids below 300"):
        add_prompt(tiny_model(), tokens)


def test_names_and_layers_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"^layers=3; accepted are whole numbers from 1 to 2"):
        train_top_layers(tiny_model(), 3)
    with pytest.raises(ValueError, match=r"^outputs=\('k_porj',\): no linear layer's name ends so; accepted"):
        add_ia3(tiny_model(), outputs=("k_porj",))
    with pytest.raises(ValueError, match=r"^inputs='mlp': no linear layer's name ends so; accepted"):
        add_ia3(tiny_model(), inputs="mlp")
    with pytest.raises(ValueError, match=r"^outputs='v_proj', inputs=\['v_proj'\]: both name the same layer"):
        add_ia3(tiny_model(), outputs="v_proj", inputs=["v_proj"])


@every_method
def test_another_kind_of_model_is_refused(method):
    for other in (torch.nn.Linear(3, 3), tiny_model().lm_head):
        with pytest.raises(ValueError, match=r"^model: got Linear; accepted is a causal language model"):
            METHODS[method](other)


def test_a_layer_without_known_parts_is_refused():
    model = tiny_model()
    for layer in model.model.layers:
        layer.other = layer.mlp
        del layer.mlp
    with pytest.raises(ValueError, match=r"^model: no part of its LlamaDecoderLayer is called mlp or .*'other'"):
        add_adapters(model, 4)
    assert not any("adapter" in name for name in weights(model))


@pytest.mark.parametrize("method", SOFT)
def test_gradient_checkpointing_would_drop_the_soft_tokens(method):
    model = METHODS[method](tiny_model())
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"^model: gradient checkpointing drops the KV cache"):
        model.train()(batch()[0])
    model.eval()(batch()[0])
