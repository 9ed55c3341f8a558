"""The package's shape: which way imports point, how fast it loads, how long files are, what it never does."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import course

PACKAGE = Path(course.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
DOORS = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}  # they open the rooms, and belong to none
IDEAS = [path for path in PACKAGE.glob("*.py") if path not in DOORS]
CHAPTERS = [path for path in (PACKAGE / "classroom").iterdir() if (path / "__init__.py").exists()]


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Full names of the modules and members that a file imports, inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def lines(paths):
    """How many lines that are not blank."""
    return sum(bool(line.strip()) for path in paths for line in path.read_text(encoding="utf-8").splitlines())


def test_ideas_import_only_torch_numpy_safetensors_and_each_other():
    ideas = {f"course.{path.stem}" for path in IDEAS}
    for path in IDEAS:
        for name in imports(path):
            outside = name.partition(".")[0] in sys.stdlib_module_names | {"torch", "numpy", "safetensors"}
            assert outside or ".".join(name.split(".")[:2]) in ideas, f"{path.name} imports {name}"


def test_the_lab_never_imports_the_classroom():
    wrong = [(path, name) for path in (PACKAGE / "lab").rglob("*.py") for name in imports(path) if "classroom" in name]
    assert not wrong


def test_a_chapters_folder_never_imports_another_chapters():
    folders = {chapter.name for chapter in CHAPTERS}
    for chapter in CHAPTERS:
        for path in chapter.rglob("*.py"):
            others = {f"course.classroom.{name}" for name in folders - {chapter.name}}
            assert not others & {".".join(name.split(".")[:3]) for name in imports(path)}, path


def test_import_is_fast_and_loads_nothing_heavy():
    program = (
        "import sys, time; start = time.perf_counter(); import course; taken = time.perf_counter() - start\n"
        "loaded = {'torch', 'transformers', 'peft', 'matplotlib', 'numpy', 'IPython'} & set(sys.modules)\n"
        "print(taken, *sorted(loaded))"
    )
    seconds = []
    for _ in range(5):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
        taken, *loaded = done.stdout.split()
        assert not loaded
        seconds.append(float(taken))
    assert statistics.median(seconds) < 0.3


@pytest.mark.parametrize("name", ["show", "reveal", "check", "load_model", "finetune", "evaluate"])
def test_the_six_functions_are_there(name):
    assert name in course.__all__ and name in dir(course)
    assert getattr(course, name).__name__ == name
    assert vars(course)[name] is getattr(course, name), "the second use must not look it up again"


def test_every_module_is_reached_through_the_package():
    program = "import course; print(course.lab.__name__, course.classroom.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.split() == ["course.lab", "course.classroom"]
    assert {"lab", "classroom", *(idea.stem for idea in IDEAS)} <= set(course.__all__)


def test_an_unknown_name_is_told_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"'finetun'.*finetune"):
        _ = course.finetun


def test_small_stays_small():
    assert lines(IDEAS) < 2500
    for path in IDEAS:
        assert lines([path]) < 400, path
    # The shop and the making of the base models are folders of their own; the limit is for the laboratory itself.
    assert lines(path for path in (PACKAGE / "lab").glob("*.py")) < 1800
    for chapter in CHAPTERS:
        assert lines(chapter.rglob("*.py")) < 250, chapter


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_pickles_and_no_code_that_comes_with_a_model(path):
    assert not {"pickle", "cPickle", "dill", "joblib"} & {name.partition(".")[0] for name in imports(path)}
    for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)):
        assert ast.unparse(call.func) not in {"torch.load", "torch.save"}, f"line {call.lineno}"
        for keyword in call.keywords:
            trusting = keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
            assert not trusting, f"line {call.lineno}"


def test_commands_are_explained():
    done = subprocess.run(
        [sys.executable, "-m", "course"], capture_output=True, text=True, cwd=PACKAGE.parent, check=False
    )
    assert done.returncode == 2 and "COMMAND" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "course", "-h"], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert "doctor" in done.stdout and "progress" in done.stdout
