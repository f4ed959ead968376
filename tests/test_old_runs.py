"""Histories as each earlier version wrote them: what they hold is read, and kept when they are gone on with."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from commands import invoke
from samples import CARD, scored

from gpta_local.errors import InputError
from gpta_local.record.audit import history_digest
from gpta_local.record.history import MIGRATIONS, History, open_existing
from gpta_local.schema import Completion, Round, ScoredPrefix

STORED = Path(__file__).parent / "data"
VERSIONS = range(1, len(MIGRATIONS) + 1)
DIGESTS_OF_3 = (
    "8b5d4cbc6519d0be7f50d71ac00701c58247ecc19da0409228fa53ab06b5f07b",
    "ca9b360cc45117380fc4675291f0ca3d9922d6d4280b62b5c8ac3e765d682c3b",
)
"""Of figures and results, as the gpta-local took them that wrote the file: audit logs of that time hold such."""


@pytest.fixture(params=VERSIONS, ids=lambda version: f"version {version}")
def old(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, Path]:
    """A version and the directory of a run whose history is of it."""
    with sqlite3.connect(tmp_path / "history.sqlite") as db:
        db.executescript((STORED / f"history-v{request.param}.sql").read_text(encoding="utf-8"))
    return request.param, tmp_path


def test_a_file_of_every_version_is_stored() -> None:
    assert sorted(path.name for path in STORED.glob("history-v*.sql")) == [f"history-v{v}.sql" for v in VERSIONS]


def test_stored_file_has_its_version(old: tuple[int, Path]) -> None:
    version, run = old
    with sqlite3.connect(run / "history.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (version,)


def test_what_it_holds_is_read(old: tuple[int, Path]) -> None:
    version, run = old
    history = open_existing(run / "history.sqlite")
    assert history.completions("prefix") == [
        Completion("Letter:", "m", "stop", 9, 2),
        Completion("", "m", "stop", 9, 0),
    ]
    assert history.scored() == [ScoredPrefix("Letter:", 0.25, 0.125, 0.75, 8)]
    assert history.rounds() == [(1, "Letter:", 1, 1.5)]
    entry = history.round(1)
    assert entry is not None and entry.chosen == entry.scored[1] and entry.training_loss == 0.5
    assert [step.adapter for _, step, _ in history.steps()] == ["001"] * (version >= 2)
    assert [entry.loss for entry in history.label_text_scores()] == [0.75] * (version >= 2)
    assert history.purged() == ""
    history.close()


def test_what_it_did_not_keep_is_not_there(old: tuple[int, Path]) -> None:
    version, run = old
    history = open_existing(run / "history.sqlite")
    assert (history.run() is None) == (version < 2)
    assert history.written_by() == (("0.1.0", 1) if version >= 4 else ("", 0))
    assert (history.label_texts() is None) == (version < 4)
    assert history.seconds() == (12.5 if version >= 4 else 0)
    history.close()


def test_it_is_brought_to_the_latest_version_without_a_change_of_its_rows(old: tuple[int, Path]) -> None:
    _, run = old

    def rows() -> dict[str, list[tuple[object, ...]]]:
        with sqlite3.connect(run / "history.sqlite") as db:
            tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            columns = {t: [c[1] for c in db.execute(f"PRAGMA table_info({t})")] for t in tables}
            before = {t: [c for c in columns[t] if c in known.get(t, columns[t])] for t in known or tables}
            known.update(before)
            return {t: db.execute(f"SELECT {', '.join(before[t])} FROM {t}").fetchall() for t in before}

    known: dict[str, list[str]] = {}
    first = rows()
    for _ in range(2):
        open_existing(run / "history.sqlite").close()
    assert rows() == first
    with sqlite3.connect(run / "history.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_schema_is_that_of_a_new_file(old: tuple[int, Path], tmp_path: Path) -> None:
    _, run = old
    open_existing(run / "history.sqlite").close()
    History(tmp_path / "new.sqlite").close()

    def columns(path: Path) -> list[tuple[str, str]]:
        with sqlite3.connect(path) as db:
            tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
            return [(table, c[1]) for (table,) in tables for c in db.execute(f"PRAGMA table_info({table})")]

    assert columns(run / "history.sqlite") == columns(tmp_path / "new.sqlite")


def test_it_can_be_gone_on_with(old: tuple[int, Path]) -> None:
    version, run = old
    history = open_existing(run / "history.sqlite")
    if version < 2:
        history.add_run(CARD, "low-resource")
    history.add_round(Round(2, {}, (), (scored("b", 0.5),), scored("b", 0.5), None, 1.0))
    assert [entry.text for entry in history.scored()] == ["Letter:", "b"]
    history.close()


def test_command_shows_it(old: tuple[int, Path]) -> None:
    result = invoke("history", old[1])
    assert result.exit_code == 0 and "+0.250 ± 0.125 (8 rows)  Letter:" in result.stdout


def test_migration_that_is_stopped_half_way_leaves_the_old_version(
    old: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = old
    broken = (*MIGRATIONS, "CREATE TABLE more (x); CREATE TABLE more (x);")
    monkeypatch.setattr("gpta_local.record.history.MIGRATIONS", broken)
    with pytest.raises(Exception, match="more"):
        History(run / "history.sqlite")
    monkeypatch.undo()
    history = open_existing(run / "history.sqlite")
    assert history.rounds() == [(1, "Letter:", 1, 1.5)]
    history.close()


def test_later_version_is_refused(old: tuple[int, Path]) -> None:
    with sqlite3.connect(old[1] / "history.sqlite") as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(InputError, match=re.escape("Install the newer gpta-local")):
        open_existing(old[1] / "history.sqlite")


def test_digests_that_an_audit_log_of_version_3_holds_still_hold(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "history.sqlite") as db:
        db.executescript((STORED / "history-v3.sql").read_text(encoding="utf-8"))
    history = open_existing(tmp_path / "history.sqlite")
    digest = history_digest(history)
    history.close()
    assert (digest.figures, digest.results) == DIGESTS_OF_3
