"""What every notebook must be: functions from a Page to a list of problems. Tests break each one."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from course.classroom import records, stored
from course.classroom.setup_cell import badge, setup_cell

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
MAX_BYTES = 1_000_000
CHECKED = re.compile(r"""\bcheck\(\s*["'](\d\d\.\d+)["']""")


class Page(NamedTuple):
    name: str  # "00_start_here", or "solutions/00_start_here"
    notebook: nbformat.NotebookNode
    solutions: nbformat.NotebookNode | None = None  # beside a chapter
    exercises: tuple = ()  # the ids that the chapter's checks.py declares
    terms: frozenset = frozenset()  # the glossary's, in lower case

    @property
    def code(self):
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    @property
    def prose(self):
        return [cell for cell in self.notebook.cells if cell.cell_type == "markdown"]


def pages():
    """All chapters and all solutions."""
    terms = frozenset(glossary())
    found = []
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        solutions = NOTEBOOKS / "solutions" / path.name
        solved = stored.read(solutions) if solutions.exists() else None
        ids = tuple(records.exercises(path.stem[:2]))
        found.append(Page(path.stem, stored.read(path), solved, ids, terms))
    for path in sorted((NOTEBOOKS / "solutions").glob("*.ipynb")):
        found.append(Page(f"solutions/{path.stem}", stored.read(path)))
    return found


def glossary():
    """Term in lower case -> (meaning, Korean term), from the table in notebooks/glossary.md."""
    rows = [
        line for line in (NOTEBOOKS / "glossary.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]
    return {term.lower(): (meaning, korean) for term, meaning, korean in cells}


def counts_in_order(page):
    counts = [cell.execution_count for cell in page.code]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}, not 1, 2, 3, …"]


def no_litter(page):
    return stored.litter(page.notebook)


def clean_metadata(page):
    problems = [] if page.notebook.metadata == stored.METADATA else ["the notebook's metadata is not the canonical one"]
    for place, cell in enumerate(page.notebook.cells):
        problems += [f"cell {place}: metadata {key}" for key in cell.metadata if key != "tags"]
    ids = [cell.get("id") for cell in page.notebook.cells]
    return problems if len(set(ids)) == len(ids) and all(ids) else [*problems, "cell ids are missing or repeated"]


def small(page):
    size = len(nbformat.writes(page.notebook).encode())
    return [] if size < MAX_BYTES else [f"{size:,} bytes, more than {MAX_BYTES:,}"]


def few_ignored_outputs(page):
    ignored = [place for place, cell in enumerate(page.code) if "nbval-ignore-output" in tags(cell)]
    problems = [] if len(ignored) * 5 <= len(page.code) else [f"{len(ignored)} of {len(page.code)} outputs are ignored"]
    for place in ignored:
        if not any(has_assert(cell) for cell in page.code[place : place + 3]):
            problems.append(f"code cell {place} ignores its output and no assert bounds it")
    return problems


def nothing_skipped(page):
    """Comments such as NBVAL_SKIP act like tags and would escape the count above."""
    problems = [
        f"a comment steers nbval: {cell.source[:40]!r}" for cell in page.code if re.search("#.*NBVAL_", cell.source)
    ]
    forbidden = {"nbval-skip", "nbval-raises-exception", "raises-exception"}
    return problems + [f"the tag {tag}" for cell in page.notebook.cells for tag in tags(cell) if tag in forbidden]


def canonical_setup_cell(page):
    tagged = [cell for cell in page.code if "setup" in tags(cell)]
    if len(tagged) != 1 or tagged[0] is not page.code[0]:
        return ["the first code cell, and no other, is tagged setup"]
    return [] if tagged[0].source == setup_cell() else ["the set-up cell is not the canonical one"]


def canonical_badge(page):
    lines = page.notebook.cells[0].source.split("\n")
    return [] if badge(page.name) in lines else ["the first cell has no Colab badge, or an old one"]


def first_cell(page):
    text = page.notebook.cells[0].source if page.prose else ""
    wanted = {"a title": r"\A# \S"}
    if not page.name.startswith("solutions/"):
        wanted |= {
            "a promise, one sentence under the title": r"\A# .+\n\n[^\n]+[.?!]\n",
            "the minutes on a laptop and on a GPU": r"(?is)(?=.*\bminutes?\b)(?=.*\blaptop\b)(?=.*\bGPU\b)",
            "“You need to know”": r"(?i)you need to know",
            "“You will be able to”": r"(?i)you will be able to",
        }
    return [f"the first cell lacks {what}" for what, sign in wanted.items() if not re.search(sign, text)]


def short_code(page):
    return _short("code", [len(cell.source.splitlines()) for cell in page.code[1:]], "lines", most=15, longest=25)


def short_prose(page):
    return _short("prose", [words(cell.source) for cell in page.prose], "words", most=90, longest=160)


def prose_before_code(page):
    problems = []
    for place in range(1, len(page.notebook.cells)):
        pair = page.notebook.cells[place - 1 : place + 1]
        long = all(cell.cell_type == "code" and len(cell.source.splitlines()) > 3 for cell in pair)
        if long and not only_asserts(pair[1]):
            problems.append(f"cell {place}: code follows code without a word between")
    return problems


def exercises_match_checks(page):
    asked = checked(page.notebook)
    problems = [] if 4 <= len(asked) <= 8 else [f"{len(asked)} exercises; there are four to eight"]
    return (
        problems
        if asked == list(page.exercises)
        else [*problems, f"asks {asked}, checks.py has {list(page.exercises)}"]
    )


def solutions_solve_all(page):
    if page.solutions is None:
        return ["no solutions notebook"]
    said = "".join(
        "".join(output.get("text", "")) for cell in page.solutions.cells for output in cell.get("outputs", [])
    )
    return [
        f"{name} is not solved in the solutions" for name in checked(page.notebook) if f"{name}: right." not in said
    ]


def alt_texts(page):
    problems = []
    for place, cell in enumerate(page.notebook.cells):
        for output in cell.get("outputs", []):
            for kind in output.get("data", {}):
                if kind.startswith("image/") and not output.metadata.get(kind, {}).get("alt", "").strip():
                    problems.append(f"cell {place}: {kind} without alt text")
        texts = [cell.source] if cell.cell_type == "markdown" else []
        texts += [html(output) for output in cell.get("outputs", [])]
        for text in texts:
            pictures = re.findall(r"<img\b[^>]*>", text)
            nameless = [tag for tag in pictures if not re.search(r"""\balt=["'][^"']+["']""", tag)]
            problems += [f"cell {place}: a picture without alt text"] * len(nameless + re.findall(r"!\[\s*\]\(", text))
    return problems


def terms_in_glossary(page):
    """Bold text in running prose is a term; bold text that ends in a colon or full stop is a label."""
    bold = [term for cell in page.prose[1:] for term in re.findall(r"\*\*([^*\n]+?)\*\*", cell.source)]
    terms = [" ".join(term.lower().split()) for term in bold if term[-1] not in ":.?!"]
    return [f"the glossary lacks {t!r}" for t in terms if t not in page.terms and t.removesuffix("s") not in page.terms]


EVERYWHERE = [
    counts_in_order,
    no_litter,
    clean_metadata,
    small,
    few_ignored_outputs,
    nothing_skipped,
    canonical_setup_cell,
    canonical_badge,
    first_cell,
    short_code,
    short_prose,
    prose_before_code,
    alt_texts,
]
IN_CHAPTERS = [exercises_match_checks, solutions_solve_all, terms_in_glossary]


def tags(cell):
    return cell.metadata.get("tags", [])


def checked(notebook):
    """The exercise ids that the code cells check, in order, each once."""
    return list(
        dict.fromkeys(
            name for cell in notebook.cells if cell.cell_type == "code" for name in CHECKED.findall(cell.source)
        )
    )


def parsed(cell):
    return ast.parse(TransformerManager().transform_cell(cell.source))  # magics become plain Python


def has_assert(cell):
    return any(isinstance(node, ast.Assert) for node in ast.walk(parsed(cell)))


def only_asserts(cell):
    return all(isinstance(node, ast.Assert) for node in parsed(cell).body)


def html(output):
    return "".join(output.get("data", {}).get("text/html", ""))


def words(source):
    """Words a reader reads: no code blocks, no addresses behind links."""
    return len(re.sub(r"(?s)```.*?```|\]\([^)]*\)", " ", source).split())


def _short(what, sizes, unit, most, longest):
    problems = [f"a {what} cell of {size} {unit}, more than {longest}" for size in sizes if size > longest]
    longer = sum(size > most for size in sizes)
    if longer * 5 > len(sizes):
        problems.append(f"{longer} of {len(sizes)} {what} cells have more than {most} {unit}; a fifth is allowed")
    return problems
