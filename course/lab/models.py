"""Load and save models: those that come with the course, folders, and causal language models of the Hub."""

from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from course.lab.data import DATA, DataError, verify
from course.lab.files import written_whole
from course.lab.runtime import detect, online

BUNDLED = ("shop-s", "shop-m", "shop-l")


def bundled():
    """Names of the models that came with the course, smallest first."""
    return [name for name in BUNDLED if (DATA / "models" / name / "config.json").exists()]


def load_model(name=None, *, dtype=None, device=None):
    """Load a causal language model and its tokenizer; every call returns fresh weights, in eval mode.

    Args:
        name: "shop-s" or another bundled model, a folder, or a Hub id such as "HuggingFaceTB/SmolLM2-135M".
            None: shop-s on a CPU, the largest bundled model on a GPU.
        dtype: a torch.dtype or its name. None: float32; for a Hub model on a GPU, bfloat16 where that has it.
        device: None: the one that course.lab.runtime.detect() finds.

    Raises:
        ValueError (DataError): no such model, no network to ask the Hub, a damaged file, an unusable dtype.
    """
    device = device or detect().device
    if name is None:
        name = ["shop-s", *bundled()][0 if torch.device(device).type == "cpu" else -1]
    name = str(name)
    is_ours, is_folder = name in BUNDLED, Path(name).is_dir()
    if is_ours:
        source = _intact(DATA / "models" / name)
    elif is_folder:
        source = Path(name)
        if not (source / "config.json").exists():
            raise DataError(f"model folder {name!r} has no config.json, so it is no model in Hugging Face's format")
    else:
        source = name
    if dtype is None:
        from_hub_to_gpu = not is_ours and not is_folder and torch.device(device).type != "cpu"
        dtype = (from_hub_to_gpu and detect().autocast_dtype) or torch.float32
    wanted = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(wanted, torch.dtype) and wanted.is_floating_point):
        raise ValueError(f"dtype={dtype!r} is not a floating-point type of torch; try 'float32' or 'bfloat16'")
    local = is_ours or is_folder or not online()
    try:
        # Weights are read from safetensors only, and no code that comes with a model is run.
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=wanted, use_safetensors=True, local_files_only=local)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(_not_loaded(name, is_ours or is_folder, local, error)) from error
    if tokenizer.eos_token is None:
        raise DataError(f"model {name!r}: its tokenizer has no end-of-sequence token, so no answer would ever end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def save_model(model, tokenizer, folder):
    """Save a model (of a PeftModel its adapter) with its tokenizer, whole or not at all; never as a pickle.

    Raises:
        FileExistsError: `folder` is there and holds something else than a model.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        kind = "adapter_config.json" if isinstance(model, PeftModel) else "config.json"
        if not (folder / kind).exists():
            raise FileExistsError(f"{folder} is there and is no saved model ({kind} is missing); it was not replaced")
    with written_whole(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def _intact(folder):
    """The folder of a bundled model, once its files have the SHA-256 that data/SHA256SUMS lists for them."""
    if not (folder / "config.json").exists():
        raise DataError(
            f"model {folder.name!r} is not in data/models; there are {bundled()}. `make models` rebuilds it"
        )
    if problems := verify(DATA, f"models/{folder.name}/"):
        raise DataError(f"{problems[0]}; `git checkout data/models/{folder.name}` brings it back")
    return folder


def _not_loaded(name, is_here, is_offline, error):
    if is_here:
        return f"model {name!r} cannot be loaded: {error}"
    advice = f"bundled models are {bundled()}, a Hub id looks like 'HuggingFaceTB/SmolLM2-135M'"
    if is_offline:
        return f"model {name!r} is neither bundled nor a folder, and huggingface.co cannot be reached; {advice}"
    reason = str(error).strip().splitlines()[0]
    return f"model {name!r} is neither bundled nor a folder, and the Hub did not give it: {reason}; {advice}"
