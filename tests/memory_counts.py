"""The truth that the memory formulas are held against: peaks of real steps, counted byte by byte on small models."""

import gc

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from course.lab.counting import StorageCounter, tensors_of
from course.memory import inference_memory, training_memory

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
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


def small(family, attention="sdpa", dtype=torch.float32, **changes):
    """A random model of a family, in training mode, and its configuration as a dict."""
    config = AutoConfig.for_model(family, **(FAMILIES[family] | changes))
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.train(), config.to_dict()


def counted_training(model, *, optimizer="adamw", batch, seq, precision="fp32", checkpointing=False, accumulation=1,
                     foreach=False, padded=False, **_):  # fmt: skip
    """Peak bytes of the second training step, counted."""
    if checkpointing:
        model.enable_input_require_grads() if hasattr(model, "peft_config") else None
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = [p for p in model.parameters() if p.requires_grad]
    make, settings = OPTIMIZERS[optimizer]
    update = make(trained, lr=1e-3, foreach=foreach, fused=not foreach, **settings)
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
    if method == "lora":
        wanted = list(targets) if targets else "all-linear"
        model = get_peft_model(model, LoraConfig(r=rank, target_modules=wanted, task_type="CAUSAL_LM")).train()
    if method == "partial":
        model.requires_grad_(False)
        model.model.layers[-last_layers:].requires_grad_(True)
        model.model.norm.requires_grad_(True)
        model.lm_head.requires_grad_(not config["tie_word_embeddings"])
    return predicted, counted_training(model, precision=precision, **run)


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
