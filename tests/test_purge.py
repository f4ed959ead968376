"""`gpta-local purge`: what the assistant was told and said is in no byte of the run any more, and the
rest goes on working."""

from __future__ import annotations

import json
import os
import re
import resource
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audited import SAID, copy, entries, files_with
from commands import assert_refused, invoke

from gpta_local.record import purge
from gpta_local.record.audit import Audit
from gpta_local.record.entries import LOG, read_log
from gpta_local.record.history import History, open_existing
from gpta_local.schema import Completion

ASKED = ("Write one new short text", "You help to train")


@pytest.fixture(scope="module")
def run(audited_run: Path) -> Path:
    """A finished run, which no test changes."""
    return audited_run


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return copy(run, tmp_path)


@pytest.fixture(scope="module")
def purged(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy(run, tmp_path_factory.mktemp("copies"))
    result = invoke("purge", folder, "--yes")
    assert result.exit_code == 0, result.output
    (folder.parent / "stdout").write_text(result.stdout, encoding="utf-8")
    return folder


def unshipped(run: Path) -> list[str]:
    """Words of completions that are not in the prefix of the product."""
    shipped = summary_of(run)["prefix"]
    return [word for word in SAID if word not in shipped]


def verify(run: Path, *options: str) -> tuple[int, str]:
    result = invoke("audit", "verify", run, *options)
    return result.exit_code, result.output


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text("utf-8"))
    return found


def write_summary(run: Path, **changes: Any) -> None:
    (run / "summary.json").write_text(json.dumps(summary_of(run) | changes), encoding="utf-8")


def execute(run: Path, statement: str) -> None:
    with closing(sqlite3.connect(run / "history.sqlite")) as connection, connection:
        connection.execute(statement)


class TestWhatIsGone:
    def test_no_byte_of_a_purged_run_holds_the_words_that_a_run_holds(self, run: Path, purged: Path) -> None:
        assert "history.sqlite" in files_with(run, SAID)
        assert files_with(run, ASKED) == ["history.sqlite"]
        assert len(unshipped(purged)) >= len(SAID) - 1
        assert files_with(purged, (*unshipped(purged), *ASKED)) == []

    def test_free_pages_of_the_database_hold_nothing(self, purged: Path) -> None:
        with sqlite3.connect(purged / "history.sqlite") as db:
            assert db.execute("PRAGMA freelist_count").fetchone() == (0,)
        assert not list(purged.glob("history.sqlite-*"))

    def test_prefixes_of_the_losses_are_gone_and_the_losses_stay(self, copied: Path) -> None:
        lines = [
            {"title": "training without a prefix", "prefix": "", "losses": [1.0]},
            {"title": 'training with "Vorlax note:"', "prefix": "Vorlax note:", "losses": [0.5]},
        ]
        cut = '{"title": "training with \\"Quim'
        text = "".join(json.dumps(line) + "\n" for line in lines) + cut
        (copied / "metrics.jsonl").write_text(text, encoding="utf-8")
        purge.purge(copied)
        left = [json.loads(line) for line in (copied / "metrics.jsonl").read_text("utf-8").splitlines()]
        assert left == [lines[0], {"title": 'training with "(purged)"', "prefix": "(purged)", "losses": [0.5]}]

    def test_what_a_server_said_when_it_failed_is_gone(self, copied: Path) -> None:
        failed = "The assistant failed in round 2 of 4: http://127.0.0.1: JSON that is no completion: Vorlax"
        with closing(open_existing(copied)) as history:
            history.end_search(failed)
        write_summary(copied, ended_by=failed)
        purge.purge(copied)
        with closing(open_existing(copied)) as history:
            reasons = history.ended_by(), summary_of(copied)["ended_by"]
        assert reasons == ("The assistant failed in round 2 of 4",) * 2
        assert files_with(copied, ["JSON that is no completion"]) == []

    def test_dialogues_and_logs_of_teaching_are_deleted_and_weights_stay(self, copied: Path) -> None:
        adapter = copied / "adapters" / "001"
        adapter.mkdir(parents=True)
        for path in (adapter / "dialogues.jsonl", adapter / "adapter_model.safetensors", copied / "adapters/002.log"):
            path.write_text("Vorlax", encoding="utf-8")
        done = purge.purge(copied)
        assert done.deleted == ["adapters/001/dialogues.jsonl", "adapters/002.log", "report.html", "report.md"]
        assert [path.name for path in (copied / "adapters").rglob("*")] == ["001", "adapter_model.safetensors"]
        assert any(line.startswith("adapters: ") for line in done.left)

    def test_files_that_are_written_anew_are_for_their_owner_only(self, copied: Path) -> None:
        before = os.umask(0o022)
        rewritten = purge.purge(copied).rewritten
        os.umask(before)
        assert rewritten == ["summary.json"]
        assert (copied / "summary.json").stat().st_mode & 0o777 == 0o600


class TestWhatStays:
    def test_shipped_prefix_keeps_its_text_and_others_their_figures(self, copied: Path) -> None:
        before = open_existing(copied).scored()
        write_summary(copied, prefix=before[1].text)
        purge.purge(copied)
        after = open_existing(copied).scored()
        texts = ["(purged 1)", before[1].text, *(f"(purged {n})" for n in range(2, len(after)))]
        assert after == [replace(s, text=text) for s, text in zip(before, texts, strict=True)]

    def test_summary_keeps_the_shipped_prefix_alone(self, copied: Path) -> None:
        contestants = [{"text": text, "gain": 0.5} for text in ("", "Vorlax note:", "Zandrik?")]
        selection = {**summary_of(copied)["selection"], "contestants": contestants}
        label_texts = [{"bad": "a jurmish visit", "good": "fine"}]
        write_summary(copied, prefix="Zandrik?", label_texts=label_texts, templates=["Vorlax:"], selection=selection)
        purge.purge(copied)
        after = summary_of(copied)
        assert [c["text"] for c in after["selection"]["contestants"]] == ["", "(purged)", "Zandrik?"]
        assert after["label_texts"] == [] and after["templates"] == []

    def test_figures_of_the_summary_stay(self, run: Path, purged: Path) -> None:
        before, after = summary_of(run), summary_of(purged)
        assert after["arms"] == before["arms"] and after["cost"] == before["cost"]

    def test_counts_and_tokens_stay(self, run: Path, purged: Path) -> None:
        costs = [open_existing(path).cost() for path in (run, purged)]
        assert costs[0] == costs[1]

    def test_model_is_the_same_and_works(self, run: Path, purged: Path, tmp_path: Path) -> None:
        data = run.parent / "test.jsonl"
        outputs = [invoke("predict", path, data).stdout for path in (run, purged)]
        assert outputs[0] == outputs[1] and len(outputs[0].splitlines()) == 24
        assert invoke("evaluate", purged).exit_code == 0
        assert invoke("export", purged, tmp_path / "model").exit_code == 0

    def test_history_says_that_it_was_purged_and_shows_the_gains(self, purged: Path) -> None:
        output = invoke("history", purged).stdout
        assert output.startswith("purged 20") and "(purged 1)" in output

    def test_what_was_deleted_and_what_is_left_is_told(self, purged: Path) -> None:
        output = (purged.parent / "stdout").read_text("utf-8")
        assert "the texts of 3 requests and 7 completions" in output
        assert "rewritten without texts: summary.json" in output
        for name in ("model", "summary.json", "config.yaml", "history.sqlite", "metrics.jsonl", LOG):
            assert f"left: {name}: " in output


class TestRefusals:
    def test_purged_run_cannot_be_replayed(self, purged: Path, run: Path, tmp_path: Path) -> None:
        setting = f"assistant={{backend: replay, run: {purged}}}"
        result = invoke("train", run.parent / "guests.yaml", "--set", setting, "--output", tmp_path / "again")
        assert_refused(result, "the texts of this run were purged", str(purged))
        assert not (tmp_path / "again").exists()

    def test_purged_run_cannot_teach(self, purged: Path, tmp_path: Path) -> None:
        result = invoke("assistant", "tune", purged, "--output", tmp_path / "adapter")
        assert_refused(result, "the texts of this run were purged")

    def test_no_run_is_refused(self, tmp_path: Path) -> None:
        assert_refused(invoke("purge", tmp_path, "--yes"), "no history here")

    @pytest.mark.parametrize(
        "content",
        [
            *("{", "[]", '{"prefix": ""}', '{"prefix": "", "selection": 3}'),
            pytest.param("[" * 100_000, id="nested"),
        ],
    )
    def test_broken_summary_is_refused_before_anything_is_deleted(self, copied: Path, content: str) -> None:
        (copied / "summary.json").write_text(content, encoding="utf-8")
        before = (copied / "history.sqlite").read_bytes()
        assert_refused(invoke("purge", copied, "--yes"), "not a summary", "Delete it")
        assert (copied / "history.sqlite").read_bytes() == before

    def test_run_that_still_goes_on_is_refused(self, copied: Path) -> None:
        audit = Audit(copied / LOG)
        assert_refused(invoke("purge", copied, "--yes"), "another process is writing this log")
        audit.close()
        assert files_with(copied, ASKED) == ["history.sqlite"]

    @pytest.mark.parametrize("answer", ["n\n", "\n"])
    def test_without_consent_nothing_is_deleted(self, copied: Path, answer: str) -> None:
        from click.testing import CliRunner

        from gpta_local.cli.main import main

        result = CliRunner().invoke(main, ["purge", str(copied)], input=answer)
        assert result.exit_code == 3 and "nothing was deleted" in result.output
        assert files_with(copied, ASKED) == ["history.sqlite"]
        assert verify(copied)[0] == 0 and entries(copied)[-1]["event"] == "finished"


class TestAudit:
    def test_log_tells_of_the_purge_and_stays_in_order(self, purged: Path) -> None:
        last = entries(purged)[-1]
        assert (last["event"], last["requests"], last["completions"]) == ("purged", 3, 7)
        code, output = verify(purged)
        assert code == 0 and "note: the texts of requests and completions are gone: purged" in output

    def test_head_of_before_is_recognised(self, run: Path, purged: Path) -> None:
        code, output = verify(purged, "--head", entries(run)[-1]["hash"])
        assert code == 0 and "the noted head is that of line 13; after it came line 14 (purged)" in output

    def test_new_head_is_printed_and_in_the_summary(self, purged: Path) -> None:
        head = entries(purged)[-1]["hash"]
        assert (purged.parent / "stdout").read_text("utf-8").splitlines()[-1] == f"audit head: {head}"
        assert summary_of(purged)["audit_head"] == head

    def test_entry_of_the_purge_that_is_cut_off_is_found(self, purged: Path, tmp_path: Path) -> None:
        cut = copy(purged, tmp_path)
        lines = (cut / LOG).read_bytes().splitlines(keepends=True)
        (cut / LOG).write_bytes(b"".join(lines[:-1]))
        code, output = verify(cut)
        assert code == 1 and "the log does not say so" in output and "cut off or changed" in output

    def test_text_and_prefix_that_are_put_in_after_a_purge_are_found(self, purged: Path, tmp_path: Path) -> None:
        changed = copy(purged, tmp_path)
        execute(changed, "UPDATE completions SET text = 'never said' WHERE id = 2")
        execute(changed, "UPDATE scores SET prefix = 'Never scored:' WHERE prefix = '(purged 1)'")
        code, output = verify(changed)
        assert code == 1 and "another completion 1 of request 2" in output
        assert "line 14 tells of other prefixes" in output

    def test_gains_that_were_forged_before_the_purge_are_found_after_it(self, copied: Path) -> None:
        execute(copied, "UPDATE scores SET gain = 9.9")
        purge.purge(copied)
        code, output = verify(copied)
        assert code == 1 and "line 13 tells of other figures" in output and "other prefixes" not in output

    def test_teaching_material_deleted_by_a_purge_that_was_interrupted_is_named_by_the_next(
        self, copied: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = (copied / LOG).read_bytes().splitlines(keepends=True)
        (copied / LOG).write_bytes(b"".join(log[:-1]))
        (copied / "summary.json").unlink()
        adapter = copied / "adapters" / "001"
        adapter.mkdir(parents=True)
        (adapter / "dialogues.jsonl").write_text("Vorlax", encoding="utf-8")
        audit = Audit(copied / LOG)
        audit.wrote(adapter)
        audit.close()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(History, "purge", interrupted)
            purge.purge(copied)
        assert "adapters/001/dialogues.jsonl, which is not there any more" in verify(copied)[1]
        purge.purge(copied)
        assert entries(copied)[-1]["deleted"] == ["adapters/001/dialogues.jsonl"]
        assert "dialogues.jsonl" not in verify(copied)[1]

    def test_texts_of_a_purged_run_are_shown_as_purged(self, purged: Path) -> None:
        full = invoke("audit", "show", purged, "--full").stdout
        assert full.count("\n    (purged)\n") == 3 and len(re.findall(r"\n    \d: \(purged\)", full)) == 7

    def test_second_purge_changes_nothing(self, purged: Path, tmp_path: Path) -> None:
        again = copy(purged, tmp_path)
        before = (again / LOG).read_bytes(), (again / "summary.json").read_bytes()
        result = invoke("purge", again, "--yes")
        assert result.exit_code == 0
        assert result.stdout.startswith("already purged 20") and "; nothing left to delete\n" in result.stdout
        assert "purged: the texts" not in result.stdout
        assert ((again / LOG).read_bytes(), (again / "summary.json").read_bytes()) == before

    def test_run_that_was_stopped_can_be_purged(self, copied: Path) -> None:
        (copied / "summary.json").unlink()
        log = (copied / LOG).read_bytes().splitlines(keepends=True)
        (copied / LOG).write_bytes(b"".join(log[:7]) + log[7][:50])
        assert invoke("purge", copied, "--yes").exit_code == 0
        assert set(files_with(copied, (*SAID, *ASKED))) <= {
            "README.md",
            "gpta.json",
            "prefix.txt",
            "tokenizer.json",
        }  # the model
        events = [line.entry.event for line in read_log(copied) if line.entry]
        assert events[-2:] == ["torn", "purged"]

    def test_run_of_a_version_without_a_log_can_be_purged(self, copied: Path) -> None:
        (copied / LOG).unlink()
        result = invoke("purge", copied, "--yes")
        assert result.exit_code == 0 and "audit head" not in result.stdout
        assert "warning: the run has no audit log, so nothing proves the purge" in result.stderr
        assert not (copied / LOG).exists() and files_with(copied, ASKED) == []


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


STEPS = {
    "before the summary is rewritten": (purge, "_rewrite", 2),
    "before the history is purged": (History, "purge", 1),
    "before the log is written": (Audit, "purged", 1),
    "before the head is in the summary": (purge, "_rewrite", 3),
}


@pytest.mark.parametrize("step", STEPS)
def test_purge_that_was_interrupted_can_be_run_again(copied: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    where, name, call = STEPS[step]
    original, calls = getattr(where, name), 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, interrupted)
        assert invoke("purge", copied, "--yes").exit_code == 3
    assert invoke("purge", copied, "--yes").exit_code == 0
    assert files_with(copied, (*unshipped(copied), *ASKED)) == []
    code, output = verify(copied)
    assert code == 0, output
    assert [entry["event"] for entry in entries(copied)].count("purged") == 1
    assert summary_of(copied)["audit_head"] == entries(copied)[-1]["hash"]


def test_disk_that_is_full_leaves_the_files_as_they_were(copied: Path) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            purge.purge(copied)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()} == before


def test_history_that_is_purged_but_not_yet_written_anew_is_written_anew_by_a_second_purge(copied: Path) -> None:
    history = History(copied / "history.sqlite")
    history.add_completions({1: [Completion("Vorlax " * 20000, "model")]})
    history._connection.set_authorizer(lambda action, *_: int(action == sqlite3.SQLITE_ATTACH))  # which VACUUM needs
    with pytest.raises(sqlite3.DatabaseError, match="denied"):
        history.purge("")
    history.close()
    assert files_with(copied, ASKED) == [] and "history.sqlite" not in files_with(copied, ["Vorlax"])
    size = (copied / "history.sqlite").stat().st_size
    purge.purge(copied)
    assert (copied / "history.sqlite").stat().st_size < size - 100_000
