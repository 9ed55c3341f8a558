"""The cell every chapter begins with, the Colab badge, and what the cell's last line does with the kernel."""

import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "finetuning-measured"
# In the environment of `make lab` the course is found at once. Any other kernel that starts in the
# repository, in notebooks/ or in notebooks/solutions/ finds it above itself. Only where neither holds is it
# fetched, into a folder beside the notebook; COURSE_REPO names another repository to fetch it from.
SETUP_CELL = """\
import sys
from importlib.util import find_spec

sys.path += ["..", "../.."]  # the course is above its notebooks
if not find_spec("course"):  # on Colab it is fetched first; torch and numpy stay as they are
    !git clone -q --depth 1 "${{COURSE_REPO:-{repository}}}" repo
    sys.path += ["repo"]
%load_ext course"""
HELD = ("torch", "numpy")


def repository():
    """The address of the course's repository, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def setup_cell():
    """The source of the set-up cell, the same in every notebook."""
    return SETUP_CELL.format(repository=repository())


def badge(notebook_name):
    """Markdown of the badge that opens a notebook in Colab; the name is like "solutions/00_start_here"."""
    path = repository().removeprefix("https://github.com/")
    return (
        "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{path}/blob/main/notebooks/{notebook_name}.ipynb)"
    )


def prepare():
    """Make this kernel ready for a chapter: install what it lacks, then set threads and logging.

    A copy that the cell fetched is installed, so that other processes find it too. In any other kernel that
    works inside the repository, the course is installed only if a package it needs is missing or too old.
    Raises ImportError, saying what to do, in a kernel without torch or numpy: a set-up cell chooses neither.
    """
    if missing := [name for name in HELD if _version(name) is None]:
        raise ImportError(
            f"This kernel ({sys.executable}) has no {' and no '.join(missing)}. Choose the course's kernel, "
            "the one in .venv that `make lab` sets up, or install what is missing and restart this one."
        )
    inside = ROOT in (Path.cwd(), *Path.cwd().parents)
    if _version(PROJECT) is None and not (inside and _has_what_it_needs()):
        _install()
    from course.lab.runtime import setup

    setup()


def _has_what_it_needs():
    from course.lab.doctor import check_packages

    return all(finding.status != "problem" for finding in check_packages())


def _install():
    print("The course is being installed into this kernel's Python; torch and numpy stay as they are.")
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder, "held.txt")
        held.write_text("".join(f"{name}=={_version(name)}\n" for name in HELD), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, "--constraint", held, "--editable", ROOT], capture_output=True, text=True)
    if done.returncode:
        told = done.stderr.strip()[-600:]
        print(f"That failed. The course goes on with what this Python has. pip said:\n{told}")


def _version(distribution):
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
