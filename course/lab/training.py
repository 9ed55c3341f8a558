"""The one training loop of the course; it trains a model on whatever device the model lies on."""

import math
import signal
import threading
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice

import torch
from transformers import get_scheduler

from course.lab.checkpoint import Checkpoint, digest
from course.lab.config import SCHEDULES, History, TrainingConfig
from course.lab.losses import context_length, encode_all, mean_loss, prepare, weighted_loss
from course.lab.metering import measure
from course.lab.runtime import autocast, progress_bar


def finetune(model, tokenizer, examples, config=None, *, validation=None):
    """Train the parameters of `model` that require a gradient, in place, with AdamW, and return the History.

    The loss of a step is the weighted sum of its tokens' losses divided by the sum of their weights, over all
    of its forward passes together: accumulated passes of unequal length count exactly as one large batch.

    Interrupting the run (Ctrl-C, or a notebook's stop button) returns what was reached; History.stopped says
    so. With config.checkpoint_dir, a second call with equal arguments continues an interrupted or killed run;
    on a CPU it ends with the same weights bit for bit. A finished run is loaded. A checkpoint that cannot be
    written, because the disk is full, gives a warning, and training goes on.

    Args:
        model: a transformers or PEFT causal language model.
        examples, validation: dicts with `prompt` and `completion`.

    Raises:
        ValueError: an argument that cannot work (DataError for an example); the model is as it was.
        FloatingPointError: a loss or gradient that is no finite number. The weights are those before that
            step; the error's `history` holds the steps until then.
        OSError: there is no room for a checkpoint before the first step.
    """
    return _Run(model, tokenizer, examples, config or TrainingConfig(), validation).train()


class _Run:
    """One call of finetune. How many losses its history holds is its position; all else follows from that."""

    def __init__(self, model, tokenizer, examples, config, validation):
        self.model, self.config, self.history, self.best = model, config, History(), {}
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.trainable:
            raise ValueError("model has no trainable parameters: requires_grad is False for every one")
        if config.patience and validation is None:
            raise ValueError(f"patience={config.patience} needs validation examples, but validation is None")
        longest = context_length(model, config.max_length)
        self.data = encode_all("examples", examples, tokenizer, config.prompt_loss_weight, longest)
        self.validation = []
        if validation is not None:  # prompts never count here, so that runs of any prompt_loss_weight compare
            self.validation = encode_all("validation", validation, tokenizer, 0.0, longest)
        self.pad_id = tokenizer.pad_token_id or 0  # any token will do: it weighs nothing

        matrices = [p for p in self.trainable.values() if p.ndim >= 2]
        others = [p for p in self.trainable.values() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        steps_an_epoch = math.ceil(len(self.data) / (config.batch_size * config.accumulate))
        self.total = config.max_steps or math.ceil(config.epochs * steps_an_epoch)
        self.eval_every = config.eval_every or steps_an_epoch
        warmup = math.ceil(config.warmup_share * self.total)
        scheduler = get_scheduler(SCHEDULES[config.schedule], self.optimizer, warmup, self.total)
        self.share_of_rate = scheduler.lr_lambdas[0]  # a function of the step's number
        self.plan = list(islice(_steps(len(self.data), config), self.total))
        self.metered = {0, max(range(self.total), key=self.padded_tokens)}
        self.autocast = autocast(model.device.type, config.autocast)
        self.checkpoint = config.checkpoint_dir and Checkpoint(config.checkpoint_dir, self.identity())

    def padded_tokens(self, number):
        """Of the largest batch in step `number`."""
        return max(len(rows) * max(len(self.data[i]["input_ids"]) for i in rows) for rows in self.plan[number])

    def train(self):
        if self.checkpoint:
            self.resume()
        history, was_training = self.history, self.model.training
        done = len(history.losses)
        bar = progress_bar(self.config.progress, desc="finetune", total=self.total, initial=done)
        try:
            while not self.is_over():
                self.step(len(history.losses))
                speed = f"{history.tokens_per_second:,.0f} tokens/s"
                bar.set_postfix_str(f"loss {history.losses[-1]:.3f}, {speed}", refresh=False)
                bar.update()
                if self.checkpoint and len(history.losses) % self.config.checkpoint_every == 0:
                    self.save()
            self.put_weights(self.best)
        except KeyboardInterrupt:
            history.stopped = "interrupted"
        finally:
            bar.close()
            self.optimizer.zero_grad()
            self.model.train(was_training)
        if self.checkpoint:
            self.save()
        return history

    def is_over(self):
        """Validate where that is due, then see whether the run has come to its end."""
        history, done = self.history, len(self.history.losses)
        due = self.validation and done and (done % self.eval_every == 0 or done == self.total)
        if due and done not in (step for step, _ in history.validation):
            loss = self.validation_loss()
            if self.config.patience and all(loss < earlier for _, earlier in history.validation):
                self.best = {name: p.detach().clone() for name, p in self.trainable.items()}
            history.validation.append((done, loss))
        losses = [loss for _, loss in history.validation]
        since_best = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        if self.config.patience and since_best >= self.config.patience:
            history.stopped = "early stop"
        elif done >= self.total:
            history.stopped = "finished"
        return history.stopped != "interrupted"

    def step(self, number):
        batches = [prepare([self.data[i] for i in rows], self.pad_id) for rows in self.plan[number]]
        weight = sum(batch["weights"].sum().item() for batch in batches)
        rate = self.config.learning_rate * self.share_of_rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        torch.manual_seed(self.config.seed * 1_000_003 + number)  # dropout then needs no state to resume from
        with measure(memory=number in self.metered, include=[self.model, self.optimizer]) as meter:
            loss = torch.zeros((), device=self.model.device)
            for batch in batches:
                with self.autocast:
                    part = weighted_loss(self.model, batch) / weight
                part.backward()
                loss += part.detach()
            norm = torch.nn.utils.clip_grad_norm_(self.trainable.values(), self.config.clip_norm or math.inf)
            self.check_finite(number, rate, loss.item(), norm.item())
            with _interrupt_waits():  # or half of the weights would be a step behind
                self.optimizer.step()
                self.history.losses.append(loss.item())
                self.history.learning_rates.append(rate)
                self.history.tokens += sum(batch["tokens"] for batch in batches)
            self.optimizer.zero_grad()
        self.history.seconds += meter.seconds
        self.history.peak_bytes = max(self.history.peak_bytes, meter.peak_bytes or 0)

    def check_finite(self, number, rate, loss, norm):
        if math.isfinite(loss) and math.isfinite(norm):
            return
        error = FloatingPointError(
            f"step {number}: the loss is {loss} and the gradient's norm {norm}, at learning rate {rate:g}."
            " The weights are those before this step. Likely causes: the learning rate is too high (try a"
            " tenth), there is no warm-up, clip_norm is None, the weights are float16 (use float32 or"
            " bfloat16), or the model held NaN or infinity before training"
        )
        error.history = self.history
        raise error

    def validation_loss(self):
        return mean_loss(self.model, self.validation, self.pad_id, self.config.batch_size, self.autocast)

    def put_weights(self, weights):
        with _interrupt_waits(), torch.no_grad():
            for name, weight in weights.items():
                self.trainable[name].copy_(weight)

    def identity(self):
        """What must be equal for a checkpoint to fit: settings, data, model (a sample of frozen weights)."""
        settings = asdict(self.config)
        for name in ("checkpoint_dir", "checkpoint_every", "progress"):
            del settings[name]
        model = [
            (name, str(p.dtype), p.shape, p.requires_grad or p.flatten()[:4].tolist())
            for name, p in self.model.named_parameters()
        ]
        contents = {"examples": self.data, "validation": self.validation, "model": model}
        return settings | {name: digest(content) for name, content in contents.items()}

    def save(self):
        tensors = {f"weights/{name}": p for name, p in self.trainable.items()}
        tensors |= {f"best/{name}": weight for name, weight in self.best.items()}
        for name, p in self.trainable.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state[p].items()}
        self.checkpoint.save(tensors, asdict(self.history))

    def resume(self):
        found = self.checkpoint.load()
        if found is None:
            copies = 4 if self.config.patience else 3  # weights, the optimizer's two averages, the best weights
            return self.checkpoint.check_space(copies * sum(p.nbytes for p in self.trainable.values()))
        kinds = {}
        for name, tensor in found[0].items():
            kind, _, name = name.partition("/")
            kinds.setdefault(kind, {})[name] = tensor.to(self.trainable[name].device)
        self.put_weights(kinds.pop("weights"))
        self.best = kinds.pop("best", {})
        for kind, tensors in kinds.items():
            for name, tensor in tensors.items():
                self.optimizer.state[self.trainable[name]][kind] = tensor
        self.history = History(**found[1])


def _steps(count, config):
    """For each step, without end, a list of batches of indices; every epoch has an order of its own."""
    dice = torch.Generator().manual_seed(config.seed)
    size = config.batch_size
    while True:
        order = torch.randperm(count, generator=dice).tolist()
        for start in range(0, count, size * config.accumulate):
            rows = order[start : start + size * config.accumulate]
            yield [rows[i : i + size] for i in range(0, len(rows), size)]


@contextmanager
def _interrupt_waits():
    """Let Ctrl-C take effect after the block instead of inside it. Only the main thread ever receives one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting = []
    handler = signal.signal(signal.SIGINT, lambda *signal_and_frame: waiting.append(signal_and_frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if waiting and callable(handler):
        handler(*waiting[0])
