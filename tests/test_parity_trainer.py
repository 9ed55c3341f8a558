"""The same finetune through transformers' Trainer and TRL's SFTTrainer gives the same loss curve."""

from itertools import islice

import pytest
import torch
from datasets import Dataset
from fixtures import shop_examples, tiny_model, tiny_tokenizer
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from course.lab.data import collate, encode
from course.lab.training import TrainingConfig, _steps, finetune

TOKENIZER = tiny_tokenizer()
EXAMPLES = shop_examples(24)
SETTINGS = TrainingConfig(
    learning_rate=3e-3,
    epochs=1,
    batch_size=4,
    accumulate=2,
    warmup_share=0.34,
    weight_decay=0.1,
    autocast=False,
    progress=False,
)


def theirs(folder):
    """The same settings for Trainer, which logs the loss of every step and keeps the order of the data."""
    return {
        "output_dir": str(folder),
        "learning_rate": SETTINGS.learning_rate,
        "num_train_epochs": SETTINGS.epochs,
        "per_device_train_batch_size": SETTINGS.batch_size,
        "gradient_accumulation_steps": SETTINGS.accumulate,
        "warmup_steps": 2,  # 0.34 of 3 steps, rounded up
        "lr_scheduler_type": SETTINGS.schedule,
        "weight_decay": SETTINGS.weight_decay,
        "max_grad_norm": SETTINGS.clip_norm,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def in_our_order():
    three_steps = islice(_steps(len(EXAMPLES), SETTINGS), 3)
    return [EXAMPLES[i] for step in three_steps for batch in step for i in batch]


def curve(trainer):
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return [float(entry["loss"]) for entry in logs], [float(entry["learning_rate"]) for entry in logs]


def close_weights(one, other):
    for (name, ours), (_, reference) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("prompt_loss_weight", [0, 1])
def test_trainer(tmp_path, prompt_loss_weight):
    def with_labels(items):
        batch = collate(items, TOKENIZER.pad_token_id)
        labels = batch["input_ids"].masked_fill(batch.pop("weights") == 0, -100)
        return {key: batch[key] for key in ("input_ids", "attention_mask")} | {"labels": labels}

    reference = tiny_model()
    data = [encode(example, TOKENIZER, prompt_loss_weight) for example in in_our_order()]
    arguments = TrainingArguments(**theirs(tmp_path), remove_unused_columns=False)
    losses, rates = curve(Trainer(reference, arguments, train_dataset=data, data_collator=with_labels))

    model = tiny_model()
    settings = TrainingConfig(**{**vars(SETTINGS), "prompt_loss_weight": prompt_loss_weight})
    history = finetune(model, TOKENIZER, EXAMPLES, settings)
    assert len(losses) == len(history.losses) == 3
    assert history.losses == pytest.approx(losses, abs=1e-3)
    assert history.learning_rates == pytest.approx(rates, rel=1e-6)
    close_weights(model, reference)


@pytest.mark.parametrize("completion_only", [True, False])
def test_sft_trainer(tmp_path, completion_only):
    reference = tiny_model()
    data = Dataset.from_list([{key: example[key] for key in ("prompt", "completion")} for example in in_our_order()])
    arguments = SFTConfig(**theirs(tmp_path), completion_only_loss=completion_only, max_length=None)
    losses, _ = curve(SFTTrainer(reference, arguments, train_dataset=data, processing_class=TOKENIZER))

    model = tiny_model()
    settings = TrainingConfig(**{**vars(SETTINGS), "prompt_loss_weight": 0 if completion_only else 1})
    history = finetune(model, TOKENIZER, EXAMPLES, settings)
    assert history.losses == pytest.approx(losses, abs=1e-3)
    close_weights(model, reference)
