"""What course.lab.runtime finds out about a machine, on this one and on pretended ones."""

import http.server
import os
import random
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft.import_utils import is_torchao_available

from course.lab import runtime


@pytest.fixture
def cuda(monkeypatch):
    """Pretend a GPU of a given compute capability."""

    def pretend(major):
        properties = SimpleNamespace(name="Test GPU", total_memory=24 * 2**30, major=major)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    return pretend


@pytest.fixture
def cpu(monkeypatch):
    """No GPU, and a cpuinfo with the given flags."""

    def pretend(flags):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        facts = {"model name": "Test CPU", "flags": flags}
        monkeypatch.setattr(runtime, "_cpu_fact", lambda field: facts[field])

    return pretend


def test_this_machine_makes_sense():
    machine = runtime.detect()
    assert machine.device in {"cuda", "mps", "cpu"} and machine.device_name
    assert 10**8 < machine.memory_bytes < 10**14
    assert machine.threads == torch.get_num_threads()
    assert torch.zeros(2, device=machine.device).sum().item() == 0


@pytest.mark.parametrize(("major", "dtype"), [(7, None), (8, torch.bfloat16), (9, torch.bfloat16)])
def test_bf16_on_a_gpu_from_capability_8(cuda, major, dtype):
    cuda(major)
    machine = runtime.detect()
    assert (machine.device, machine.device_name, machine.memory_bytes) == ("cuda", "Test GPU", 24 * 2**30)
    assert machine.autocast_dtype is dtype


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu avx2 avx512f avx512_bf16", torch.bfloat16),
        ("fpu amx_bf16 amx_tile", torch.bfloat16),
        ("fpu avx2 avx512f", None),
        ("", None),
    ],
)
def test_bf16_on_a_cpu_only_where_the_hardware_has_it(cpu, flags, dtype):
    cpu(flags)
    machine = runtime.detect()
    assert (machine.device, machine.device_name, machine.autocast_dtype) == ("cpu", "Test CPU", dtype)


def test_cpu_facts_are_read_from_cpuinfo(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: One: the first\nflags\t\t: fpu avx2\n\nmodel name\t: Two\n")
    assert runtime._cpu_fact("model name", path) == "One: the first"
    assert runtime._cpu_fact("flags", path) == "fpu avx2"
    assert runtime._cpu_fact("bogus", path) == ""
    assert runtime._cpu_fact("flags", tmp_path / "missing") == ""


@pytest.mark.parametrize(
    ("limit", "most"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 4096), ("", 4096)]
)
def test_a_containers_share_of_the_cores_counts(monkeypatch, limit, most):
    monkeypatch.setattr(runtime, "_limit", lambda name: limit)
    assert 1 <= runtime._cores() <= min(most, os.cpu_count())


def test_a_containers_memory_counts(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("123456\n")
    assert runtime._limit("memory.max", tmp_path) == "123456"
    assert runtime._limit("cpu.max", tmp_path) == ""
    monkeypatch.setattr(runtime, "_limit", lambda name: "123456")
    assert runtime._memory() == 123456
    monkeypatch.setattr(runtime, "_limit", lambda name: "max")
    assert runtime._memory() > 10**8


def test_colab_is_told_by_its_release_tag(monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    assert not runtime.detect().colab
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    assert runtime.detect().colab


@pytest.fixture(params=[200, 403])
def hub(request):
    """A server on this machine that answers every request with one status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_online_when_the_hub_answers_whatever_it_says(hub, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", hub)
    assert runtime.online()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not runtime.online()


def test_offline_when_nobody_answers(monkeypatch):
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert not runtime.online(timeout=0.5)


def test_a_seed_repeats_every_generator():
    def draw():
        return random.random(), np.random.rand(), torch.rand(3).tolist()

    runtime.set_seed(7)
    first = draw()
    assert draw() != first
    runtime.set_seed(7)
    assert draw() == first
    runtime.set_seed(8)
    assert draw() != first


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "7", None, True])
def test_a_seed_that_is_none_is_named(seed):
    with pytest.raises(ValueError, match="seed: got"):
        runtime.set_seed(seed)


def test_setup_sets_threads_and_is_silent():
    program = (
        "import torch, transformers\n"
        "torch.set_num_threads(3)\n"
        "from course.lab import runtime\n"
        "runtime.setup()\n"
        "transformers.utils.logging.get_logger('transformers').warning('chatter')\n"
        "import huggingface_hub.utils\n"
        "assert not transformers.utils.logging.is_progress_bar_enabled()\n"
        "assert not huggingface_hub.utils.are_progress_bars_disabled()\n"
        "expected = 3 if 'OMP_NUM_THREADS' in __import__('os').environ else runtime._cores()\n"
        "assert torch.get_num_threads() == expected, torch.get_num_threads()\n"
    )
    others = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for environment in (others, others | {"OMP_NUM_THREADS": "3"}):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("version", "importable"), [("0.10.0", False), ("0.16.0", True)])
def test_a_torchao_that_peft_refuses_is_hidden_from_it(monkeypatch, tmp_path, version, importable):
    package = tmp_path / "torchao"
    package.mkdir()
    (package / "__init__.py").touch()
    facts = tmp_path / f"torchao-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torchao\nVersion: {version}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchao", raising=False)
    if not importable:
        is_torchao_available.cache_clear()
        with pytest.raises(ImportError, match="incompatible version of torchao"):
            is_torchao_available()
    runtime._hide_old_torchao()
    is_torchao_available.cache_clear()
    assert is_torchao_available() is importable
    is_torchao_available.cache_clear()
    sys.modules.pop("torchao", None)  # monkeypatch would put the None back
