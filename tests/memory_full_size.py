"""Peaks of training steps of full-size models, tracked by torch's own MemTracker under fake tensors: no byte is
allocated. Two and four layers are tracked, and the rest follows on a straight line, as a model's blocks are alike.
"""

import sys
from contextlib import nullcontext
from unittest.mock import patch

import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoConfig, AutoModelForCausalLM

from course.model_shape import SHAPES, _read

MASKS = ("create_causal_mask", "create_sliding_window_causal_mask")


def tracked(name, layers, *, method="full", batch, seq, precision="bf16", attention="sdpa", checkpointing=False,
            rank=16, targets=None, foreach=False, **_):  # fmt: skip
    """Peak bytes of the second step of the model `name` cut to `layers` layers; AdamW, fused or foreach."""
    fields = {key: value for key, value in _read(SHAPES / f"{name}.json").items() if key != "source"}
    fields["n_layer" if "n_layer" in fields else "num_hidden_layers"] = layers
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout"), 0.0)
    config = AutoConfig.for_model(**fields, **dropouts)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention).train()
        code = sys.modules[type(model).__module__]
        if method == "lora":
            wanted = list(targets) if targets else "all-linear"
            model = get_peft_model(model, LoraConfig(r=rank, target_modules=wanted, task_type="CAUSAL_LM")).train()
    if checkpointing:
        if method == "lora":
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with FakeTensorMode():
        _make_fake(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=foreach, fused=not foreach)
        ids = torch.randint(0, 1000, (batch, seq))
        tracker = MemTracker()
        tracker.track_external(model, optimizer, ids)
        for parameter in model.parameters():  # the tracker takes it for granted that all are trained
            if not parameter.requires_grad:
                tracker._param_to_grad_hook_handles[parameter] = (_NoHandle(), _NoHandle())
        # With fake tokens transformers cannot see that no text is padded, and makes a mask that real ones do not get.
        unmasked = patch.multiple(code, **{name: _no_mask for name in MASKS if hasattr(code, name)})
        with unmasked if attention == "sdpa" else nullcontext(), tracker:
            for _ in range(2):
                tracker.reset_mod_stats()
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                del loss
                optimizer.step()
                optimizer.zero_grad()
        return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def full_size_peak(name, layers, **run):
    """The peak with all `layers`, from two and four of them."""
    two, four = (tracked(name, few, **run) for few in (2, 4))
    return four + (layers - 4) * (four - two) / 2


def _no_mask(*_, **__):
    return None


class _NoHandle:
    def remove(self):
        pass


def _make_fake(model):
    """Put tensors of the fake mode in the place of parameters and buffers that live on the meta device."""
    made = {}
    for module in model.modules():
        for name, tensor in list(module._parameters.items()):
            if tensor is not None:
                if tensor not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    made[tensor] = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                module._parameters[name] = made[tensor]
        for name, tensor in list(module._buffers.items()):
            if tensor is not None:
                module._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
