"""The set-up cell where it has most to do: on Colab's package versions, with a notebook alone in a folder.

The first run builds an environment with those versions (some minutes, kept in .cache). It has this machine's
Python and the torch of constraints.txt; all else is Colab's.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from course.classroom import setup_cell

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = Path(__file__).with_name("colab_versions.txt")
LEFT_OUT = ("torch", "triton")  # triton is a part of torch's GPU build

RUN = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
try:
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=900).execute()
finally:
    nbformat.write(notebook, sys.argv[1])
    setup = next(cell for cell in notebook.cells if "load_ext course" in cell.source)
    print(*(output.get("text") for output in setup.outputs))
"""
FACTS = """
import json
from importlib import metadata

import course

versions = {{name: metadata.version(name) for name in {names}}}
print(json.dumps({{"course": course.__file__, "versions": versions}}))
"""


def call(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def pins(path):
    return [line for line in path.read_text(encoding="utf-8").splitlines() if "==" in line and line[0] != "#"]


@pytest.fixture(scope="session")
def colab_packages():
    """The site-packages of an environment with Colab's versions, made once for each list of them."""
    torch = next(pin for pin in pins(ROOT / "constraints.txt") if pin.startswith("torch=="))
    wanted = [torch, *(pin for pin in pins(VERSIONS) if pin.partition("==")[0] not in LEFT_OUT)]
    key = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:12]
    folder = ROOT / ".cache" / f"colab-venv-{key}"
    complete, python = folder / "complete", folder / "bin" / "python"
    if not complete.exists():
        call(sys.executable, "-m", "venv", "--clear", folder)
        # A version that has no file for this Python makes pip stop and say its name.
        pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        call(python, *pip, "--only-binary", ":all:", *wanted)
        complete.touch()
    return call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'), end='')")


@pytest.fixture
def fresh_python(colab_packages, tmp_path):
    """A new environment on top of those packages: what a test installs stays in it."""
    folder = tmp_path / "runtime"
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "colab.pth").write_text(f"{colab_packages}\n", encoding="utf-8")
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """A repository with the files as they are here now, committed or not."""
    folder = tmp_path_factory.mktemp("origin")
    for name in call("git", "ls-files", "-coz", "--exclude-standard", cwd=ROOT).split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git = ["git", "-C", folder, "-c", "user.name=Test", "-c", "user.email=test@example.org"]
    call(*git, "init", "--quiet")
    call(*git, "add", "--all")
    call(*git, "commit", "--quiet", "--message", "As it is")
    return folder


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {name: str(value) for name, value in more.items()}


def test_a_notebook_alone_in_a_folder_runs(fresh_python, repository, tmp_path):
    folder = tmp_path / "my notebooks"
    folder.mkdir()
    path = folder / "00_start_here.ipynb"
    notebook = nbformat.read(ROOT / "notebooks" / path.name, as_version=4)
    expected = dict(pin.split("==") for pin in pins(VERSIONS) if pin.partition("==")[0] not in LEFT_OUT)
    names = [*expected, "torch", setup_cell.PROJECT]
    notebook.cells.append(nbformat.v4.new_code_cell(FACTS.format(names=names)))
    nbformat.write(notebook, path)
    torch_before = call(fresh_python, "-c", "from importlib.metadata import version as v; print(v('torch'))")

    progress = tmp_path / "progress.json"
    variables = environment(COURSE_REPO=repository.as_uri(), COURSE_PROGRESS=progress)
    call(fresh_python, "-c", RUN, path, cwd=folder, env=variables)

    facts = json.loads(nbformat.read(path, as_version=4).cells[-1].outputs[0].text)
    assert Path(facts["course"]).resolve() == folder / "repo" / "course" / "__init__.py"
    after = facts["versions"]
    assert after.pop(setup_cell.PROJECT), "the course has been installed"
    assert after.pop("torch") == torch_before.strip()
    assert after == expected
    elsewhere = call(fresh_python, "-c", "import course; print(course.__file__)", cwd=tmp_path)
    assert str(folder) in elsewhere, "other processes find the course too"


def run_cell(python, cell, folder, tmp_path):
    """Run a set-up cell in IPython, working in a folder; the course's folder as found from there."""
    folder.mkdir(parents=True, exist_ok=True)
    script = tmp_path / "cell.ipy"
    script.write_text(f"{cell}\nimport course\nprint(course.__file__)\n", encoding="utf-8")
    variables = environment(COURSE_REPO="/nowhere", IPYTHONDIR=tmp_path / "ipython")
    printed = call(python, "-m", "IPython", "--no-term-title", script, cwd=folder, env=variables)
    assert not (folder / "repo").exists()
    return Path(folder, printed.splitlines()[-1]).resolve().parent


@pytest.mark.parametrize("folder", [".", "notebooks", "notebooks/solutions"])
def test_any_kernel_in_the_repository_finds_the_course_there(fresh_python, repository, tmp_path, folder):
    find_only = setup_cell.setup_cell().removesuffix("%load_ext course")
    assert run_cell(fresh_python, find_only, repository / folder, tmp_path) == repository / "course"


def test_a_kernel_that_lacks_nothing_is_left_as_it_is(fresh_python, repository, tmp_path):
    folder = repository / "notebooks"
    assert run_cell(fresh_python, setup_cell.setup_cell(), folder, tmp_path) == repository / "course"
    find = "import importlib.util; print(importlib.util.find_spec('course'))"
    assert call(fresh_python, "-c", find, cwd=tmp_path) == "None\n"


def test_the_address_is_the_projects():
    cell = setup_cell.setup_cell()
    assert re.findall(r"https://[^}]+", cell) == [setup_cell.repository()]
    owner_and_name = setup_cell.repository().removeprefix("https://github.com/")
    assert f"/{owner_and_name}/blob/main/notebooks/solutions/08_lora.ipynb)" in setup_cell.badge("solutions/08_lora")


@pytest.mark.parametrize("missing", ["torch", "numpy"])
def test_a_kernel_without_torch_is_told_what_to_do(monkeypatch, missing):
    monkeypatch.setattr(setup_cell, "_version", lambda name: None if name == missing else "1.0")
    with pytest.raises(ImportError, match=rf"has no {missing}\. Choose the course's kernel"):
        setup_cell.prepare()


def test_a_failed_installation_is_told_and_stops_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(setup_cell, "ROOT", tmp_path / "nothing here")
    setup_cell._install()
    printed = capsys.readouterr().out
    assert "That failed" in printed and "nothing here" in printed
