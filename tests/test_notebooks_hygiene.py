"""Every notebook keeps every rule, and every rule catches a notebook that breaks it."""

import nbformat
import notebook_rules as rules
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course.classroom import stored
from course.classroom.setup_cell import badge, setup_cell

PAGES = rules.pages()
NAME = "99_example"
OPENING = """# 99 An example

You will see that a sum is a sum.

{badge}

**About 2 minutes** on a laptop, 1 minute on a GPU.

**You need to know:** how to add. **You will be able to:** add."""


def test_there_are_chapters():
    assert any(page.solutions for page in PAGES)


@pytest.mark.parametrize("rule", rules.EVERYWHERE + rules.IN_CHAPTERS, ids=lambda rule: rule.__name__)
def test_every_notebook(rule):
    held = [page for page in PAGES if rule in rules.EVERYWHERE or not page.name.startswith("solutions/")]
    assert not {page.name: problems for page in held if (problems := rule(page))}


def example():
    """A small page that keeps every rule: nine code cells, four exercises."""
    cells = [
        new_markdown_cell(OPENING.format(badge=badge(NAME))),
        new_code_cell(setup_cell(), metadata={"tags": ["setup"]}),
    ]
    cells += [new_markdown_cell("A **token** is read."), new_code_cell("total = 2\ntotal")]
    cells += [new_code_cell("assert total == 2")]
    cells += [
        new_code_cell(f'check("99.{n}", ...)', outputs=[said(f"99.{n}: not answered yet.\n")]) for n in range(1, 5)
    ]
    cells += [new_code_cell("assert total > 1\nassert total < 3")]
    picture = new_output("display_data", {"image/png": "AAAA"}, metadata={"image/png": {"alt": "A line."}})
    cells[3].outputs = [new_output("execute_result", {"text/plain": "2"}, execution_count=2)]
    cells[4].outputs = [picture]
    return page_of(cells)


def page_of(cells, **fields):
    code = [cell for cell in cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
    answers = [new_code_cell(outputs=[said(f"99.{n}: right.\n") for n in range(1, 5)])]
    ids = tuple(f"99.{n}" for n in range(1, 5))
    notebook = new_notebook(cells=cells, metadata=nbformat.from_dict(stored.METADATA))
    page = rules.Page(NAME, notebook, new_notebook(cells=answers), ids, frozenset({"token"}))
    return page._replace(**fields)


def said(text, name="stdout"):
    return new_output("stream", name=name, text=text)


@pytest.mark.parametrize("rule", rules.EVERYWHERE + rules.IN_CHAPTERS, ids=lambda rule: rule.__name__)
def test_the_example_keeps_the_rule(rule):
    assert rule(example()) == []


def set_in(place, **values):
    """A breaker that sets attributes of one cell."""

    def broken(page):
        page.notebook.cells[place].update(values)
        return page

    return broken


def printing(text, name="stdout"):
    return set_in(3, outputs=[said(text, name)])


def tagged(place, *tags):
    return set_in(place, metadata=nbformat.from_dict({"tags": list(tags)}))


def without(place):
    def broken(page):
        del page.notebook.cells[place]
        return page

    return broken


def insert(place, *cells):
    def broken(page):
        page.notebook.cells[place:place] = cells
        return page_of(page.notebook.cells)

    return broken


def opening(old, new):
    def broken(page):
        first = page.notebook.cells[0]
        assert old in first.source
        first.source = first.source.replace(old, new)
        return page

    return broken


def replaced(**fields):
    return lambda page: page._replace(**fields)


def widgets(page):
    page.notebook.metadata["widgets"] = {}
    return page


LINES = "\n".join(["x = 1"] * 4)
BREAKERS = {
    "counts_in_order": [
        set_in(3, execution_count=None),
        set_in(3, execution_count=7),
        lambda page: [cell.update(execution_count=cell.execution_count + 1) for cell in page.code] and page,
    ],
    "no_litter": [
        printing("a note", name="stderr"),
        printing("UserWarning: old"),
        printing("see /home/someone/course"),
        printing("C:\\Users\\someone"),
        printing("saved to /tmp/x"),
        printing(" 50%|█████     | 1/2 [00:01<00:01, 1.0it/s]"),
        printing("1 of 2\r2 of 2"),
        set_in(3, outputs=[new_output("error", ename="E", evalue="e", traceback=[])]),
        set_in(3, outputs=[new_output("display_data", {"text/html": "<p>/root/x</p>"})]),
    ],
    "clean_metadata": [
        widgets,
        set_in(3, metadata=nbformat.from_dict({"execution": {"started": "2020"}})),
        set_in(3, id=""),
        lambda page: page.notebook.cells[3].update(id=page.notebook.cells[4].id) or page,
    ],
    "small": [printing("x" * rules.MAX_BYTES)],
    "few_ignored_outputs": [
        tagged(5, "nbval-ignore-output"),
        lambda page: tagged(3, "nbval-ignore-output")(tagged(4, "nbval-ignore-output")(page)),
    ],
    "nothing_skipped": [
        tagged(3, "nbval-skip"),
        tagged(3, "raises-exception"),
        set_in(3, source="# NBVAL_SKIP\n1"),
        set_in(3, source="1  # NBVAL_IGNORE_OUTPUT"),
    ],
    "canonical_setup_cell": [
        set_in(1, source="import course"),
        set_in(1, metadata=nbformat.from_dict({})),
        insert(1, new_code_cell("1")),
        tagged(3, "setup"),
    ],
    "canonical_badge": [opening(badge(NAME), badge("98_other")), opening(badge(NAME), "")],
    "first_cell": [
        opening("# 99 An example", "99 An example"),
        opening("You will see that a sum is a sum.", "* sums"),
        opening("minute", "hour"),
        opening("GPU", "phone"),
        opening("You need to know", "Before"),
        opening("You will be able to", "After"),
        lambda page: without(0)(without(2)(page)),
    ],
    "short_code": [
        set_in(3, source="\n".join(["x = 1"] * 26)),
        lambda page: set_in(3, source="\n".join(["x = 1"] * 16))(set_in(4, source="\n".join(["x = 1"] * 16))(page)),
    ],
    "short_prose": [set_in(2, source="word " * 161), set_in(2, source="word " * 91)],
    "prose_before_code": [insert(4, new_code_cell(LINES), new_code_cell(LINES + "\nassert x"))],
    "alt_texts": [
        set_in(4, outputs=[new_output("display_data", {"image/png": "AAAA"})]),
        set_in(4, outputs=[new_output("display_data", {"text/html": "<img src='x.png' alt=''>"})]),
        set_in(2, source="![](figure.png)"),
        set_in(2, source="<img src='x.png'>"),
    ],
    "exercises_match_checks": [
        without(5),
        replaced(exercises=("99.1", "99.2", "99.3", "99.5")),
        insert(9, *[new_code_cell(f'check("99.{n}", ...)') for n in range(5, 10)]),
    ],
    "solutions_solve_all": [
        replaced(solutions=None),
        lambda page: page._replace(solutions=page.notebook),  # a notebook that leaves every exercise open
    ],
    "terms_in_glossary": [set_in(2, source="A **flurb** is read."), replaced(terms=frozenset())],
}


def test_every_rule_has_a_breaker():
    assert set(BREAKERS) == {rule.__name__ for rule in rules.EVERYWHERE + rules.IN_CHAPTERS}


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        pytest.param(name, broken, id=f"{name}-{n}")
        for name, all_of in BREAKERS.items()
        for n, broken in enumerate(all_of)
    ],
)
def test_the_rule_catches_a_broken_notebook(rule, broken):
    assert getattr(rules, rule)(broken(example()))


def test_prose_is_counted_as_it_is_read():
    assert rules.words("one [two](https://example.org/a b c) three\n```python\nfour five\n```\nsix") == 4


def test_asserts_may_follow_code_without_prose():
    cells = [new_code_cell(LINES), new_code_cell("\n".join(["assert 1"] * 4))]
    assert rules.prose_before_code(rules.Page(NAME, new_notebook(cells=cells))) == []
