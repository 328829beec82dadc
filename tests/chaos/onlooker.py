"""Looks on in a database, past all links."""

from __future__ import annotations

from typing import Any

import psycopg2

from local_servers.postgres_server import PostgresServer


class Onlooker:
    def __init__(self, postgres: PostgresServer, database: str) -> None:
        self._postgres = postgres
        self._database = database
        self._connection: Any = None

    def rows(self, statement: str, *values: Any) -> list[Any]:
        """Raises psycopg2.Error when PostgreSQL is away; the next call connects anew."""
        try:
            if self._connection is None:
                self._connection = self._postgres.connect(self._database)
            with self._connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return list(cursor.fetchall()) if cursor.description else []
        except psycopg2.Error:
            self.close()
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
