"""The tables of a tuning database, and how it is told from any other file."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

APPLICATION_ID = 0x44575254
"""``DWRT`` in the header of the file; ``file`` and SQLite itself show it."""

SCHEMA = 1
"""Raised when a table changes."""

TABLES = (
    "CREATE TABLE devices (key TEXT PRIMARY KEY, document TEXT NOT NULL) STRICT",
    """CREATE TABLE answers (
        device TEXT NOT NULL, workload TEXT NOT NULL, version TEXT NOT NULL, date TEXT NOT NULL,
        document TEXT NOT NULL, PRIMARY KEY (device, workload, version)) STRICT""",
    """CREATE TABLE targets (
        device TEXT PRIMARY KEY, version TEXT NOT NULL, date TEXT NOT NULL, document TEXT NOT NULL
        ) STRICT""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA}",
)


def prepare(connection: sqlite3.Connection) -> None:
    """Makes the tables in an empty file, and refuses any other file that does not have them.

    The journal stays the one that rolls back, not the write-ahead log: that needs memory which all
    processes share, and would damage the file where hosts reach it over a network file system
    (https://www.sqlite.org/wal.html, section 1). A few writes a second do not need it.

    Raises:
        ValueError: the file belongs to something else, or to a newer version.
        sqlite3.Error: it is damaged, or cannot be written.
    """
    if _is_ours(connection):
        return
    with transaction(connection):  # another process may be making them right now
        if not _is_ours(connection):
            for statement in TABLES:
                connection.execute(statement)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """On disk when it ends; if it fails, as if it had not begun."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite ends it by itself when the disk is full
            connection.execute("ROLLBACK")
        raise


def _is_ours(connection: sqlite3.Connection) -> bool:
    """Whether the file has the tables; False for an empty one."""
    application, schema, tables = (
        connection.execute(query).fetchone()[0]
        for query in (
            "PRAGMA application_id",
            "PRAGMA user_version",
            "SELECT COUNT(*) FROM sqlite_master",
        )
    )
    if application == APPLICATION_ID and schema > SCHEMA:
        raise ValueError("a newer version of dwr-rewrite wrote it")
    if application != APPLICATION_ID and (application or schema or tables):
        raise ValueError("it is the database of another program")
    return application == APPLICATION_ID
