"""The truth that the memory formulas are held against: peaks of real steps, counted byte by byte on small models."""

import gc

import bitsandbytes
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from course.activations import Run, feed_forward
from course.lab.counting import StorageCounter, tensors_of
from course.memory import ModelShape, inference_memory, training_memory

TOKENS = {"batch": 2, "seq": 192}
SHAPE = {"vocab_size": 1536, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
LLAMA = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
GPT = {"n_embd": 128, "n_layer": 6, "n_head": 8, "n_positions": 256, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
FAMILIES = {
    "llama": SHAPE | LLAMA,
    "mistral": SHAPE | LLAMA,
    "mixtral": SHAPE | LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": SHAPE
    | LLAMA
    | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "decoder_sparse_step": 1},
    "qwen2": SHAPE | LLAMA | {"tie_word_embeddings": True},
    "qwen3": SHAPE | LLAMA,
    "gemma2": SHAPE | LLAMA | {"tie_word_embeddings": True, "query_pre_attn_scalar": 16},
    "gemma3_text": SHAPE | LLAMA | {"tie_word_embeddings": True, "query_pre_attn_scalar": 16, "sliding_window": 512},
    "phi": SHAPE
    | LLAMA
    | {"num_key_value_heads": 8, "resid_pdrop": 0, "embd_pdrop": 0, "partial_rotary_factor": 0.5}
    | {"attention_dropout": 0, "hidden_act": "gelu_new", "intermediate_size": 512},
    "phi3": SHAPE | LLAMA,
    "gpt2": SHAPE | GPT | {"tie_word_embeddings": True, "activation_function": "gelu_new"},
    "opt": SHAPE
    | {"hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 512, "num_hidden_layers": 6, "dropout": 0}
    | {"num_attention_heads": 8, "max_position_embeddings": 256, "tie_word_embeddings": True},
    "falcon": SHAPE
    | {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 8, "bias": False, "alibi": False}
    | {"tie_word_embeddings": True, "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False},
    "bloom": SHAPE | {"hidden_size": 128, "n_layer": 6, "n_head": 8, "tie_word_embeddings": True},
}
TORCH, BNB = torch.optim, bitsandbytes.optim
OPTIMIZERS = {
    "sgd": (TORCH.SGD, {}),
    "momentum": (TORCH.SGD, {"momentum": 0.9}),
    "adam": (TORCH.Adam, {}),
    "adamw": (TORCH.AdamW, {}),
    "adafactor": (TORCH.Adafactor, {"foreach": False}),
    "adamw_8bit": (BNB.AdamW8bit, {}),
    "paged_adamw": (BNB.PagedAdamW, {}),
    "paged_adamw_8bit": (BNB.PagedAdamW8bit, {}),
}


def make_optimizer(name, trained, foreach=False):
    make, settings = OPTIMIZERS[name]
    if make in {TORCH.SGD, TORCH.Adam, TORCH.AdamW}:
        settings = settings | {"foreach": foreach, "fused": not foreach}
    return make(trained, lr=1e-3, **settings)


def state_bytes(optimizer):
    """Bytes of the states of trained tensors, without step counts and bitsandbytes' shared tables of 256 numbers."""
    tensors = [
        t
        for state in optimizer.state.values()
        for key, t in state.items()
        if torch.is_tensor(t) and not key.startswith("qmap")
    ]
    return sum(t.nbytes for t in tensors if t.numel() > 1)


class Bottleneck(nn.Module):
    """What Houlsby et al. 2019 put behind a sub-layer, after its last matrix."""

    def __init__(self, inside, hidden, rank, dtype):
        super().__init__()
        self.inside = inside
        self.down, self.up = nn.Linear(hidden, rank, dtype=dtype), nn.Linear(rank, hidden, dtype=dtype)

    def forward(self, x):
        out = self.inside(x)
        return out + self.up(nn.functional.gelu(self.down(out)))


def add_bottlenecks(model, shape, rank):
    last = {linear.name for linear in shape.blocks[0].linears if linear.reads in {"context", "product"}}
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if ".lm_head" not in name and name.rpartition(".")[2] in last:
            bottleneck = Bottleneck(module, shape.hidden, rank, model.dtype)
            model.get_submodule(name.rpartition(".")[0]).add_module(name.rpartition(".")[2], bottleneck)
    return model


def with_method(model, config, method, rank=8, targets=None, last_layers=2, virtual_tokens=20, **_):
    """The model with what `method` trains, and nothing else, set to be trained."""
    shape = ModelShape.from_config(config)
    if method == "lora":
        lora = LoraConfig(r=rank, target_modules=list(targets) if targets else "all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, lora).train()
    if method == "ia3":
        chosen = Run(shape, "ia3", targets=targets).adapted(shape.blocks[0])
        wanted = {linear.name for linear in chosen}
        if shape.family == "gpt2":  # both last matrices of a block have one name
            wanted = {"mlp.c_proj" if name == "c_proj" else name for name in wanted}
        ahead = {"mlp.c_proj"} | {linear.name for linear in chosen if feed_forward(linear)}
        ia3 = IA3Config(target_modules=wanted, feedforward_modules=ahead & wanted, task_type="CAUSAL_LM")
        return get_peft_model(model, ia3).train()
    if method == "prompt":
        prompt = PromptTuningConfig(num_virtual_tokens=virtual_tokens, task_type="CAUSAL_LM")
        return get_peft_model(model, prompt).train()
    if method == "adapter":
        return add_bottlenecks(model, shape, rank).train()
    if method == "bitfit":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
    if method == "partial":
        model.requires_grad_(False)
        model.model.layers[-last_layers:].requires_grad_(True)
        model.model.norm.requires_grad_(True)
        model.lm_head.requires_grad_(not config["tie_word_embeddings"])
    return model


def small(family, attention="sdpa", dtype=torch.float32, **changes):
    """A random model of a family, in training mode, and its configuration as a dict."""
    config = AutoConfig.for_model(family, **(FAMILIES[family] | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.train(), config.to_dict()


def counted_training(model, *, optimizer="adamw", batch, seq, precision="fp32", checkpointing=False, accumulation=1,
                     foreach=False, padded=False, **_):  # fmt: skip
    """Peak bytes of the second training step, counted."""
    if checkpointing:
        model.enable_input_require_grads() if hasattr(model, "peft_config") else None
        model.activation_checkpointing_enable(every_n_layers=int(checkpointing))
    trained = [p for p in model.parameters() if p.requires_grad]
    update = make_optimizer(optimizer, trained, foreach)
    ids = torch.randint(3, 1000, (batch, seq))
    mask = torch.ones_like(ids)
    mask[0, -8:] = 0  # the first text is shorter

    def step():
        for _ in range(accumulation):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
                loss = model(input_ids=ids, attention_mask=mask if padded else None, labels=ids, use_cache=False).loss
            loss.backward()
            del loss
        update.step()
        update.zero_grad()

    step()
    gc.collect()
    with StorageCounter(tensors_of([model, update])) as counter:
        step()
    return counter.peak_bytes


def training_row(family, method="full", attention="sdpa", precision="bf16", targets=None, rank=8, last_layers=2, **run):
    """(predicted, counted) for a small model of a family."""
    model, config = small(family, attention, torch.bfloat16 if precision == "bf16" else torch.float32)
    settings = {"method": method, "attention": attention, "precision": precision, "rank": rank, "targets": targets}
    run = TOKENS | run
    predicted = training_memory(config, **settings, last_layers=last_layers, **run)
    model = with_method(model, config, last_layers=last_layers, **settings, **run)
    return predicted, counted_training(model, precision=precision, **run)


def int8_bytes(model):
    """Stored bytes of the weights, after bitsandbytes' LLM.int8() has the blocks' matrices."""
    scales = 0
    for name, linear in list(model.model.named_modules()):
        if isinstance(linear, nn.Linear):
            made = bitsandbytes.nn.Linear8bitLt(linear.in_features, linear.out_features, False, has_fp16_weights=False)
            made.weight = bitsandbytes.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
            made.to("cpu")  # rounds the weights
            scales += made.weight.SCB.nbytes
            parent, _, own = name.rpartition(".")
            setattr(model.model.get_submodule(parent), own, made)
    return scales + sum(parameter.nbytes for parameter in model.parameters())


@torch.no_grad()
def inference_row(family, dtype="fp32", attention="sdpa", batch=2, seq=192):
    """(predicted, counted) peaks of reading a prompt of seq - 1 tokens and writing one."""
    model, config = small(family, attention, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    model.eval()
    ids = torch.randint(3, 1000, (batch, seq - 1))
    gc.collect()
    with StorageCounter(tensors_of(model)) as counter:
        read = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        token = read.logits[:, -1:].float().argmax(-1)
        model(input_ids=token, past_key_values=read.past_key_values, use_cache=True)
    return inference_memory(config, dtype, batch, seq), counter.peak_bytes
