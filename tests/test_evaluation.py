import math

import pytest
import torch
from fixtures import scored, shop_examples, tiny_model, tiny_tokenizer
from torch.nn import functional as F

from course.lab.data import encode
from course.lab.evaluation import evaluate, generate, perplexity
from course.lab.training import TrainingConfig, finetune

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def taught():
    """A tiny model that has learned to answer, so that its answers differ in length and end with EOS."""
    model = tiny_model(hidden_size=64, intermediate_size=128)
    settings = TrainingConfig(learning_rate=1e-2, epochs=25, batch_size=16, progress=False)
    finetune(model, TOKENIZER, shop_examples(64), settings)
    return model


def greedy(model, prompt, max_new_tokens):
    """One prompt at a time, without cache or padding: the definition."""
    ids, new = TOKENIZER(prompt)["input_ids"], []
    with torch.no_grad():
        while len(new) < max_new_tokens:
            new.append(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax().item())
            if new[-1] == TOKENIZER.eos_token_id:
                break
    return TOKENIZER.decode(new, skip_special_tokens=True)


def test_batches_write_what_each_prompt_gets_alone(taught):
    prompts = [example["prompt"] for example in shop_examples(24, seed=3)] + ["x"]
    alone = [greedy(taught, prompt, 40) for prompt in prompts]
    assert len({len(text) for text in alone}) > 3 and len(set(alone)) > 8
    assert generate(taught, TOKENIZER, prompts, 40, batch_size=8, progress=False) == alone
    assert generate(taught, TOKENIZER, prompts, 40, batch_size=1, progress=False) == alone
    assert not taught.training


def test_left_padding_does_not_move_the_logits():
    model, prompts = tiny_model(), ["a", "a much longer prompt than the first one"]
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([TOKENIZER(prompt)["input_ids"]])).logits[0, -1] for prompt in prompts]
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: seen.append(logits[:, -1]))
    generate(model, TOKENIZER, prompts, 1, progress=False)
    for row, logits in zip(seen[0].flip(0), expected, strict=True):  # the longest prompt comes first
        torch.testing.assert_close(row, logits, atol=1e-5, rtol=1e-5)


def test_evaluate_a_model(taught):
    examples = shop_examples(64)
    scores = evaluate(taught, TOKENIZER, examples, progress=False)
    assert scores.n == 64 and len(scores.outputs) == 64 and scores.seconds > 0
    assert scores.valid_json > 0.9 and scores.fields["colour"] > 0.9 and scores.fields["order"] < 0.5
    answers = zip(examples, scores.outputs, strict=True)
    assert scores.exact == sum(example["completion"] == output for example, output in answers) / 64 > 0
    seen = [example["phrasing"] == "seen" for example in examples]
    total = scores.by_phrasing["seen"] * sum(seen) + scores.by_phrasing["unseen"] * (64 - sum(seen))
    assert total == pytest.approx(64 * scores.exact)
    untaught = evaluate(tiny_model(), TOKENIZER, examples, progress=False)
    assert untaught.exact == untaught.valid_json == untaught.fields["order"] == 0
    assert "outputs" not in repr(scores)


@pytest.mark.parametrize(
    ("output", "exact", "valid", "colour"),
    [
        ('{"colour":"red",\n"order": 5 }', 1, 1, 1),  # spaces and the order of keys do not count
        ('{"order": 5, "colour": "Red"}', 0, 1, 0),
        ('{"order": "5", "colour": "red"}', 0, 1, 1),  # types count
        ('{"order": true, "colour": "red"}', 0, 1, 1),
        ('{"order": 5, "colour": "red", "size": 3}', 0, 1, 1),
        ('{"colour": "red"}', 0, 1, 1),
        ('[5, "red"]', 0, 1, 0),
        ("null", 0, 1, 0),
        ('{"order": 5, "colour": "red"', 0, 0, 0),
        ('{"order": NaN, "colour": "red"}', 0, 0, 0),
        ("", 0, 0, 0),
        ("[" * 100_000, 0, 0, 0),
    ],
)
def test_json_answers(output, exact, valid, colour):
    scores = scored('{"order": 5, "colour": "red"}', output)
    assert (scores.exact, scores.valid_json, scores.fields["colour"]) == (exact, valid, colour)


def test_text_answers_are_compared_as_text():
    assert scored("12.50", " 12.50\n", task="facts").exact == 1
    assert scored("12.50", "12.5", task="facts").exact == 0
    assert scored("12.50", "12.50", task="facts").valid_json is None
    assert scored("12.50", "12.50", task="facts").sql is None


def mean_token_loss(model, ids, first):
    losses = F.cross_entropy(
        model(input_ids=torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="none"
    )
    return losses[first - 1 :].sum().item(), len(ids) - first


def test_perplexity_weighs_every_token_alike():
    model, texts = tiny_model(), ["a red teapot", "Could you, if it is not too late, send it in blue?"]
    with torch.no_grad():
        parts = [mean_token_loss(model, TOKENIZER(text)["input_ids"], 1) for text in texts]
    expected = math.exp(sum(loss for loss, _ in parts) / sum(count for _, count in parts))
    assert perplexity(model, TOKENIZER, texts, progress=False) == pytest.approx(expected, rel=1e-4)
    assert expected == pytest.approx(300, rel=0.3)  # random weights: as good as a guess among 300 tokens

    examples = shop_examples(5)
    with torch.no_grad():
        parts = []
        for example in examples:
            encoded = encode(example, TOKENIZER)
            parts.append(mean_token_loss(model, encoded["input_ids"], encoded["weights"].index(1.0)))
    expected = math.exp(sum(loss for loss, _ in parts) / sum(count for _, count in parts))
    assert perplexity(model, TOKENIZER, examples, batch_size=2, progress=False) == pytest.approx(expected, rel=1e-4)


def test_perplexity_of_a_text_longer_than_the_context():
    model, text = tiny_model(max_position_embeddings=16), "send it in blue " * 20
    ids = TOKENIZER(text)["input_ids"]
    pieces = [ids[i : i + 16] for i in range(0, len(ids), 16)]
    with torch.no_grad():
        parts = [mean_token_loss(model, piece, 1) for piece in pieces if len(piece) > 1]
    expected = math.exp(sum(loss for loss, _ in parts) / sum(count for _, count in parts))
    assert perplexity(model, TOKENIZER, [text], progress=False) == pytest.approx(expected, rel=1e-4)


def test_bad_input():
    model, examples = tiny_model(), shop_examples(2)
    for bad, message in (
        ([], "examples is empty"),
        ([{"prompt": "a"}], r"examples\[0\]: the field 'completion' is missing"),
        (
            [examples[0], examples[1] | {"task": "chnge"}],
            r"examples\[1\]: task 'chnge' is none of recommend, change",
        ),
        ([examples[0] | {"prompt": "many words " * 200}], r"prompts\[0\] has \d+ tokens; from 1 to 255 fit"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(model, TOKENIZER, bad, progress=False)
    with pytest.raises(ValueError, match=r"prompts\[0\] has 1 tokens; from 1 to -44 fit, which leaves 300"):
        generate(model, TOKENIZER, ["a"], max_new_tokens=300)
    with pytest.raises(ValueError, match=r"prompts=\[\]"):
        generate(model, TOKENIZER, [], max_new_tokens=3)
    with pytest.raises(ValueError, match="batch_size=0, but it takes a whole number from 1 up"):
        generate(model, TOKENIZER, ["a"], max_new_tokens=3, batch_size=0)
    with pytest.raises(ValueError, match=r"max_new_tokens=1\.5"):
        evaluate(model, TOKENIZER, examples, max_new_tokens=1.5)
    with pytest.raises(ValueError, match=r"texts_or_examples=\[\]"):
        perplexity(model, TOKENIZER, [])
    with pytest.raises(ValueError, match="no text has two tokens"):
        perplexity(model, TOKENIZER, ["a", ""])
