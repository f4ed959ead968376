"""The history of a run in SQLite: requests, completions, scored prefixes, rounds.

Knows records, not how they were made. It holds what went to and came from the assistant, and
figures; no row of the data has a place in it. Every method commits.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from operator import attrgetter
from pathlib import Path
from typing import Any

from gpta_local import __version__
from gpta_local.errors import InputError, OutputError
from gpta_local.record.folder import HISTORY_FILE
from gpta_local.record.requests import RecordedRequest, as_json
from gpta_local.record.tables import COMPLETION, FIGURES, SCHEMA, SCORE, STEP, VERSION
from gpta_local.schema import (
    Completion,
    DatasetCard,
    DialogueGradientStep,
    Label,
    ProposalFigures,
    Regime,
    Request,
    RequestKind,
    Round,
    Sampling,
    ScoredLabelTexts,
    ScoredPrefix,
    StepVerdict,
)

GONE_MESSAGES = "[]"
GONE_TEXT = ""
"""What stands in a purged history in the place of a request's messages and of a completion's text."""

Outcome = tuple[str, str]
"""What became of a completion: its outcome (accepted, repeated, unusable) and, for an accepted
one, the text that was read out of it, otherwise the reason. Both are empty until it is judged."""


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
            with self._connection as db:
                db.execute("BEGIN IMMEDIATE")  # two processes can open a new file at once: one waits here
                if self._is_new(path):
                    for statement in SCHEMA.split(";"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.DatabaseError as exc:
            kind = OutputError if isinstance(exc, sqlite3.OperationalError) else InputError
            raise kind(f"the history cannot be opened ({exc})", where=str(path)) from exc

    def _is_new(self, path: Path) -> bool:
        version = self._only("PRAGMA user_version")
        tables = [name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")]
        if tables and "completions" not in tables:
            raise InputError("not a history of gpta-local", where=str(path))
        if version not in (0, VERSION):
            raise InputError(
                f"the history is of version {version}, this gpta-local knows version {VERSION}",
                where=str(path),
                fix="Use the gpta-local that made it, or begin a new run",
            )
        return not version

    def _first(self, query: str, parameters: Mapping[str, Any] | Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row that is found; None if there is none."""
        row: tuple[Any, ...] | None = self._connection.execute(query, parameters).fetchone()
        return row

    def _only(self, query: str, parameters: Mapping[str, Any] | Sequence[Any] = ()) -> Any:
        """The one value of the first row; None if there is no row."""
        row = self._first(query, parameters)
        return row and row[0]

    def add_request(self, round_number: int, request: Request, sampling: Sampling, adapter: str = "") -> int:
        """Record a request before it is sent; return its number. `adapter`: the name of the folder."""
        with self._connection as db:
            cursor = db.execute(
                "INSERT INTO requests (round, kind, messages, sampling, adapter) VALUES (?, ?, ?, ?, ?)",
                (round_number, request.kind, as_json(request), json.dumps(asdict(sampling)), adapter),
            )
        return int(cursor.lastrowid or 0)

    def add_completions(self, answers: Mapping[int, Sequence[Completion]]) -> None:
        """Record what came back for requests that were answered together: all of it or nothing. Sampled together, they
        would not be answered alike by parts."""
        columns = attrgetter(*COMPLETION.split(", "))
        with self._connection as db:
            db.executemany(
                f"INSERT INTO completions (request_id, {COMPLETION}, outcome, result)"
                " VALUES (?, ?, ?, ?, ?, ?, '', '')",
                [(request, *columns(reply)) for request, replies in answers.items() for reply in replies],
            )

    def judge_completions(self, request: int, verdicts: Sequence[Outcome]) -> None:
        """Record what became of each completion of a request, in order."""
        with self._connection as db:
            ids = db.execute("SELECT id FROM completions WHERE request_id = ? ORDER BY id", (request,)).fetchall()
            db.executemany(
                "UPDATE completions SET outcome = ?, result = ? WHERE id = ?",
                [(*verdict, number) for verdict, (number,) in zip(verdicts, ids, strict=True)],
            )

    def add_round(
        self, entry: Round, verdict: tuple[str, StepVerdict] | None = None, *, base_only: bool = False
    ) -> None:
        """Record a round with its scores and, where an adapter was on trial, its name and the verdict.

        Args:
            base_only: the server had lost the adapters, and none of them answers any more.
        """
        number = entry.number
        with self._connection as db:
            db.execute(
                "INSERT INTO rounds (number, chosen, proposals, training_loss, seconds) VALUES (?, ?, ?, ?, ?)",
                (number, entry.chosen.text, json.dumps(dict(entry.proposals)), entry.training_loss, entry.seconds),
            )
            self._add_scores(db, number, entry.scored)
            self._add_figures(db, number, entry.figures, verdict)
            if base_only:
                db.execute("UPDATE dialogue_gradient_steps SET verdict = 'saved only' WHERE verdict <> 'rolled back'")

    def add_asking(
        self, number: int, figures: Sequence[ProposalFigures], verdict: tuple[str, StepVerdict] | None = None
    ) -> None:
        """Record what became of example texts that were asked for, and the verdict on the adapter that gave them."""
        with self._connection as db:
            self._add_figures(db, number, figures, verdict)

    @staticmethod
    def _add_figures(
        db: sqlite3.Connection,
        number: int,
        figures: Sequence[ProposalFigures],
        verdict: tuple[str, StepVerdict] | None,
    ) -> None:
        db.executemany(
            f"INSERT INTO proposal_figures (round, {FIGURES}) VALUES (?, ?, ?, ?, ?, ?)",
            [(number, *astuple(of)) for of in figures],
        )
        if verdict is not None:
            adapter, of_adapter = verdict
            db.execute("UPDATE dialogue_gradient_steps SET verdict = ? WHERE adapter = ?", (of_adapter, adapter))

    def add_training(self, round_number: int, loss: float | None, seconds: float) -> None:
        """Record that the model was trained in a round, and how long the round took with that."""
        with self._connection as db:
            db.execute(
                "UPDATE rounds SET training_loss = ?, seconds = ? WHERE number = ?", (loss, seconds, round_number)
            )

    def add_run(self, card: DatasetCard, regime: Regime) -> None:
        """Record, once, whose history this is."""
        with self._connection as db:
            row = (json.dumps(asdict(card), ensure_ascii=False), regime, __version__)
            db.execute("INSERT INTO runs (card, regime, written_by) VALUES (?, ?, ?)", row)

    def add_seconds(self, total: float) -> None:
        """Record how long the run has been going on, pauses left out."""
        with self._connection as db:
            db.execute("UPDATE runs SET seconds = ?", (total,))

    def add_label_texts(self, scored: Sequence[ScoredLabelTexts], chosen: Sequence[Mapping[str, str]]) -> None:
        """Record the sets of label texts that were scored, and those that start the model."""
        with self._connection as db:
            db.executemany(
                "INSERT INTO label_text_scores (texts, loss) VALUES (?, ?)",
                [(json.dumps(dict(s.texts), ensure_ascii=False), s.loss) for s in scored],
            )
            db.execute("UPDATE runs SET label_texts = ?", (json.dumps(list(map(dict, chosen)), ensure_ascii=False),))

    def add_step(self, round_number: int, step: DialogueGradientStep, verdict: StepVerdict) -> None:
        """Record a fine-tuning of the assistant."""
        losses = json.dumps(step.losses)
        with self._connection as db:
            db.execute(
                f"INSERT INTO dialogue_gradient_steps (round, {STEP}, verdict) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (round_number, step.adapter, step.method, step.dialogues, losses, step.seconds, verdict),
            )

    @staticmethod
    def _add_scores(db: sqlite3.Connection, round_number: int, scored: Sequence[ScoredPrefix]) -> None:
        db.executemany(
            f"INSERT INTO scores (round, {SCORE}) VALUES (?, ?, ?, ?, ?, ?)",
            [(round_number, *astuple(entry)) for entry in scored],
        )

    def scored(self) -> list[ScoredPrefix]:
        """The latest score of each prefix, in the order of first scoring; "" is left out."""
        latest: dict[str, ScoredPrefix] = {}
        for scored in self.scored_by_round().values():
            latest |= {s.text: s for s in scored}
        return list(latest.values())

    def scored_by_round(self) -> dict[int, list[ScoredPrefix]]:
        """The scores of each round; "" is left out."""
        rounds: dict[int, list[ScoredPrefix]] = {}
        rows = self._connection.execute(f"SELECT round, {SCORE} FROM scores WHERE prefix <> '' ORDER BY id")
        for number, *score in rows:
            rounds.setdefault(number, []).append(ScoredPrefix(*score))
        return rounds

    def run(self) -> tuple[DatasetCard, Regime] | None:
        """The card and regime of the run; None before it has begun."""
        row = self._first("SELECT card, regime FROM runs")
        if row is None:
            return None
        fields = json.loads(row[0])
        return DatasetCard(**fields | {"labels": tuple(Label(**label) for label in fields["labels"])}), row[1]

    def written_by(self) -> str:
        """The version of gpta-local that began the run."""
        return str(self._only("SELECT written_by FROM runs"))

    def seconds(self) -> float:
        """How long the run has been going on, as far as it is on record."""
        return float(self._only("SELECT seconds FROM runs") or 0.0)

    def label_texts(self) -> list[dict[str, str]] | None:
        """Those that start the model; None as long as they are not chosen."""
        chosen: list[dict[str, str]] | None = json.loads(self._only("SELECT label_texts FROM runs") or "null")
        return chosen

    def end_search(self, reason: str) -> None:
        """Record why the search ends before its last round: the key of a budget, or a fault."""
        with self._connection as db:
            db.execute("UPDATE runs SET ended_by = ?", (reason,))

    def ended_by(self) -> str:
        """Why the search ended before its last round; "" if it did not."""
        return self._only("SELECT ended_by FROM runs") or ""

    def asked(
        self, round_number: int, kind: RequestKind | None = None, adapter: str | None = None, after: int = 0
    ) -> RecordedRequest | None:
        """The first request of a round (None: of any kind, any adapter) whose number is greater than `after`."""
        row = self._first(
            "SELECT id, kind, messages, sampling FROM requests WHERE round = :round AND id > :after"
            " AND coalesce(:adapter, adapter) = adapter AND coalesce(:kind, kind) = kind ORDER BY id",
            {"round": round_number, "after": after, "adapter": adapter, "kind": kind},
        )
        if row is None:
            return None
        query = f"SELECT {COMPLETION} FROM completions WHERE request_id = ? ORDER BY id"
        replies = [Completion(*reply) for reply in self._connection.execute(query, row[:1])]
        return RecordedRequest(*(*row, replies))

    def unanswered(self) -> int:
        """The number of the first request to which no answer is on record; 0 if there is none."""
        return self._only("SELECT min(id) FROM requests WHERE id NOT IN (SELECT request_id FROM completions)") or 0

    def round(self, number: int) -> Round | None:
        """A round as it was recorded, with all scores of it."""
        row = self._first("SELECT proposals, chosen, training_loss, seconds FROM rounds WHERE number = ?", (number,))
        if row is None:
            return None
        proposals, chosen, loss, seconds = row
        scores = self._connection.execute(f"SELECT {SCORE} FROM scores WHERE round = ? ORDER BY id", (number,))
        scored = tuple(ScoredPrefix(*score) for score in scores)
        figures = tuple(f for of, f in self.proposal_figures() if of == number)
        of_chosen = next(s for s in scored if s.text == chosen)
        return Round(number, json.loads(proposals), figures, scored, of_chosen, loss, seconds)

    def taught(self, round_number: int) -> bool:
        """Whether the assistant was taught after a round, or the run has gone on without."""
        taught = "SELECT EXISTS (SELECT 1 FROM dialogue_gradient_steps WHERE round >= ?)"
        return bool(self._only(taught, (round_number,))) or self.gone_on(round_number)

    def gone_on(self, round_number: int) -> bool:
        """Whether something was asked in a later round."""
        return bool(self._only("SELECT EXISTS (SELECT 1 FROM requests WHERE round > ?)", (round_number,)))

    def comparable_groups(self, regime: Regime) -> list[list[ScoredPrefix]]:
        """Scored prefixes in groups within which gains compare: all of a low-resource run, whose θ and
        rows stay; those of one round of an online run."""
        return list(self.scored_by_round().values()) if regime == "online" else [self.scored()]

    def comparable(self, regime: Regime) -> list[ScoredPrefix]:
        """Scored prefixes whose gains compare with what is found now: all of a low-resource run, of an online one those
        of the latest round. "" is left out."""
        if regime == "low-resource":
            return self.scored()
        return self.scored_by_round().get(self._only("SELECT max(number) FROM rounds"), [])

    def label_text_scores(self) -> list[ScoredLabelTexts]:
        rows = self._connection.execute("SELECT texts, loss FROM label_text_scores ORDER BY id")
        return [ScoredLabelTexts(json.loads(texts), loss) for texts, loss in rows]

    def proposal_figures(self) -> list[tuple[int, ProposalFigures]]:
        """(round, figures) of prefixes, in order."""
        return self._figures("IN")

    def askings(self) -> list[tuple[int, ProposalFigures]]:
        """(number, figures) of each asking for example texts that were judged for the dialogue gradient: the first, 0,
        and those after its steps, which have the numbers after the last round."""
        return self._figures("NOT IN")

    def _figures(self, how: str) -> list[tuple[int, ProposalFigures]]:
        query = (
            f"SELECT round, {FIGURES} FROM proposal_figures WHERE round {how} (SELECT number FROM rounds) ORDER BY id"
        )
        return [(number, ProposalFigures(*figures)) for number, *figures in self._connection.execute(query)]

    def steps(self) -> list[tuple[int, DialogueGradientStep, str]]:
        """(round, step, verdict), in order."""
        rows = self._connection.execute(f"SELECT round, {STEP}, verdict FROM dialogue_gradient_steps ORDER BY rowid")
        return [
            (number, DialogueGradientStep(adapter, method, dialogues, tuple(json.loads(losses)), seconds), verdict)
            for number, adapter, method, dialogues, losses, seconds, verdict in rows
        ]

    def completions(self, kind: RequestKind) -> list[Completion]:
        """All completions of one kind of request, in the order of asking."""
        rows = self._connection.execute(
            f"SELECT {COMPLETION} FROM completions c JOIN requests r ON r.id = request_id WHERE kind = ? ORDER BY c.id",
            (kind,),
        )
        return [Completion(*row) for row in rows]

    def judged(self) -> list[tuple[str, str, str]]:
        """(outcome, result, finish_reason) of each completion that was judged."""
        query = "SELECT outcome, result, finish_reason FROM completions WHERE outcome <> '' ORDER BY id"
        return list(self._connection.execute(query))

    def requests(self) -> list[tuple[int, int, str, str, str]]:
        """(number, round, kind, adapter, messages as JSON) of each request, in order."""
        return list(self._connection.execute("SELECT id, round, kind, adapter, messages FROM requests ORDER BY id"))

    def texts(self) -> dict[int, list[str]]:
        """The texts of the completions of each request, by its number, in order."""
        found: dict[int, list[str]] = {}
        for request, text in self._connection.execute("SELECT request_id, text FROM completions ORDER BY id"):
            found.setdefault(request, []).append(text)
        return found

    def rows(self, queries: Sequence[str]) -> list[list[tuple[Any, ...]]]:
        """All that `NUMBERS` or `RESULTS` find."""
        return [self._connection.execute(query).fetchall() for query in queries]

    def purged(self) -> str:
        """When the texts were purged, in UTC; empty if they are there."""
        return self._only("SELECT max(time) FROM purges") or ""

    def purge(self, kept: str) -> None:
        """Delete, from the file's bytes too, all texts that went to or came from the assistant: messages,
        completions, label texts, prefixes, which keep their figures under a number, and what a server that failed
        said. May be repeated.

        Args:
            kept: the prefix that the product ships; it stays.
        """
        self._connection.execute("PRAGMA secure_delete = ON")
        if not self.purged():
            with self._connection as db:
                db.execute("UPDATE requests SET messages = ?", (GONE_MESSAGES,))
                db.execute("UPDATE completions SET text = ?, result = ?", (GONE_TEXT, GONE_TEXT))
                db.execute("UPDATE label_text_scores SET texts = '{}'")
                db.execute("UPDATE runs SET label_texts = NULL")
                prefixes = db.execute(
                    "SELECT text FROM (SELECT prefix AS text, id FROM scores UNION ALL SELECT chosen, 1e9 FROM rounds)"
                    " WHERE text NOT IN ('', ?) GROUP BY text ORDER BY min(id)",
                    (kept,),
                ).fetchall()
                for number, (text,) in enumerate(prefixes, start=1):
                    db.execute("UPDATE scores SET prefix = ? WHERE prefix = ?", (f"(purged {number})", text))
                    db.execute("UPDATE rounds SET chosen = ? WHERE chosen = ?", (f"(purged {number})", text))
                db.execute("INSERT INTO purges DEFAULT VALUES")
        with self._connection as db:
            db.execute("UPDATE runs SET ended_by = substr(ended_by, 1, instr(ended_by || ': ', ': ') - 1)")
        self._connection.execute("VACUUM")

    def cost(self) -> Mapping[str, int | None]:
        """Completions asked for, and their tokens; None where the assistant did not count them all."""
        ((completions, counted, prompt, completion),) = self._connection.execute(
            "SELECT count(*), count(prompt_tokens), sum(prompt_tokens), sum(completion_tokens) FROM completions"
        )
        if completions != counted:
            prompt = completion = None
        return {"completions": completions, "prompt_tokens": prompt, "completion_tokens": completion}

    def spent(self, before: int) -> dict[str, int]:
        """The `calls`, `tokens` and `trials` of `BudgetConfig` that the rounds before this one took."""
        ((calls, tokens),) = self._connection.execute(
            "SELECT count(*), coalesce(sum(coalesce(c.prompt_tokens, length(CAST(r.messages AS BLOB)))"
            " + coalesce(c.completion_tokens, length(CAST(c.text AS BLOB)))), 0)"
            " FROM completions c JOIN requests r ON r.id = c.request_id WHERE r.round < ?",
            (before,),
        )
        trials = self._only("SELECT count(DISTINCT prefix) FROM scores WHERE round < ? AND prefix <> ''", (before,))
        return {"calls": calls, "tokens": tokens, "trials": trials}

    def search_seconds(self) -> float:
        """Of all rounds and fine-tunings of the assistant."""
        both = "SELECT seconds FROM rounds UNION ALL SELECT seconds FROM dialogue_gradient_steps"
        return float(self._only(f"SELECT total(seconds) FROM ({both})"))

    def rounds(self) -> list[tuple[int, str, int, float]]:
        """(number, chosen prefix, prefixes scored, seconds) of each round."""
        scored = "SELECT count(*) FROM scores WHERE round = number AND prefix <> ''"
        return list(self._connection.execute(f"SELECT number, chosen, ({scored}), seconds FROM rounds ORDER BY number"))

    def close(self) -> None:
        self._connection.close()


def open_existing(run: Path) -> History:
    """The history of an earlier run.

    Raises:
        InputError: if there is none.
    """
    if not (run / HISTORY_FILE).is_file():
        raise InputError("no history here", where=str(run / HISTORY_FILE), fix="Give the directory of a run")
    return History(run / HISTORY_FILE)


def open_with_texts(run: Path) -> History:
    """The history of an earlier run that still has its texts.

    Raises:
        InputError: if there is none, or it was purged.
    """
    history = open_existing(run)
    if time := history.purged():
        history.close()
        where = str(run / HISTORY_FILE)
        raise InputError(f"the texts of this run were purged ({time})", where=where, fix="Use another run")
    return history
