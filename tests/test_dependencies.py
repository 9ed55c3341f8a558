"""pyproject.toml (ranges), constraints.txt (pins), environment.yml, Colab's versions and imports agree."""

import ast
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name as canonical

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SMALL_AND_NOT_ON_COLAB = set()  # core dependencies that Colab has to install; each is small and needs no torch or numpy


def versions(path):
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def requirements(strings):
    found = {canonical(Requirement(text).name): Requirement(text) for text in strings}
    found.pop(PROJECT["name"], None)
    return found


PINS = versions(ROOT / "constraints.txt")
COLAB = versions(Path(__file__).with_name("colab_versions.txt"))
CORE = requirements(PROJECT["dependencies"])
EXTRAS = {name: requirements(strings) for name, strings in PROJECT["optional-dependencies"].items()}
DIRECT = CORE | {name: found for extra in EXTRAS.values() for name, found in extra.items()}


@pytest.mark.parametrize("name", DIRECT)
def test_every_direct_dependency_is_pinned_inside_its_range(name):
    assert DIRECT[name].specifier.contains(PINS[name])


def test_every_constraint_is_an_exact_pin():
    assert all(version and version[0].isdigit() for version in PINS.values()), PINS


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_what_is_pinned_runs_on_the_first_release_of_each_python(python):
    installed = {canonical(found.name): found.metadata for found in metadata.distributions()}
    needed = {name: installed[name].get("Requires-Python") or "" for name in PINS.keys() & installed.keys()}
    assert len(needed) > 100
    assert not {name: spec for name, spec in needed.items() if not SpecifierSet(spec).contains(python)}


@pytest.mark.parametrize("name", sorted(set(CORE) - SMALL_AND_NOT_ON_COLAB))
def test_the_range_admits_what_colab_has(name):
    assert CORE[name].specifier.contains(COLAB[name])


def test_what_colab_lacks_is_listed_for_no_longer_than_that():
    assert not SMALL_AND_NOT_ON_COLAB & set(COLAB)


@pytest.mark.parametrize("version", ["3.11.0", "3.12.13", "3.13.15"])
def test_python_versions_are_admitted(version):
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert not SpecifierSet(PROJECT["requires-python"]).contains("3.10.14")


def test_conda_environment_installs_the_same_package_with_the_same_constraints():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    python = next(entry.removeprefix("python=") for entry in packages if str(entry).startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-c constraints.txt -e '.[lab,test]'" in makefile
    assert packages[-1] == {"pip": ["--constraint constraints.txt", "--editable .[lab,test]"]}


IMPORT_NAMES = {"yaml": "pyyaml", "IPython": "ipython", "fitcheck": "fitcheck-llm"}


def imported(folder):
    """Top-level names of the third-party modules that the Python files below a folder import, and where."""
    paths = list((ROOT / folder).rglob("*.py"))
    own = {"course", *(path.stem for path in paths), *(path.parent.name for path in paths)}
    found = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            for name in (full.partition(".")[0] for full in names):
                if name not in sys.stdlib_module_names and name not in own:
                    found.setdefault(canonical(IMPORT_NAMES.get(name, name)), path.relative_to(ROOT).as_posix())
    return found


TRANSITIVE = {
    "huggingface-hub": "transformers",
    "cycler": "matplotlib",
    "datasets": "trl",
}  # brought along by


def test_what_the_course_imports_is_declared():
    used = imported("course")
    assert not used.keys() - CORE.keys() - EXTRAS["lab"].keys() - TRANSITIVE.keys(), used


def test_what_the_tests_import_is_declared():
    used = imported("tests")
    assert not used.keys() - DIRECT.keys() - TRANSITIVE.keys(), used


@pytest.mark.parametrize(("name", "bringer"), TRANSITIVE.items())
def test_what_is_brought_along_is_brought_along(name, bringer):
    assert bringer in DIRECT and name in requirements(metadata.requires(bringer))
