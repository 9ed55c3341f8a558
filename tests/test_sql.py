"""SQL that a model wrote: compared by its rows, and kept from doing harm."""

import sqlite3
import time

import pytest
from fixtures import scored

from course.lab import evaluation
from course.lab.data import DataError, database
from course.lab.sql import run_query, same_rows


@pytest.fixture
def shop(monkeypatch):
    """A small database in place of the shop's, closed to writing in the same way."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(
        "CREATE TABLE t (name, price); INSERT INTO t VALUES ('a', 1), ('b', 2), ('b', 2), ('c', 3);"
    )
    connection.execute("PRAGMA query_only = ON")
    monkeypatch.setattr(evaluation, "database", lambda: connection)
    return connection


@pytest.mark.parametrize(
    ("gold", "query", "right"),
    [
        ("SELECT name FROM t", "SELECT name FROM t ORDER BY name DESC", True),
        ("SELECT name FROM t ORDER BY name", "SELECT name FROM t ORDER BY name DESC", False),
        ("SELECT name FROM t", "SELECT DISTINCT name FROM t", False),  # how often a row comes counts
        ("SELECT max(price) FROM t", "SELECT price FROM t WHERE name = 'c';", True),
        ("SELECT name FROM t", "SELECT nam FROM t", False),
        ("SELECT name FROM t", "", False),
        ("SELECT name FROM t", "SELECT name FROM t; SELECT name FROM t", False),
        ("SELECT name FROM t", "SELECT name FROM t\0", False),
        ("SELECT name FROM t WHERE 0", "DELETE FROM t", False),
        ("SELECT name FROM t WHERE 0", "", False),
    ],
)
def test_sql_is_compared_by_the_rows_it_returns(shop, gold, query, right):
    assert scored(gold, query, task="sql").sql == right
    assert same_rows(shop, query, gold) == right


@pytest.mark.parametrize(
    "attack",
    [
        "DELETE FROM t",
        "INSERT INTO t VALUES ('d', 4)",
        "DROP TABLE t",
        "CREATE TEMP TABLE u (x)",
        "PRAGMA query_only = OFF",
        "ATTACH DATABASE '{folder}/stolen.db' AS other",
        "VACUUM INTO '{folder}/stolen.db'",
        "SELECT load_extension('{folder}/library')",
        "SELECT writefile('{folder}/file', 'text')",
        "SELECT length(zeroblob(1000000000))",
        "BEGIN",
    ],
)
def test_sql_can_only_read(shop, tmp_path, attack):
    with pytest.raises(sqlite3.Error):
        run_query(shop, attack.format(folder=tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert shop.execute("SELECT count(*) FROM t").fetchall() == [(4,)]
    with pytest.raises(sqlite3.OperationalError):  # query_only is still on
        shop.execute("DELETE FROM t")


def test_sql_that_does_not_end_is_stopped(shop):
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    start = time.perf_counter()
    assert not same_rows(shop, endless, "SELECT name FROM t", time_limit=0.1)
    assert time.perf_counter() - start < 2
    assert same_rows(shop, "SELECT name FROM t", "SELECT name FROM t")  # and the connection still works


def test_the_shop_database_answers():
    tables = run_query(database(), "SELECT name FROM sqlite_master WHERE type = 'table'")
    assert tables
    assert all(run_query(database(), f'SELECT count(*) FROM "{name}"')[0][0] for (name,) in tables)


def test_gold_query_that_fails_is_the_data_that_is_wrong(shop):
    with pytest.raises(DataError, match="completion: the shop's database cannot run 'SELECT x FROM t': no such"):
        scored("SELECT x FROM t", "SELECT name FROM t", task="sql")
