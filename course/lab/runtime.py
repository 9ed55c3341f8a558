"""What this machine has: device, number types, memory, threads; Colab or not, online or not."""

import logging
import os
import platform
import random
import sys
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import torch
from packaging.version import Version
from tqdm.auto import tqdm

CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
OLDEST_TORCHAO = Version("0.16.0")  # that PEFT works beside: peft/import_utils.py, is_torchao_available


@dataclass(frozen=True)
class Runtime:
    """The machine as a chapter sees it.

    autocast_dtype is torch.bfloat16 where the hardware computes in it, and None elsewhere: emulated BF16 is
    slower than FP32, and FP16 needs loss scaling. memory_bytes is the device's whole memory.
    """

    device: str  # "cuda", "mps" or "cpu"
    device_name: str
    autocast_dtype: torch.dtype | None
    memory_bytes: int
    threads: int
    colab: bool


def detect():
    """The Runtime of this process, with the first GPU if there is one."""
    bfloat16 = False
    if torch.cuda.is_available():
        device, properties = "cuda", torch.cuda.get_device_properties(0)
        name, memory, bfloat16 = properties.name, properties.total_memory, properties.major >= 8
    elif torch.backends.mps.is_available():
        device, name, memory = "mps", f"Apple GPU ({platform.machine()})", torch.mps.recommended_max_memory()
    else:
        device, memory = "cpu", _memory()
        name = _cpu_fact("model name") or platform.processor() or platform.machine()
        bfloat16 = bool(CPU_BF16_FLAGS & set(_cpu_fact("flags").split()))
    return Runtime(
        device=device,
        device_name=name,
        autocast_dtype=torch.bfloat16 if bfloat16 else None,
        memory_bytes=memory,
        threads=torch.get_num_threads(),
        colab="COLAB_RELEASE_TAG" in os.environ,
    )


def autocast(device, wanted=True):
    """A context in which a model on `device` ("cpu", "cuda", "mps") computes in BF16 where the hardware does."""
    dtype = detect().autocast_dtype if wanted and detect().device == device else None
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


def online(timeout=1.0):
    """True when the Hugging Face Hub answers within `timeout` seconds; False when HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    hub = urllib.request.Request(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", method="HEAD")
    try:
        urllib.request.urlopen(hub, timeout=timeout).close()
    except urllib.error.HTTPError:  # an answer, if not a friendly one
        return True
    except OSError:
        return False
    return True


def set_seed(seed):
    """Seed the generators of Python, numpy and torch (all devices) with a whole number from 0 below 2**32."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed!r}, accepted is a whole number from 0 to 2**32 - 1")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def progress_bar(progress, iterable=None, **settings):
    """A tqdm bar, hidden where `progress` is False or TQDM_DISABLE is set, as it is when outputs are stored."""
    return tqdm(iterable, disable=not progress or bool(os.environ.get("TQDM_DISABLE")), **settings)


def setup():
    """Prepare a notebook's process: as many threads as cores it may use, no chatter from transformers, no old torchao.

    OMP_NUM_THREADS, where set, decides the threads. Prints nothing.
    """
    import huggingface_hub.utils
    import transformers.utils.logging

    _hide_old_torchao()
    # one library's notice to another's authors is nothing that a reader can act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="peft|transformers")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it asks for a package on some CPUs
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(_cores())
    downloads_hidden = huggingface_hub.utils.are_progress_bars_disabled()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # the one for loading weights
    if not downloads_hidden:
        huggingface_hub.utils.enable_progress_bars()  # hidden with it, but a download can take minutes


def _hide_old_torchao():
    """Make this process forget a torchao that PEFT refuses to start with, as Colab has one; the course uses none."""
    try:
        too_old = Version(metadata.version("torchao")) < OLDEST_TORCHAO
    except metadata.PackageNotFoundError:
        return
    if too_old:
        sys.modules["torchao"] = None  # to every import it is not installed


def _cores():
    """Physical cores that this process may use; a container's share counts, since torch does not see it."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota, _, period = _limit("cpu.max").partition(" ")
    share = int(quota) // int(period) if quota.isdecimal() else allowed
    return max(1, min(allowed, share, psutil.cpu_count(logical=False) or allowed))


def _memory():
    limit = _limit("memory.max")
    return min(psutil.virtual_memory().total, int(limit) if limit.isdecimal() else 2**63)


def _limit(name, folder=Path("/sys/fs/cgroup")):
    """A container's limit (Linux, cgroup v2), or "" where there is none."""
    try:
        return (folder / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _cpu_fact(field, path=Path("/proc/cpuinfo")):
    """The first CPU's value of a field of Linux's cpuinfo, or ""."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next(
        (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == field),
        "",
    )
