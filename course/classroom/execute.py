"""Execute chapters without a browser.

python -m course.classroom.execute run 00           # the chapter as it stands; the result goes to build/
python -m course.classroom.execute notebooks [00]   # chapters and solutions again, in place, cleaned
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError
from tqdm import tqdm

from course.classroom.stored import clean, litter, read, stamp, write

ROOT = Path(__file__).parents[2]
SETUP_SECONDS, CELL_SECONDS = 180, 900


class ExecutionError(Exception):
    """A notebook that could not be executed or must not be kept; the message names it and what is wrong."""


def execute(notebook, name, folder, *, cell_seconds=CELL_SECONDS, setup_seconds=SETUP_SECONDS):
    """Run all cells in a fresh kernel that works in `folder`; outputs are put into `notebook`.

    Progress goes to stderr. The learner's own record of exercises is not touched. A kernel that dies or hangs
    before its first cell is done is started once more. ExecutionError tells the failing cell and its error.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    threads = str(psutil.cpu_count(logical=False) or os.cpu_count())
    with tempfile.TemporaryDirectory() as scratch:
        env = {"OMP_NUM_THREADS": threads} | os.environ | {"COURSE_PROGRESS": f"{scratch}/progress.json"}
        env |= {"TQDM_DISABLE": "1"}  # no progress bars in stored outputs
        for last_try in (False, True):
            with tqdm(total=len(code), desc=name, unit="cell", file=sys.stderr, disable=False) as bar:
                client = NotebookClient(
                    notebook,
                    kernel_name="python3",
                    resources={"metadata": {"path": str(folder)}},
                    timeout_func=lambda cell: setup_seconds if cell is code[0] else cell_seconds,
                    record_timing=False,
                    coalesce_streams=True,
                    extra_arguments=["--log-level=40"],  # errors only: no remarks on transports between cells
                    on_cell_executed=lambda bar=bar, **_: bar.update(),
                )
                try:
                    client.execute(env=env)
                    return
                except (CellControlSignal, RuntimeError) as error:  # a failing cell, a timeout, a dead kernel
                    if last_try or bar.n or isinstance(error, CellExecutionError):
                        told = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
                        raise ExecutionError(f"{name} failed. {told}") from None


def find(chapter, folder):
    """The path of a chapter given by its number or its name; ExecutionError lists those that exist."""
    chapters = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    for path in chapters:
        if chapter in (path.stem, path.name) or chapter.zfill(2) == path.stem[:2]:
            return path
    known = ", ".join(path.stem for path in chapters) or "none"
    raise ExecutionError(f"There is no chapter {chapter!r}; there are: {known}")


def run(chapter, folder, results):
    """Execute one chapter and write NAME.ipynb and NAME.html to `results`, as far as it came."""
    from nbconvert import HTMLExporter

    path = find(chapter, folder)
    notebook = read(path)
    try:
        execute(notebook, path.stem, folder)
    finally:
        write(notebook, results / path.name)
        page, _ = HTMLExporter().from_notebook_node(notebook)
        (results / f"{path.stem}.html").write_text(page, encoding="utf-8")
        print(f"The result is in {results / path.stem}.html and .ipynb")


def refresh(path, folder):
    """Execute a notebook in place. On any failure the old file stays as it was."""
    name = path.relative_to(folder).with_suffix("").as_posix()
    notebook = read(path)
    stamp(notebook, name)
    execute(notebook, name, path.parent)
    clean(notebook)
    if problems := litter(notebook):
        raise ExecutionError(f"{name} is not kept, for its outputs hold litter: {'; '.join(problems)}")
    write(notebook, path)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m course.classroom.execute", description="Execute chapters.")
    parser.add_argument("action", choices=["run", "notebooks"])
    parser.add_argument("chapters", nargs="*", help="numbers, such as 00; run takes one, notebooks by default all")
    parser.add_argument("--folder", type=Path, default=ROOT / "notebooks", help="where the notebooks are")
    parser.add_argument("--results", type=Path, default=Path("build"), help="where run writes to")
    given = parser.parse_args(arguments)
    if given.action == "run" and len(given.chapters) != 1:
        parser.error("run takes one chapter, such as: run 00")
    try:
        if given.action == "run":
            run(given.chapters[0], given.folder, given.results)
            return 0
        named = [find(chapter, given.folder) for chapter in given.chapters]
        chapters = named or sorted(given.folder.glob("[0-9][0-9]_*.ipynb"))
        solutions = [given.folder / "solutions" / path.name for path in chapters]
        for path in [*chapters, *filter(Path.exists, solutions)]:
            refresh(path, given.folder)
    except ExecutionError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
