"""The doctor: a line for each thing, the right verdict, no traceback where a package is missing or broken."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from course.lab import doctor

ROOT = Path(__file__).resolve().parents[1]


def examine(environment=None, *options):
    command = [sys.executable, *options, "-m", "course", "doctor"]
    environment = os.environ | (environment or {})
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def statuses(text):
    return {tuple(line.split()[:2]) for line in text.splitlines()}


def test_a_sound_machine_will_do():
    done = examine()
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("The course will run.\n") and done.stderr == ""
    found = statuses(done.stdout)
    for subject in ("Python", "torch", "transformers", "peft", "device", "memory", "threads", "data"):
        assert ("ok", subject) in found, done.stdout
    assert ("note", "network") in found


@pytest.fixture
def hidden(tmp_path):
    """A folder for PYTHONPATH in which a package is there but cannot be loaded."""

    def hide(name, error):
        (tmp_path / f"{name}.py").write_text(f"raise {error}\n")
        return {"PYTHONPATH": str(tmp_path)}

    return hide


@pytest.mark.parametrize(
    ("package", "error"),
    [
        ("torch", "ImportError('no torch')"),
        ("torch", "OSError('libcudart.so: not found')"),
        ("psutil", "ImportError('x')"),
    ],
)
def test_a_package_that_does_not_load_is_a_line_and_no_traceback(hidden, package, error):
    done = examine(hidden(package, error))
    assert done.returncode == 1
    assert ("problem", "device") in statuses(done.stdout)
    assert error.split("(")[0] in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert done.stdout.endswith("The course will not run yet: see the problems above.\n")


def test_nothing_installed_at_all_is_explained():
    done = examine({}, "-S", "-E")  # no site-packages
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert {("problem", "packages"), ("problem", "device"), ("problem", "data")} <= statuses(done.stdout)


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10, 14), "problem"), ((3, 11, 0), "ok"), ((3, 13, 15), "ok"), ((3, 14, 0), "note")],
)
def test_python_versions(version, status):
    (finding,) = doctor.check_python(version)
    assert finding.status == status and ".".join(map(str, version)) in finding.message


def test_versions_are_compared_with_range_and_pin(monkeypatch):
    installed = metadata.version

    def pretend(name):
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return {"transformers": "4.57.1", "tqdm": "4.67.3", "torch": "2.13.0+cu130"}.get(name) or installed(name)

    monkeypatch.setattr(metadata, "version", pretend)
    found = {finding.subject: finding for finding in doctor.check_packages()}
    assert found["peft"].status == "problem" and found["peft"].message == "is missing." and found["peft"].remedy
    assert found["transformers"].status == "problem" and "4.57.1" in found["transformers"].message
    assert ">=5.15" in found["transformers"].message
    assert found["tqdm"].status == "note" and "4.67.3" in found["tqdm"].message
    assert found["torch"].status == "ok", "a local build tag is the same version"


def test_damaged_data_is_named(monkeypatch):
    from course.lab import data

    monkeypatch.setattr(data, "verify", lambda: ["shop/sql/train.jsonl has changed", "models/shop-s is missing"])
    findings = doctor.check_data()
    assert [finding.status for finding in findings] == ["problem", "problem"]
    assert findings[0].message == "shop/sql/train.jsonl has changed" and "git checkout" in findings[0].remedy


@pytest.mark.parametrize(("gigabytes", "status"), [(0.5, "problem"), (5, "note"), (50, "ok")])
def test_disk(monkeypatch, gigabytes, status):
    class Usage:
        free = int(gigabytes * 10**9)

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Usage)
    (finding,) = doctor.check_disk()
    assert finding.status == status
