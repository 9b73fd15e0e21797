"""The app's own users, in SQLite."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import Any


def add_user(user_id: int, name: str, email: str) -> None:
    """Add a user, or change the one with this id."""
    with closing(_connect()) as connection, connection:
        connection.execute(
            "INSERT INTO user (id, name, email) VALUES (?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email",
            (user_id, name, email),
        )


def find_user(user_id: int) -> dict[str, Any] | None:
    with closing(_connect()) as connection:
        row = connection.execute("SELECT id, name, email FROM user WHERE id = ?", (user_id,)).fetchone()
    return None if row is None else {"id": row[0], "name": row[1], "email": row[2]}


def _connect() -> sqlite3.Connection:
    connection = sqlite3.connect(os.environ.get("USERS_DB", "users.sqlite3"))
    connection.execute("CREATE TABLE IF NOT EXISTS user (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL)")
    return connection
