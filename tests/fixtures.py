"""A tiny world for tests: a tokenizer, models with random weights, examples, short runs."""

import functools
import random
import statistics
import time

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from course.classroom import style
from course.lab.evaluation import score
from course.lab.training import TrainingConfig, finetune

COLOURS = ["red", "blue", "green", "purple", "orange", "white"]
THINGS = ["teapot", "lamp", "rug", "chair", "kettle", "wooden bench"]


@functools.cache
def tiny_tokenizer():
    """A byte-level BPE tokenizer of 300 tokens with pad and eos, and no bos."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((e["prompt"] + e["completion"] for e in shop_examples(200)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def tiny_model(seed=0, dropout=0.0, **changes):
    """A random Llama of about 60 thousand parameters in fp32, in eval mode."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 256}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"attention_dropout": dropout, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()


def shop_examples(count, seed=0):
    """Message -> JSON examples of the task "change", of unequal lengths."""
    dice = random.Random(seed)
    examples = []
    for number in range(count):
        thing, colour, order = dice.choice(THINGS), dice.choice(COLOURS), dice.randint(1, 99)
        please = dice.choice(["Please make it", "Could you, if it is not too late, send it in", "I want"])
        examples.append(
            {
                "id": f"change-test-{number:04d}",
                "task": "change",
                "prompt": f"Order {order}: {thing}. {please} {colour}.\n",
                "completion": f'{{"order": "{order}", "colour": "{colour}"}}',
                "phrasing": "unseen" if please.startswith("Could") else "seen",
            }
        )
    return examples


def config(**settings):
    """A short, silent run."""
    return TrainingConfig(
        **{"learning_rate": 3e-3, "batch_size": 4, "epochs": 2, "autocast": False, "progress": False} | settings
    )


def run(examples=None, model=None, validation=None, **settings):
    """Finetune a tiny model with dropout on 18 examples, unless told otherwise; return it and its History."""
    model, examples = model or tiny_model(dropout=0.1), examples or shop_examples(18)
    return model, finetune(model, tiny_tokenizer(), examples, config(**settings), validation=validation)


def weights(model):
    """A copy of a model's parameters by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(one, other):
    """Whether two sets of weights are the same bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def scored(completion, output, task="change"):
    """The Scores of one output."""
    return score([{"task": task, "prompt": "p", "completion": completion}], [output])


class Shown:
    """What was displayed, with the update method of IPython's display handle, and how often that was called."""

    def __init__(self, thing):
        self.thing, self.updates = thing, 0

    def update(self, thing):
        self.thing, self.updates = thing, self.updates + 1


def catch_displayed(monkeypatch, widget):
    """The list that everything the module `widget` displays will be in, as Shown."""
    shown = []

    def display(thing, display_id=False):
        shown.append(Shown(thing))
        return shown[-1]

    monkeypatch.setattr(widget, "display", display)
    return shown


def a_tenth_of_a_second():
    """What a widget may take, in seconds of the processor: 0.1 where an empty figure takes no more than 0.03.

    On a slower processor it is as many times more, so that the test judges the widget and not the machine.
    """

    def empty_figure():
        start = time.process_time()
        fig, ax = style.subplots(layout="none")
        ax.set(title="title", xlabel="x", ylabel="y")
        style.png(fig, "nothing")
        return time.process_time() - start

    return 0.1 * max(1, statistics.median(empty_figure() for _ in range(7)) / 0.03)
