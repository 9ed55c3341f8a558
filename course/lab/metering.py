"""Measure seconds and bytes, and keep measurements that others can check."""

import json
import os
import platform
import re
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from course.lab.counting import CudaPeak, StorageCounter, tensors_of
from course.lab.data import DATA, DataError
from course.lab.files import written_whole


@dataclass
class Measurement:
    """What a `measure()` block took; filled in when the block ends."""

    seconds: float | None = None
    peak_bytes: int | None = None  # stays None where memory was not asked for


@contextmanager
def measure(memory=True, include=()):
    """Measure a block: `with measure() as m: ...`, then `m.seconds` and `m.peak_bytes`.

    peak_bytes is the largest number of bytes alive at one time in tensors that were created inside the block,
    plus those that `include` (a tensor, module, optimizer, or a list of these) held when it began. On CUDA,
    when nothing in `include` lies on the CPU, the allocator says it; elsewhere storages are counted, which
    costs some ten microseconds an operation. memory=False takes the time only.
    """
    held = tensors_of(include) if memory else []
    on_cuda = torch.cuda.is_available() and all(tensor.is_cuda for tensor in held)
    meter = (CudaPeak if on_cuda else StorageCounter)(held) if memory else None
    del held, include  # or nothing in them could be freed inside the block
    measurement = Measurement()
    _wait_for_device()
    start = time.perf_counter()
    try:
        with meter or nullcontext():
            yield measurement
    finally:
        _wait_for_device()
        measurement.seconds = time.perf_counter() - start
        measurement.peak_bytes = meter.peak_bytes if memory else None


def _wait_for_device():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def hardware():
    """The processor's name, how many logical cores it has, torch's threads, and the GPU's name or None."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return {
        "cpu": found[1] if found else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions():
    """Versions of Python and of the libraries that decide a training result."""
    libraries = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    return {"python": platform.python_version()} | libraries


def save_measurement(name, results, command):
    """Write data/measurements/NAME.json: the results and the command, date (UTC), hardware, versions behind.

    Raises:
        ValueError: a bad name, results that JSON cannot hold (NaN too), or a path of this machine in it.
    """
    path = _measurement_path(name)
    record = {
        "name": name,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "results": results,
    }
    try:
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"results of measurement {name!r} do not fit JSON: {error}") from None
    for private in {str(Path.home()), str(Path.cwd()), str(DATA.parent)} - {"/"}:
        if private in text:
            raise ValueError(
                f"measurement {name!r} would publish {private!r}, a path of this machine; make it relative"
            )
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def load_measurement(name):
    """Read data/measurements/NAME.json back as a dict: name, command, date, hardware, versions, results."""
    path = _measurement_path(name)
    if not path.exists():
        known = sorted(file.stem for file in path.parent.glob("*.json"))
        raise DataError(f"measurement {name!r} is not recorded; there are {known}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path.name} is damaged: {error}") from None


def _measurement_path(name):
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(name)):
        raise ValueError(f"name of a measurement: {name!r}; letters, digits, '.', '_' and '-' are accepted")
    return DATA / "measurements" / f"{name}.json"
