"""Executing notebooks without a browser: results, failures, hung kernels; a failure keeps the old file."""

import json
import os
import subprocess
import sys

import nbformat
import notebook_rules as rules
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course.classroom import execute, stored
from course.classroom.setup_cell import badge

NAME = "07_small"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "notebooks"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """A record of its own, and a set-up cell that does nothing: the real one is tested elsewhere."""
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setenv("PYTHONPATH", str(execute.ROOT))
    for module in (stored, rules):
        monkeypatch.setattr(module, "setup_cell", lambda: "ready = True")


def written(folder, *sources, name=NAME):
    """A notebook with a title, the badge of an older address, an old set-up cell, and code cells."""
    cells = [new_markdown_cell(f"# Small\n\n{stored.BADGE}(old)](old)\n\nText.")]
    cells += [new_code_cell("print('old set-up')", metadata={"tags": ["setup"], "collapsed": True})]
    cells += [new_code_cell(source) for source in sources]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(nbformat.writes(new_notebook(cells=cells, metadata={"widgets": {}})))
    return path


def main(*arguments, folder):
    return execute.main([*arguments, "--folder", str(folder), "--results", str(folder.parent / "build")])


def text_of(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def test_run_leaves_the_notebook_alone_and_says_where_the_result_is(folder, capsys):
    path = written(folder, "print(6 * 7)")
    before = path.read_bytes()
    assert main("run", "7", folder=folder) == 0
    result = folder.parent / "build" / f"{NAME}.ipynb"
    assert text_of(stored.read(result).cells[2]) == "42\n"
    assert ">42" in result.with_suffix(".html").read_text() or "42\n" in result.with_suffix(".html").read_text()
    said = capsys.readouterr()
    assert str(result.with_suffix("")) in said.out and f"{NAME}: 100%" in said.err
    assert path.read_bytes() == before


def test_the_failing_cell_is_told_with_its_source_and_error(folder, capsys):
    written(folder, "x = 0", "wrong = 1 / x", "print('never')")
    assert main("run", "07", folder=folder) == 1
    said = capsys.readouterr()
    assert "wrong = 1 / x" in said.err and "ZeroDivisionError: division by zero" in said.err
    assert f"{NAME} failed." in said.err and "\x1b[3" not in said.err
    assert (folder.parent / "build" / f"{NAME}.ipynb").exists()


def test_an_unknown_chapter_lists_those_that_exist(folder, capsys):
    written(folder)
    assert main("run", "08", folder=folder) == 1
    assert capsys.readouterr().err == "There is no chapter '08'; there are: 07_small\n"


def test_refreshing_stamps_cleans_and_keeps_ids(folder):
    path = written(folder, "print(1)", "2")
    solution = written(folder / "solutions", "print(3)")
    ids = [cell.id for cell in stored.read(path).cells]
    assert main("notebooks", folder=folder) == 0
    for name, file in ((NAME, path), (f"solutions/{NAME}", solution)):
        page = rules.Page(name, stored.read(file))
        for rule in (
            rules.counts_in_order,
            rules.clean_metadata,
            rules.canonical_setup_cell,
            rules.canonical_badge,
        ):
            assert rule(page) == []
    assert [cell.id for cell in stored.read(path).cells] == ids
    assert not list(folder.rglob("*.tmp"))


def test_refreshing_twice_gives_the_same_bytes_and_passes_strict_nbval(folder):
    source = """from course.classroom import notebook, style
fig, ax = style.subplots()
ax.plot([1, 2], [3, 4])
ax.set(title="It rises", xlabel="step (count)", ylabel="loss (nats per token)")
style.display_figure(fig, "A line that rises from three to four.")
notebook.show(notebook.number)
notebook.reveal(..., 2**30, "bytes")
def mine(): return 1
notebook.show(mine)"""
    path = written(folder, source, "print(1)\nprint(2)")
    assert main("notebooks", "07", folder=folder) == 0
    once = path.read_bytes()
    kinds = [set(output.get("data", {"stream": 0})) for output in stored.read(path).cells[2].outputs]
    assert kinds[0] == {"image/png", "text/plain"} and kinds[1] == {"text/html", "text/plain"}
    assert "text/markdown" in kinds[2] and "this notebook" in once.decode()
    assert rules.alt_texts(rules.Page(NAME, stored.read(path))) == []
    assert main("notebooks", "07", folder=folder) == 0
    assert path.read_bytes() == once
    strict = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", str(path)]
    assert subprocess.run(strict, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; print('careful', file=sys.stderr)", "output on stderr"),
        ("print('/home/someone/x')", "an absolute path"),
    ],
)
def test_a_failure_leaves_the_old_file(folder, capsys, source, said):
    path = written(folder, source)
    before = path.read_bytes()
    assert main("notebooks", folder=folder) == 1
    assert said in capsys.readouterr().err
    assert path.read_bytes() == before and [file.name for file in folder.iterdir()] == [path.name]


def test_a_cell_that_takes_too_long_is_stopped(folder):
    path = written(folder, "import time; time.sleep(60)")
    with pytest.raises(execute.ExecutionError, match=r"(?s)07_small failed.*time.sleep"):
        execute.execute(stored.read(path), NAME, folder, cell_seconds=2)


def test_a_kernel_that_hangs_at_the_start_is_started_once_more(folder):
    path = written(folder)
    notebook = stored.read(path)
    # the first kernel hangs in its first cell; the second finds the file that the first one left
    hang_once = "if not Path('x').exists():\n    Path('x').touch()\n    time.sleep(60)"
    notebook.cells[1].source = f"import time\nfrom pathlib import Path\n{hang_once}\nprint('up')"
    execute.execute(notebook, NAME, folder, setup_seconds=4)
    assert text_of(notebook.cells[1]) == "up\n"


def test_a_kernel_that_never_starts_is_given_up_after_two_tries(folder, monkeypatch):
    tries = []

    def no_kernel(self, **kwargs):
        tries.append(kwargs)
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(NotebookClient, "execute", no_kernel)
    with pytest.raises(execute.ExecutionError, match="Kernel died"):
        execute.execute(stored.read(written(folder)), NAME, folder)
    assert len(tries) == 2


def test_the_kernel_gets_its_own_progress_file_and_threads(folder, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    path = written(folder, "import os\nprint(os.environ['COURSE_PROGRESS'], os.environ['OMP_NUM_THREADS'])")
    notebook = stored.read(path)
    execute.execute(notebook, NAME, folder)
    place, threads = text_of(notebook.cells[2]).split()
    assert place != os.environ["COURSE_PROGRESS"] and 1 <= int(threads) <= os.cpu_count()


def test_cells_without_ids_get_the_same_ones_each_time(folder):
    path = written(folder, "1")
    raw = json.loads(path.read_text())
    for cell in raw["cells"]:
        del cell["id"]
    path.write_text(json.dumps(raw | {"nbformat_minor": 4}))
    first, second = stored.read(path), stored.read(path)
    assert [cell.id for cell in first.cells] == [cell.id for cell in second.cells]
    nbformat.validate(first)


def test_the_stamps_are_the_canonical_ones(folder):
    notebook = stored.read(written(folder))
    stored.stamp(notebook, NAME)
    assert notebook.cells[1].source == "ready = True" and badge(NAME) in notebook.cells[0].source
