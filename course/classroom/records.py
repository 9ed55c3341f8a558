"""Which exercises the learner has tried and solved: one local JSON file, no account."""

import importlib
import itertools
import json
import os
import pkgutil
from pathlib import Path

import course.classroom
from course.lab.files import written_whole


def chapters():
    """Chapter number -> folder, for each folder of course.classroom; its __init__.py sets CHAPTER = "00"."""
    folders = [module.name for module in pkgutil.iter_modules(course.classroom.__path__) if module.ispkg]
    found = {importlib.import_module(f"course.classroom.{name}").CHAPTER: name for name in folders}
    return dict(sorted(found.items()))


def exercises(chapter):
    """Exercise id -> Exercise, from CHECKS in the chapter's checks.py; empty without such a chapter."""
    folder = chapters().get(chapter)
    return importlib.import_module(f"course.classroom.{folder}.checks").CHECKS if folder else {}


def progress_file():
    """COURSE_PROGRESS, or progress.json in .finetuning-measured in the home folder."""
    return Path(os.environ.get("COURSE_PROGRESS") or Path.home() / ".finetuning-measured" / "progress.json")


def read():
    """Exercise id -> "solved" or "tried". A file that cannot be understood is set aside under a new name."""
    path = progress_file()
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        record = json.loads(text)
        if not isinstance(record, dict) or not set(map(str, record.values())) <= {"solved", "tried"}:
            raise ValueError("not a record of exercises")
        return record
    except ValueError:
        names = (path.with_name(f"{path.name}.damaged-{n}") for n in itertools.count(1))
        kept = next(name for name in names if not name.exists())
        path.rename(kept)
        print(f"The record of your exercises could not be read. It is kept as {kept.name}; a new one begins.")
        return {}


def record(exercise_id, solved):
    """Note that an exercise was tried or solved; solved stays solved. An unwritable file is no error."""
    try:
        before = read()
        after = before | {exercise_id: "solved" if solved or before.get(exercise_id) == "solved" else "tried"}
        if after != before:
            with written_whole(progress_file()) as temporary:
                temporary.write_text(json.dumps(after, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, RuntimeError):  # a full disk, a folder we may not write, no home: the lesson goes on
        pass


def progress():
    """Print a table of the chapters: how many exercises are solved, and which of them are still open."""
    try:
        record = read()
    except (OSError, RuntimeError):
        record = {}
    print(f"{'chapter':<32}{'solved':>8}   still open")
    for chapter, folder in chapters().items():
        ids = list(exercises(chapter))
        open_ids = [name for name in ids if record.get(name) != "solved"]
        name = f"{chapter}  {folder.replace('_', ' ').capitalize()}"
        print(f"{name:<32}{f'{len(ids) - len(open_ids)} of {len(ids)}':>8}   {' '.join(open_ids) or 'none'}")
