"""What holds for every bad input: one sentence that says what is wrong, and nothing is made or stored."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

LONGEST = 1000


def one_sentence(text: str, says: Sequence[str]) -> None:
    """``text`` is one line of bounded length with all of ``says`` in it, and no traceback."""
    assert len(text.splitlines()) == 1, text
    assert len(text) <= LONGEST, text
    assert "Traceback" not in text
    missing = [word for word in says if word not in text]
    assert not missing, f"{missing} not in: {text}"


def contents(directory: Path) -> dict[str, bytes]:
    """Everything below ``directory``, databases as what is in them, to be compared with what is there later."""
    return {
        str(path.relative_to(directory)): str(rows(path)).encode()
        if path.suffix == ".db"
        else path.read_bytes()
        if path.is_file()
        else b""
        for path in directory.rglob("*")
    }


def rows(database: Path) -> dict[str, int]:
    """How many rows each table of a collector's database has, whoever is writing it."""
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}
