import math

import pytest
import torch
from fixtures import config, equal, run, shop_examples, tiny_model, tiny_tokenizer, weights
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch.nn import functional as F

from course.lab import training
from course.lab.data import DataError, encode
from course.lab.losses import prepare, weighted_loss
from course.lab.training import finetune

TOKENIZER = tiny_tokenizer()


def test_it_learns_and_says_what_happened():
    model, history = run(
        shop_examples(64), epochs=12, learning_rate=1e-2, batch_size=8, validation=shop_examples(8, seed=1)
    )
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert len(history.losses) == len(history.learning_rates) == 12 * 8
    assert [step for step, _ in history.validation] == list(range(8, 97, 8))  # once an epoch
    assert history.validation[-1][1] < history.validation[0][1]
    assert history.tokens == 12 * sum(len(encode(e, TOKENIZER)["input_ids"]) for e in shop_examples(64))
    assert history.tokens_per_second == pytest.approx(history.tokens / history.seconds)
    assert history.stopped == "finished" and not model.training


def test_learning_rate_rises_then_falls():
    rates = {name: run(schedule=name, warmup_share=0.2, max_steps=20)[1].learning_rates for name in training.SCHEDULES}
    for curve in rates.values():
        assert curve[:5] == pytest.approx([3e-3 * i / 4 for i in range(5)])
    assert rates["constant"][4:] == [3e-3] * 16
    assert rates["linear"][12] == pytest.approx(3e-3 / 2)
    assert rates["cosine"][8] == pytest.approx(3e-3 * (1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize("prompt_loss_weight", [0.0, 0.1, 1.0])
def test_loss_is_the_weighted_mean_that_plain_torch_computes(prompt_loss_weight):
    examples, model = shop_examples(7), tiny_model()
    encoded = [encode(example, TOKENIZER, prompt_loss_weight) for example in examples]
    total = weight = 0.0
    for item in encoded:
        ids = torch.tensor([item["input_ids"]])
        losses = F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        target_weights = torch.tensor(item["weights"][1:])
        total, weight = total + (losses * target_weights).sum().item(), weight + target_weights.sum().item()
    batch = prepare(encoded, 0)
    assert weighted_loss(model, batch).item() / batch["weights"].sum().item() == pytest.approx(total / weight, rel=1e-5)
    history = run(examples, model, batch_size=7, max_steps=1, prompt_loss_weight=prompt_loss_weight)[1]
    assert history.losses[0] == pytest.approx(total / weight, rel=1e-5)


def test_accumulated_batches_of_unequal_length_count_as_one():
    examples = shop_examples(16)
    examples[3]["completion"] += " and thank you" * 8
    one, whole = run(examples, tiny_model(), batch_size=8, schedule="linear")
    two, parts = run(examples, tiny_model(), batch_size=4, accumulate=2, schedule="linear")
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, atol=1e-4, rtol=1e-3)
    means_of_means = run(examples, tiny_model(), batch_size=4, max_steps=2, schedule="constant", warmup_share=1)[1]
    assert sum(means_of_means.losses) / 2 != pytest.approx(whole.losses[0], rel=1e-4)  # the bug this rules out


def test_equal_seeds_give_equal_weights_and_other_seeds_do_not():
    assert equal(weights(run(seed=1)[0]), weights(run(seed=1)[0]))
    assert not equal(weights(run(seed=1)[0]), weights(run(seed=2)[0]))


def test_only_what_requires_a_gradient_changes_and_only_matrices_decay():
    model = tiny_model()
    model.requires_grad_(False)
    model.model.layers[0].mlp.requires_grad_(True)
    model.model.norm.requires_grad_(True)
    before = weights(model)
    run(model=model, max_steps=3)
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert changed == {f"model.layers.0.mlp.{part}_proj.weight" for part in ("up", "gate", "down")} | {
        "model.norm.weight"
    }

    model, plain = tiny_model(), tiny_model()
    for each, decay in ((plain, 0.0), (model, 0.5)):
        run(model=each, max_steps=1, schedule="constant", warmup_share=0, weight_decay=decay)
    assert torch.equal(model.model.norm.weight, plain.model.norm.weight)
    start = tiny_model().lm_head.weight
    torch.testing.assert_close(model.lm_head.weight - plain.lm_head.weight, -3e-3 * 0.5 * start, atol=1e-7, rtol=1e-3)


def test_peak_bytes_hold_weights_gradients_and_both_averages():
    wide = {"hidden_size": 256, "intermediate_size": 1024}
    model, history = run(model=tiny_model(**wide), max_steps=3, batch_size=1)
    parameters = sum(p.nbytes for p in model.parameters())
    assert 4 * parameters < history.peak_bytes < 4.5 * parameters
    large_batch = run(shop_examples(64), tiny_model(**wide), max_steps=1, batch_size=64)[1]
    assert large_batch.peak_bytes > 2 * history.peak_bytes  # activations


@pytest.mark.parametrize(
    "method",
    [
        LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1, task_type="CAUSAL_LM"),
        PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    ],
    ids=["lora", "prompt", "prefix"],
)
def test_peft_models_train(method):
    model = get_peft_model(tiny_model(), method)
    encoded = [encode(example, TOKENIZER) for example in shop_examples(2)]
    labels = prepare(encoded[:1], 0)
    ids = torch.tensor([encoded[0]["input_ids"]])
    target = torch.where(torch.tensor([encoded[0]["weights"]]) > 0, ids, -100)
    model.eval()
    ours = weighted_loss(model, labels).item() / labels["weights"].sum().item()
    assert ours == pytest.approx(model(input_ids=ids, labels=target).loss.item(), rel=1e-4)
    history = run(model=model, epochs=6, learning_rate=3e-2)[1]
    assert history.losses[-1] < history.losses[0]


def test_early_stop_puts_the_best_weights_back():
    memorized, unseen = shop_examples(4), shop_examples(12, seed=5)
    model, history = run(memorized, validation=unseen, epochs=100, patience=3, eval_every=2, learning_rate=1e-2)
    losses = [loss for _, loss in history.validation]
    assert history.stopped == "early stop" and len(history.losses) < 100
    assert losses.index(min(losses)) == len(losses) - 4
    again = tiny_model()
    again.load_state_dict(model.state_dict())
    encoded = [encode(example, TOKENIZER) for example in unseen]
    batch = prepare(encoded, 0)
    assert weighted_loss(again, batch).item() / batch["weights"].sum().item() == pytest.approx(min(losses), rel=1e-4)


def test_loss_that_is_not_finite_stops_before_it_does_harm():
    model, calm = tiny_model(), tiny_model()
    model.lm_head.weight.register_hook(
        lambda gradient: gradient * (math.inf if len(calls) == 2 else calls.append(1) or 1)
    )
    calls = []
    with pytest.raises(
        FloatingPointError, match=r"step 2: .* learning rate 0\.003.* learning rate is too high"
    ) as caught:
        run(model=model, schedule="constant", warmup_share=0, max_steps=9)
    run(model=calm, schedule="constant", warmup_share=0, max_steps=2)
    assert len(caught.value.history.losses) == 2
    assert equal(weights(model), weights(calm))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1e-3}, "learning_rate=-0.001, but it takes a finite number above 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"learning_rate": "1e-3"}, "learning_rate='1e-3'"),
        ({"learning_rate": None}, "learning_rate=None, but it takes a finite number above 0$"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0, but it takes a whole number from 1 up"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"accumulate": True}, "accumulate=True"),
        ({"max_steps": 0}, "max_steps=0, but it takes a whole number from 1 up or None"),
        ({"schedule": "step"}, "schedule='step', but it takes one of cosine, linear, constant"),
        ({"warmup_share": 5}, "warmup_share=5, but it takes a number from 0 to 1"),
        ({"prompt_loss_weight": -0.1}, "prompt_loss_weight=-0.1"),
        ({"clip_norm": 0}, "clip_norm=0, but it takes a finite number above 0 or None"),
        ({"weight_decay": math.inf}, "weight_decay=inf"),
        ({"autocast": "fp16"}, "autocast='fp16', but it takes \"auto\" or False"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_arguments_that_cannot_work():
    model, examples = tiny_model(), shop_examples(3)
    before = weights(model)
    for bad, message in (
        ([], "examples is empty"),
        ([{"prompt": "a"}], r"examples\[0\]: the field 'completion' is missing"),
        ([examples[0], examples[1] | {"prompt": ""}], r"examples\[1\]: 'prompt' must be a string"),
        ("text", r"examples\[0\]: a dict"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(model, TOKENIZER, bad, config())
    long = [examples[0] | {"prompt": "many words " * 200}]
    with pytest.raises(DataError, match=r"change-test-0000: prompt \(\d+ tokens\) .* longer than the 256 tokens"):
        finetune(model, TOKENIZER, long, config())
    with pytest.raises(DataError, match="longer than the 20 tokens"):
        finetune(model, TOKENIZER, examples, config(max_length=20))
    with pytest.raises(ValueError, match="patience=2 needs validation"):
        finetune(model, TOKENIZER, examples, config(patience=2))
    with pytest.raises(ValueError, match="validation is empty"):
        finetune(model, TOKENIZER, examples, config(), validation=[])
    assert equal(weights(model), before)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="model has no trainable parameters"):
        finetune(model, TOKENIZER, examples, config())
