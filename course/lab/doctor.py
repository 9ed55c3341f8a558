"""Will the course run here? One line for each thing that matters, and what to do where it does not."""

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

# Only the standard library up here: this module has to explain itself where packages are missing or too old.

ROOT = Path(__file__).resolve().parents[2]
TESTED_PYTHONS = ((3, 11), (3, 13))
GB = 10**9


class Finding(NamedTuple):
    status: str  # "ok", "note" (it will run, but), or "problem" (it will not)
    subject: str
    message: str
    remedy: str = ""

    def __str__(self):
        return f"{self.status:8}{self.subject:14}{self.message}" + (f" {self.remedy}" if self.remedy else "")


def check_python(version=sys.version_info[:3]):
    """Findings about a Python version, given as a tuple."""
    lowest, highest = (".".join(map(str, tested)) for tested in TESTED_PYTHONS)
    text = ".".join(map(str, version))
    if version[:2] < TESTED_PYTHONS[0]:
        remedy = f"Install {lowest} or newer, then: make doctor PYTHON=/path/to/python{highest}"
        return [Finding("problem", "Python", f"{text} is too old.", remedy)]
    if version[:2] > TESTED_PYTHONS[1]:
        return [Finding("note", "Python", f"{text} is newer than {lowest} to {highest}, which were tested.")]
    return [Finding("ok", "Python", text)]


def check_packages(root=ROOT):
    """Findings about each package the course needs: there, in the accepted range, the version tested?"""
    try:
        import tomllib

        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ImportError as error:
        return [Finding("problem", "packages", f"cannot be compared: {error.name} is missing.", _remedy())]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in pins) if pin}
    findings = []
    for requirement in map(Requirement, project["dependencies"]):
        pin = tested[canonicalize_name(requirement.name)]
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            findings.append(Finding("problem", requirement.name, "is missing.", _remedy()))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            message = f"{version} is not in the accepted range {requirement.specifier}."
            findings.append(Finding("problem", requirement.name, message, _remedy()))
        elif version.partition("+")[0] != pin:
            findings.append(Finding("note", requirement.name, f"{version}, accepted; tested with {pin}"))
        else:
            findings.append(Finding("ok", requirement.name, f"{version}, as tested"))
    return findings


def check_machine():
    """Findings about device, memory and threads."""
    try:
        import psutil

        from course.lab import runtime
    except Exception as error:  # a package that is there may still fail in its own way when it is loaded
        return [Finding("problem", "device", f"cannot be asked: {_told(error)}", _remedy())]
    machine = runtime.detect()
    free_bytes = psutil.virtual_memory().available
    room = Finding("ok", "free memory", f"{free_bytes / GB:.1f} GB of main memory")
    if free_bytes < 2 * GB:
        room = room._replace(status="note", remedy="Close other programs: training needs about 2 GB.")
    computes = "BF16" if machine.autocast_dtype else "FP32"
    threads_set = os.environ.get("OMP_NUM_THREADS", "not set")
    return [
        Finding("ok", "device", f"{machine.device}, {machine.device_name}, computes in {computes}"),
        Finding("ok", "memory", f"{machine.memory_bytes / GB:.1f} GB on the {machine.device}"),
        room,
        Finding("ok", "threads", f"{machine.threads} (OMP_NUM_THREADS: {threads_set})"),
    ]


def check_network():
    """Findings about the way to the Hub."""
    try:
        from course.lab.runtime import online
    except Exception as error:
        return [Finding("note", "network", f"not tried: {_told(error)}")]
    if online():
        return [Finding("ok", "network", "the Hugging Face Hub answers")]
    message = "no way to the Hugging Face Hub: chapters use the models that come with the course"
    return [Finding("note", "network", message)]


def check_data():
    """Findings about the files that come with the course."""
    try:
        from course.lab.data import verify
    except Exception as error:
        return [Finding("problem", "data", f"cannot be checked: {_told(error)}", _remedy())]
    try:
        problems = verify()
    except OSError as error:
        problems = [str(error)]
    remedy = "Restore it with: git checkout -- data"
    return [Finding("problem", "data", problem, remedy) for problem in problems] or [
        Finding("ok", "data", "the shop's files and the models are intact")
    ]


def check_disk(folder=ROOT):
    """Findings about the space left where the course is."""
    free_bytes = shutil.disk_usage(folder).free
    message = f"{free_bytes / GB:.1f} GB free"
    if free_bytes < GB:
        return [Finding("problem", "disk", message, "Make room: checkpoints and results need 1 GB.")]
    if free_bytes < 10 * GB:
        return [Finding("note", "disk", message, "A model from the Hub can take more than that.")]
    return [Finding("ok", "disk", message)]


def main():
    """Print every finding; 0 when the course will run, else 1."""
    worst = 0
    print(f"{platform.platform()}, {sys.executable}")
    for check in (check_python, check_packages, check_machine, check_network, check_data, check_disk):
        for finding in check():
            print(finding, flush=True)
            worst |= finding.status == "problem"
    print("The course will not run yet: see the problems above." if worst else "The course will run.")
    return int(worst)


def _told(error):
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _remedy():
    inside = Path(sys.prefix) == ROOT / ".venv"
    return "Run: make doctor" if not inside else "Run: rm -rf .venv && make doctor"
