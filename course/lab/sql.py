"""Run SQL that a model wrote: it can read and nothing else, and only for so long."""

import re
import sqlite3
import time
from collections import Counter

from course.lab.data import DataError

READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def same_rows(connection, query, gold, time_limit=1.0):
    """Whether `query` returns the rows of `gold`, in any order unless gold has an ORDER BY.

    A query that fails, takes longer than `time_limit` seconds or does anything but read is wrong.

    Raises:
        DataError: the gold query itself fails.
    """
    try:
        expected = run_query(connection, gold, time_limit)
    except sqlite3.Error as error:
        raise DataError(f"completion: the shop's database cannot run {gold!r}: {error}") from None
    try:
        rows = run_query(connection, query, time_limit)
    except sqlite3.Error:
        return False
    if re.search(r"\border\s+by\b", gold, re.IGNORECASE):
        return rows == expected
    return Counter(rows) == Counter(expected)


def run_query(connection, query, time_limit=1.0):
    """Rows of one SELECT as tuples; anything else, or more than `time_limit` seconds, is a sqlite3.Error."""
    deadline = time.monotonic() + time_limit
    allow, deny = sqlite3.SQLITE_OK, sqlite3.SQLITE_DENY
    connection.set_authorizer(lambda action, *_: allow if action in READS else deny)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000)  # bytes of a value; zeroblob is quick to make
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 1_000)
    try:
        cursor = connection.execute(query)
        if cursor.description is None:
            raise sqlite3.ProgrammingError("the query is empty")
        return cursor.fetchall()
    except (sqlite3.Warning, ValueError) as error:  # several statements; a null character
        raise sqlite3.ProgrammingError(str(error)) from None
    finally:
        connection.set_authorizer(None)
        connection.set_progress_handler(None, 0)
