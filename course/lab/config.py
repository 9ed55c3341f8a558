"""How a run is set up, and what it leaves behind."""

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. A ValueError names the first setting that makes no sense."""

    learning_rate: float = 1e-3
    epochs: float = 3
    max_steps: int | None = None  # optimizer steps, instead of epochs
    batch_size: int = 16  # examples in one forward pass
    accumulate: int = 1  # forward passes to one optimizer step
    warmup_share: float = 0.05  # of all steps, while the learning rate rises from 0
    schedule: str = "cosine"  # or "linear" or "constant"
    weight_decay: float = 0.0  # on matrices only, not on biases and norms
    clip_norm: float | None = 1.0  # None: the gradient is not clipped
    prompt_loss_weight: float = 0.0  # of a prompt token, where a completion token weighs 1
    seed: int = 0  # of the order of the examples, and of dropout
    max_length: int | None = None  # tokens of an example; None: the model's context
    eval_every: int | None = None  # steps from one validation to the next; None: an epoch
    patience: int | None = None  # validations without a new best until it stops and puts the best weights back
    checkpoint_dir: str | Path | None = None
    checkpoint_every: int = 50  # steps
    autocast: str | bool = "auto"  # "auto": bf16 where the hardware has it; False: the dtype of the weights
    progress: bool = True

    def __post_init__(self):
        def number(accepted, low, high, kind=Real):
            return accepted, lambda v: isinstance(v, kind) and not isinstance(v, bool) and low <= v <= high

        count = number("a whole number from 1 up", 1, math.inf, Integral)
        positive = number("a finite number above 0", 5e-324, 1.7e308)
        rules = {
            "schedule": (f"one of {', '.join(SCHEDULES)}", lambda v: v in SCHEDULES),
            "autocast": ('"auto" or False', lambda v: v == "auto" or v is False),
            "seed": number("a whole number from 0 to 2**32 - 1", 0, 2**32 - 1, Integral),
            "weight_decay": number("a finite number from 0 up", 0, 1.7e308),
        }
        rules |= dict.fromkeys(("learning_rate", "epochs", "clip_norm"), positive)
        rules |= dict.fromkeys(("warmup_share", "prompt_loss_weight"), number("a number from 0 to 1", 0, 1))
        rules |= dict.fromkeys(("batch_size", "accumulate", "checkpoint_every", "max_steps"), count)
        rules |= dict.fromkeys(("max_length", "eval_every", "patience"), count)
        for name, (accepted, fits) in rules.items():
            value, none = (
                getattr(self, name),
                name in ("max_steps", "clip_norm", "max_length", "eval_every", "patience"),
            )
            if not (fits(value) or (none and value is None)):
                raise ValueError(f"{name}={value!r}, but it takes {accepted}{' or None' if none else ''}")


@dataclass
class History:
    """What happened in a run, over all its parts if it was stopped and continued."""

    losses: list[float] = field(default_factory=list)  # one a step: the mean over its weighted tokens
    learning_rates: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)  # steps done, loss of a completion token
    seconds: float = 0.0  # in optimizer steps, without validation and checkpoints
    tokens: int = 0  # read in forward passes, without padding
    peak_bytes: int = 0  # of tensors, the model's included, in the first step and in that with the largest batch
    stopped: str = "interrupted"  # or "finished" or "early stop"

    def __post_init__(self):
        self.validation = [tuple(pair) for pair in self.validation]  # JSON has no tuples

    @property
    def tokens_per_second(self):
        return self.tokens / self.seconds if self.seconds else 0.0
