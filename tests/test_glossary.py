"""The glossary is a well-formed, sorted table with a meaning and a Korean term for each entry."""

import re

import notebook_rules as rules

ROWS = [
    line for line in (rules.NOTEBOOKS / "glossary.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")
]


def test_every_row_has_three_filled_columns():
    for row in ROWS:
        cells = row.strip("|").split("|")
        assert len(cells) == 3 and all(cell.strip() for cell in cells), row


def test_terms_are_sorted_and_unique():
    terms = [row.split("|")[1].strip().lower() for row in ROWS[2:]]
    assert terms == sorted(set(terms), key=lambda term: re.sub(r"[^a-z0-9 ]", "", term))


def test_meanings_are_one_sentence_and_do_not_repeat_the_term():
    for term, (meaning, _) in rules.glossary().items():
        assert meaning.endswith(".") and ". " not in meaning and len(meaning.split()) <= 35, term
        assert not meaning.lower().startswith(("a " + term, "the " + term, term)), term


def test_korean_terms_are_in_hangul():
    for term, (_, korean) in rules.glossary().items():
        assert re.search("[가-힣]", korean), term
