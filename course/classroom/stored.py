"""Notebook files: read, write, stamp with set-up cell and badge, clean, find what must not be stored."""

import hashlib
import json
import re
from pathlib import Path

import nbformat

from course.classroom.setup_cell import badge, setup_cell
from course.lab.files import written_whole

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
BADGE = "[![Open In Colab]"
FOLDERS = "home|Users|root|tmp|var|usr|opt|mnt|content|workspace|private"
LITTER = {
    "an absolute path": rf"(?<![\w.:/])/(?:{FOLDERS})/|\b[A-Z]:\\",
    "a progress bar": r"\d%\|| \d+(?:\.\d+)?(?:it/s|s/it)\b|\r(?!\n)",
    "a warning": r"\b\w*Warning:",
}


def stamp(notebook, name):
    """Put in the canonical set-up cell and Colab badge."""
    for cell in notebook.cells:
        if "setup" in cell.metadata.get("tags", []):
            cell.source = setup_cell()
    first = notebook.cells[0]
    lines = first.source.split("\n")
    first.source = "\n".join(badge(name) if line.startswith(BADGE) else line for line in lines)


def clean(notebook):
    """Keep of the metadata only what a reader needs: the kernel's name and the cells' tags."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})


def litter(notebook):
    """What must not stay in stored outputs: errors, stderr, warnings, progress bars, absolute paths."""
    found = []
    for place, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"cell {place}: output on {output.get('name', 'error')}")
            kinds = output.get("data", {})
            text = "".join([*output.get("text", ""), *(kinds[kind] for kind in kinds if kind.startswith("text/"))])
            found += [f"cell {place}: {what}" for what, sign in LITTER.items() if re.search(sign, text)]
    return found


def read(path):
    """Read a notebook; a cell without an id gets one made from its place and text, the same each time."""
    raw = json.loads(Path(path).read_text(encoding="utf-8"))
    raw["nbformat_minor"] = max(5, raw["nbformat_minor"])
    for place, cell in enumerate(raw["cells"]):
        cell.setdefault("id", hashlib.sha256(f"{place}{cell['source']}".encode()).hexdigest()[:8])
    return nbformat.reads(json.dumps(raw), as_version=4)


def write(notebook, path):
    """Write a notebook whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
