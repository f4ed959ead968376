"""The history of a run in SQLite: requests, completions, scored prefixes, rounds.

Knows records, not how they were made. It holds what went to and came from the assistant, and
figures; no row of the data has a place in it. Every method commits.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from gpta_local.errors import InputError, OutputError
from gpta_local.schema import Completion, Request, RequestKind, Round, Sampling, ScoredPrefix

MIGRATIONS = (
    """
    CREATE TABLE requests (
        id INTEGER PRIMARY KEY,
        round INTEGER NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('label-texts', 'prefix')),
        messages TEXT NOT NULL,
        sampling TEXT NOT NULL,
        created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    );
    CREATE TABLE completions (
        id INTEGER PRIMARY KEY,
        request_id INTEGER NOT NULL REFERENCES requests (id),
        text TEXT NOT NULL,
        model TEXT NOT NULL,
        finish_reason TEXT NOT NULL,
        prompt_tokens INTEGER,
        completion_tokens INTEGER,
        outcome TEXT NOT NULL,
        result TEXT NOT NULL
    );
    CREATE TABLE rounds (
        number INTEGER PRIMARY KEY,
        chosen TEXT NOT NULL,
        proposals TEXT NOT NULL,
        training_loss REAL,
        seconds REAL NOT NULL
    );
    CREATE TABLE scores (
        id INTEGER PRIMARY KEY,
        round INTEGER NOT NULL REFERENCES rounds (number),
        prefix TEXT NOT NULL,
        gain REAL NOT NULL,
        standard_error REAL NOT NULL,
        loss REAL NOT NULL,
        rows INTEGER NOT NULL
    );
    """,
)
"""Numbered by position; PRAGMA user_version says how many a file has seen."""

Verdict = tuple[str, str]
"""What became of a completion: its outcome (accepted, repeated, unusable) and, for an accepted
one, the text that was read out of it, otherwise the reason."""


class History:
    """Opens or creates `path`.

    Raises:
        OutputError: if the file cannot be written.
        InputError: if it is no history, or one of a later version.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._connection = sqlite3.connect(path)
            self._connection.execute("PRAGMA foreign_keys = ON")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise InputError(
                    f"the history is of version {version}, this gpta-local knows up to {len(MIGRATIONS)}",
                    where=str(path),
                    fix="Install the newer gpta-local",
                )
            tables = [name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")]
            if (version or tables) and "completions" not in tables:
                raise InputError("not a history of gpta-local", where=str(path))
            for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
                self._connection.executescript(f"BEGIN;{migration}PRAGMA user_version = {number};COMMIT;")
        except sqlite3.DatabaseError as exc:
            kind = OutputError if isinstance(exc, sqlite3.OperationalError) else InputError
            raise kind(f"the history cannot be opened ({exc})", where=str(path)) from exc

    def add_request(
        self,
        round_number: int,
        request: Request,
        sampling: Sampling,
    ) -> int:
        """Record a request before it is sent; return its number."""
        messages = json.dumps([asdict(message) for message in request.messages], ensure_ascii=False)
        with self._connection as db:
            cursor = db.execute(
                "INSERT INTO requests (round, kind, messages, sampling) VALUES (?, ?, ?, ?)",
                (round_number, request.kind, messages, json.dumps(asdict(sampling))),
            )
        return int(cursor.lastrowid or 0)

    def add_completions(self, request: int, completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> None:
        """Record what came back for a request, and what became of each completion."""
        with self._connection as db:
            db.executemany(
                "INSERT INTO completions (request_id, text, model, finish_reason, prompt_tokens, completion_tokens,"
                " outcome, result) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (request, c.text, c.model, c.finish_reason, c.prompt_tokens, c.completion_tokens, *verdict)
                    for c, verdict in zip(completions, verdicts, strict=True)
                ],
            )

    def add_round(self, entry: Round) -> None:
        """Record a round with its scores."""
        with self._connection as db:
            db.execute(
                "INSERT INTO rounds (number, chosen, proposals, training_loss, seconds) VALUES (?, ?, ?, ?, ?)",
                (
                    entry.number,
                    entry.chosen.text,
                    json.dumps(dict(entry.proposals)),
                    entry.training_loss,
                    entry.seconds,
                ),
            )
            db.executemany(
                "INSERT INTO scores (round, prefix, gain, standard_error, loss, rows) VALUES (?, ?, ?, ?, ?, ?)",
                [(entry.number, s.text, s.gain, s.standard_error, s.loss, s.rows) for s in entry.scored],
            )

    def scored(self) -> list[ScoredPrefix]:
        """The latest score of each prefix, in the order of first scoring; "" is left out."""
        rows = self._connection.execute(
            "SELECT prefix, gain, standard_error, loss, rows FROM scores WHERE prefix <> '' ORDER BY id"
        )
        latest: dict[str, ScoredPrefix] = {}
        for prefix, gain, standard_error, loss, count in rows:
            latest[prefix] = ScoredPrefix(prefix, gain, standard_error, loss, count)
        return list(latest.values())

    def completions(self, kind: RequestKind) -> list[Completion]:
        """All completions of one kind of request, in the order of asking."""
        rows = self._connection.execute(
            "SELECT c.text, c.model, c.finish_reason, c.prompt_tokens, c.completion_tokens"
            " FROM completions c JOIN requests r ON r.id = c.request_id WHERE r.kind = ? ORDER BY c.id",
            (kind,),
        )
        return [Completion(*row) for row in rows]

    def messages(self) -> list[str]:
        """Every message that was sent to the assistant, as JSON, in order."""
        return [row[0] for row in self._connection.execute("SELECT messages FROM requests ORDER BY id")]

    def cost(self) -> Mapping[str, int | None]:
        """Completions asked for, and their tokens; None where the assistant did not count them all."""
        completions, counted, prompt, completion = self._connection.execute(
            "SELECT count(*), count(prompt_tokens), sum(prompt_tokens), sum(completion_tokens) FROM completions"
        ).fetchone()
        known = completions == counted
        return {
            "completions": completions,
            "prompt_tokens": prompt if known else None,
            "completion_tokens": completion if known else None,
        }

    def rounds(self) -> list[tuple[int, str, int, float]]:
        """(number, chosen prefix, prefixes scored, seconds) of each round."""
        return list(
            self._connection.execute(
                "SELECT number, chosen, (SELECT count(*) FROM scores WHERE round = number AND prefix <> ''), seconds"
                " FROM rounds ORDER BY number"
            )
        )

    def close(self) -> None:
        self._connection.close()


def open_existing(path: Path) -> History:
    """The history of an earlier run.

    Raises:
        InputError: if there is none.
    """
    if not path.is_file():
        raise InputError("no history here", where=str(path), fix="Give the directory of a run")
    return History(path)
