"""The audit log: what it tells, that every tampering is found and its line named, and that it outlives
a crash in the middle of a line."""

from __future__ import annotations

import hashlib
import json
import random
import re
import resource
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audited import SAID, copy, entries, train
from commands import ROOT, assert_refused, invoke
from fault_server import FaultServer
from samples import SENTIMENT, Silent, sentiment_rows

from gpta_local.config import load
from gpta_local.errors import EndpointError, OutputError
from gpta_local.record.audit import Audit
from gpta_local.record.entries import GENESIS, LOG, canonical, hex_digest, split_lines
from gpta_local.record.verification import Problem, check_chain, check_ends
from gpta_local.run import loop
from gpta_local.schema import Completion, Message, Request, Sampling

REQUEST = Request("prefix", (Message("user", "Write one new prefix."),))


@pytest.fixture(scope="module")
def run(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("audited"), sentence)


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return copy(run, tmp_path)


def verify(run: Path, *options: str) -> tuple[int, str]:
    result = invoke("audit", "verify", run, *options)
    return result.exit_code, result.output


def of_kind(run: Path, event: str) -> list[dict[str, Any]]:
    return [entry for entry in entries(run) if entry["event"] == event]


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestWhatItTells:
    def test_finished_run_is_in_order(self, run: Path) -> None:
        code, output = verify(run)
        assert code == 0 and "in order" in output and "wrong" not in output

    def test_events_come_in_the_order_of_the_run(self, run: Path) -> None:
        opening = ["started", "data", "data", "backbone", "assistant"]
        dialogues = ["request", "completions"] * 3
        assert [entry["event"] for entry in entries(run)] == [*opening, *dialogues, "written", "finished"]

    def test_start_has_versions_and_the_configuration_without_the_card(self, run: Path) -> None:
        (start,) = of_kind(run, "started")
        assert {"gpta-local", "python", "torch", "transformers", "trl", "peft"} <= set(start["versions"])
        assert start["config"]["search"]["rounds"] == 2 and "card" not in start["config"]
        assert start["files"]["config.yaml"]["sha256"] == sha256_of(run / "config.yaml")

    def test_data_files_have_their_digests_and_sizes(self, run: Path) -> None:
        data = of_kind(run, "data")
        assert [entry["split"] for entry in data] == ["train", "test"]
        path = run.parent / "train.jsonl"
        digest = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        assert data[0]["path"] == str(path) and data[0]["files"] == {"train.jsonl": digest}

    def test_each_file_of_a_saved_folder_has_its_digest(self, sentence: Path, tmp_path: Path) -> None:
        from datasets import Dataset

        Dataset.from_list(sentiment_rows()).save_to_disk(tmp_path / "saved")
        run = train(tmp_path, sentence, {"data": {"train": "saved", "test": None}, "search": {"rounds": 1}})
        (data,) = of_kind(run, "data")
        written = {path.name: sha256_of(path) for path in (tmp_path / "saved").iterdir()}
        assert len(written) == 3
        assert {name: digest["sha256"] for name, digest in data["files"].items()} == written

    def test_local_assistant_has_the_digests_of_its_files(self, nano_assistant: Path, tmp_path: Path) -> None:
        audit = Audit(tmp_path / LOG)
        (tmp_path / "config.yaml").touch()
        audit.start(load(ROOT / "configs" / "quickstart" / "quickstart.yaml"))
        audit.close()
        (assistant,) = of_kind(tmp_path, "assistant")
        digests = {name: digest["sha256"] for name, digest in assistant["files"].items()}
        assert digests["model.safetensors"] == sha256_of(nano_assistant / "model.safetensors")
        assert "chat_template.jinja" in digests

    def test_backbone_has_the_digests_of_all_files_that_it_is_loaded_from(self, run: Path, sentence: Path) -> None:
        (backbone,) = of_kind(run, "backbone")
        files = [path for path in sentence.rglob("*") if path.suffix in (".json", ".safetensors", ".txt")]
        assert backbone["path"] == str(sentence)
        assert {name: digest["sha256"] for name, digest in backbone["files"].items()} == {
            path.relative_to(sentence).as_posix(): sha256_of(path) for path in files
        }
        assert {"model.safetensors", "1_Pooling/config.json"} <= set(backbone["files"])

    def test_weights_of_a_served_assistant_have_their_digests(self, tmp_path: Path) -> None:
        weights = tmp_path / "weights"
        for name in ("model.safetensors", "tokenizer.model", "parts/merges.txt", "README.md"):
            (weights / name).parent.mkdir(parents=True, exist_ok=True)
            (weights / name).write_bytes(name.encode())
        assistant = f"{{backend: vllm, base_url: 'http://127.0.0.1:9/v1', model: m, weights: {weights}}}"
        audit = Audit(tmp_path / LOG)
        (tmp_path / "config.yaml").touch()
        audit.start(load(ROOT / "configs" / "quickstart" / "quickstart.yaml", [f"assistant={assistant}"]))
        audit.close()
        (opened,) = of_kind(tmp_path, "assistant")
        assert (opened["model"], opened["endpoint"]) == ("m", "http://127.0.0.1:9/v1")
        assert {name: digest["sha256"] for name, digest in opened["files"].items()} == {
            name: sha256_of(weights / name) for name in ("model.safetensors", "tokenizer.model", "parts/merges.txt")
        }

    def test_requests_and_completions_have_the_digests_of_the_texts_in_the_history(self, run: Path) -> None:
        asked, answered = of_kind(run, "request"), of_kind(run, "completions")
        with sqlite3.connect(run / "history.sqlite") as db:
            messages = db.execute("SELECT messages FROM requests ORDER BY id").fetchall()
            texts = db.execute("SELECT text FROM completions ORDER BY id").fetchall()
        assert [e["text"]["sha256"] for e in asked] == [hex_digest(text.encode()) for (text,) in messages]
        digests = [digest for entry in answered for digest in entry["completions"]]
        assert [(d["sha256"], d["characters"]) for d in digests] == [(hex_digest(t.encode()), len(t)) for (t,) in texts]
        assert [(e["round"], e["kind"], e["completions"]) for e in asked] == [
            (0, "label-texts", 1),
            (1, "prefix", 3),
            (2, "prefix", 3),
        ]

    def test_every_file_of_the_model_has_its_digest(self, run: Path) -> None:
        (written,) = of_kind(run, "written")
        files = {path.relative_to(run).as_posix(): path for path in (run / "model").rglob("*") if path.is_file()}
        assert {name: digest["sha256"] for name, digest in written["files"].items()} == {
            name: sha256_of(path) for name, path in files.items()
        }

    def test_last_line_printed_and_summary_hold_the_head(self, run: Path) -> None:
        last = entries(run)[-1]["hash"]
        assert json.loads((run / "summary.json").read_text("utf-8"))["audit_head"] == last
        assert (run.parent / "stdout").read_text("utf-8").splitlines()[-1] == f"audit head: {last}"

    def test_no_text_of_a_row_a_request_or_a_completion_is_in_it(self, run: Path) -> None:

        log = (run / LOG).read_text("ascii")
        assert not [text for text, _ in SENTIMENT if text in log]
        assert not [word for word in (*SAID, "What guests of a restaurant", "Write one new") if word in log]

    def test_key_and_extra_fields_of_requests_are_in_no_entry(
        self, tmp_path: Path, sentence: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GPTA_TEST_KEY", "planted-key-5f1c")
        with FaultServer() as server:
            assistant = {"backend": "openai", "base_url": server.base_url, "model": "m", "run": None}
            secrets = {"api_key_env": "GPTA_TEST_KEY", "extra_body": {"tenant": "planted-tenant-77"}}
            run = train(tmp_path, sentence, {"assistant": {**assistant, **secrets}})
            assert all("planted-key-5f1c" in request.headers["authorization"] for request in server.received)
        (opened,) = of_kind(run, "assistant")
        assert (opened["endpoint"], opened["model"]) == (server.base_url, "m")
        assert "planted" not in (run / LOG).read_text("ascii")
        assert of_kind(run, "started")[0]["config"]["assistant"]["extra_body"] == ["tenant"]
        assert verify(run)[0] == 0

    def test_request_is_logged_before_it_is_sent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from gpta_local.assistant.local import LocalAssistant

        seen: list[list[str]] = []

        def unplugged(self: LocalAssistant, *_: object) -> list[Completion]:
            seen.append([entry["event"] for entry in entries(tmp_path / "run")])
            raise EndpointError("gone")

        monkeypatch.setattr(LocalAssistant, "complete", unplugged)
        settings = load(ROOT / "configs" / "quickstart" / "quickstart.yaml")
        with pytest.raises(EndpointError):
            loop.Run(settings, Silent()).run(tmp_path / "run")
        assert [events[-2:] for events in seen] == [["assistant", "request"], ["request", "request"]]

    def test_change_of_the_adapter_is_logged_once_with_its_digest(self, tmp_path: Path) -> None:
        audit = Audit(tmp_path / LOG)
        adapter = tmp_path / "adapters" / "001"
        adapter.mkdir(parents=True)
        (adapter / "adapter_model.safetensors").write_bytes(b"weights")
        audit.wrote(adapter)
        for number, used in enumerate((None, adapter, adapter, None), start=1):
            audit.asked(number, 1, REQUEST, 2, Sampling(), used)
        audit.close()
        events = [entry["event"] for entry in entries(tmp_path)]
        assert events == ["written", "request", "adapter", "request", "request", "adapter", "request"]
        assert [(e["name"], e["sha256"]) for e in of_kind(tmp_path, "adapter")] == [
            ("001", hex_digest(b"weights")),
            ("", ""),
        ]
        assert [e["adapter"] for e in of_kind(tmp_path, "request")] == ["", "001", "001", ""]


Tampering = Callable[[list[bytes], random.Random], tuple[bytes, int]]
"""Lines → content, and the line that must be named."""


def flip(lines: list[bytes], rng: random.Random) -> tuple[bytes, int]:
    place = rng.randrange(len(lines))
    line = bytearray(lines[place])
    line[rng.randrange(len(line))] ^= 1 << rng.randrange(8)
    return b"".join([*lines[:place], bytes(line), *lines[place + 1 :]]), place + 1


def delete(lines: list[bytes], rng: random.Random) -> tuple[bytes, int]:
    place = rng.randrange(len(lines))
    return b"".join(lines[:place] + lines[place + 1 :]), place + 1


def swap(lines: list[bytes], rng: random.Random) -> tuple[bytes, int]:
    first, second = sorted(rng.sample(range(len(lines)), 2))
    swapped = [*lines]
    swapped[first], swapped[second] = lines[second], lines[first]
    return b"".join(swapped), first + 1


def duplicate(lines: list[bytes], rng: random.Random) -> tuple[bytes, int]:
    source, place = rng.randrange(len(lines)), rng.randrange(len(lines) + 1)
    where = place + 2 if place == source else place + 1  # a copy before its source: the source is the repetition
    return b"".join([*lines[:place], lines[source], *lines[place:]]), where


def truncate(lines: list[bytes], rng: random.Random) -> tuple[bytes, int]:
    content = b"".join(lines)
    kept = content[: rng.randrange(len(content))]
    return kept, kept.count(b"\n") + 1


def insert(lines: list[bytes], rng: random.Random) -> tuple[bytes, int]:
    place = rng.randrange(len(lines) + 1)
    made = rng.choice(
        [b"\n", b"{}\n", b"null\n", b"[]\n", b"[1]\n", b'"x"\n', b"7\n", rng.randbytes(20).replace(b"\n", b"") + b"\n"]
    )
    return b"".join([*lines[:place], made, *lines[place:]]), place + 1


def respace(lines: list[bytes], rng: random.Random) -> tuple[bytes, int]:
    """The same JSON, written otherwise."""
    place = rng.randrange(len(lines))
    line = lines[place].replace(b'":', rng.choice([b'": ', b'" :', b'":\t']), rng.randint(1, 4))
    return b"".join([*lines[:place], line, *lines[place + 1 :]]), place + 1


def rehash(lines: list[bytes], rng: random.Random) -> tuple[bytes, int]:
    """A line is changed and given the hash that it should have; the one after tells."""
    place = rng.randrange(len(lines) - 1)
    entry = json.loads(lines[place])
    entry["time"] = f"2020-01-01T00:00:{rng.randrange(60):02d}.000+00:00"
    return b"".join([*lines[:place], hashed(entry), *lines[place + 1 :]]), place + 2


def hashed(entry: dict[str, Any]) -> bytes:
    del entry["hash"]
    return canonical({**entry, "hash": hex_digest(canonical(entry))}) + b"\n"


def problems(content: bytes) -> list[Problem]:
    lines = split_lines(content)
    return [*check_chain(lines), *check_ends([(line.number, line.entry) for line in lines if line.entry])]


KINDS = (flip, delete, swap, duplicate, truncate, insert, respace, rehash)


@pytest.mark.parametrize("tamper", KINDS, ids=lambda kind: kind.__name__)
def test_every_tampering_is_found_and_its_line_named(run: Path, tamper: Tampering) -> None:
    content = (run / LOG).read_bytes()
    assert problems(content) == []
    rng = random.Random(f"tamper {tamper.__name__}")
    results: Counter[str] = Counter()
    for _ in range(400):
        tampered, line = tamper(content.splitlines(keepends=True), rng)
        found = problems(tampered)
        results["found" if found else "missed"] += 1
        results["named" if found and min(problem.line for problem in found) == line else "misnamed"] += 1
    assert results == {"found": 400, "named": 400}


def test_every_bit_of_a_line_counts(run: Path) -> None:
    shortest = min((run / LOG).read_bytes().splitlines(keepends=True), key=len)
    for byte in range(len(shortest)):
        for bit in range(8):
            line = bytearray(shortest)
            line[byte] ^= 1 << bit
            assert split_lines(bytes(line))[0].entry is None, (byte, bit)


class TestVerify:
    def change(self, run: Path, statement: str) -> None:
        connection = sqlite3.connect(run / "history.sqlite")
        connection.execute(statement)
        connection.commit()
        connection.close()

    @pytest.mark.parametrize(
        ("statement", "words"),
        [
            ("UPDATE requests SET messages = replace(messages, 'guests', 'hosts') WHERE id = 2", "line 8 .*request 2"),
            ("UPDATE requests SET round = 2 WHERE id = 2", "line 8 .*request 2"),
            ("UPDATE requests SET messages = '[]' WHERE id = 2", "line 8 .*request 2"),
            ("UPDATE completions SET text = 'Zandrik!' WHERE text = 'Zandrik?'", "line 11 .*completion 1 of request 3"),
            ("DELETE FROM completions WHERE text = 'Zandrik?'", "line 11 .*3 completions of request 3.*holds 2"),
            ("INSERT INTO requests VALUES (9, 1, 'prefix', '[]', '{}', 'now', '')", "holds request 9"),
            ("UPDATE completions SET text = X'00ff' WHERE text = 'Zandrik?'", "line 11 .*completion 1 of request 3"),
            ("UPDATE requests SET messages = X'00' WHERE id = 2", "line 8 .*request 2"),
            ("UPDATE scores SET gain = 9.9", "line 13 tells of other figures"),
            ("UPDATE scores SET gain = X'00'", "line 13 tells of other figures"),
            ("UPDATE rounds SET seconds = 1", "line 13 tells of other figures"),
            ("UPDATE runs SET card = replace(card, 'guests', 'hosts')", "line 13 tells of other figures"),
            ("UPDATE completions SET outcome = 'accepted'", "line 13 tells of other figures"),
            ("INSERT INTO proposal_figures VALUES (99, 1, '', 3, 3, 3, 9.9)", "line 13 tells of other figures"),
            (
                "INSERT INTO dialogue_gradient_steps VALUES ('001', 1, 'sft', 1, '[]', 1, 'kept')",
                "line 13 tells of other figures",
            ),
            ("UPDATE scores SET prefix = 'Never scored:'", "line 13 tells of other prefixes"),
            ("UPDATE completions SET result = 'never said'", "line 13 tells of other prefixes"),
            ("INSERT INTO purges VALUES ('2026')", "purged 2026, and the log does not say so"),
        ],
    )
    def test_changed_history_is_found(self, copied: Path, statement: str, words: str) -> None:
        self.change(copied, statement)
        code, output = verify(copied)
        assert code == 1 and re.search(words, output), output

    @pytest.mark.parametrize("content", [None, b"SQLite format 3\0 but no more than that"])
    def test_missing_or_broken_history_is_found(self, copied: Path, content: bytes | None) -> None:
        (copied / "history.sqlite").unlink()
        if content is not None:
            (copied / "history.sqlite").write_bytes(content)
        code, output = verify(copied)
        assert code == 1 and "the texts cannot be checked" in output

    def test_history_whose_version_was_changed_is_found(self, copied: Path) -> None:
        self.change(copied, "PRAGMA user_version = 1")
        code, output = verify(copied)
        assert code == 1 and "wrong: the texts cannot be checked" in output

    @pytest.mark.parametrize("name", ["model/model.safetensors", "model/prefix.txt", "config.yaml", "metrics.jsonl"])
    def test_changed_file_is_found(self, copied: Path, name: str) -> None:
        content = bytearray((copied / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copied / name).write_bytes(content)
        code, output = verify(copied)
        assert code == 1 and f"another file {name} than is here" in output

    def test_file_that_was_added_to_the_model_is_found(self, copied: Path) -> None:
        (copied / "model" / "modeling_custom.py").write_text("print()", encoding="utf-8")
        code, output = verify(copied)
        assert code == 1 and "model/modeling_custom.py is here" in output

    @pytest.mark.parametrize(
        ("name", "line"),
        [("model/model.safetensors", 12), ("config.yaml", 1), ("metrics.jsonl", 13), ("summary.json", 13)],
    )
    def test_file_that_was_deleted_is_found(self, copied: Path, name: str, line: int) -> None:
        (copied / name).unlink()
        code, output = verify(copied)
        assert code == 1 and f"wrong: line {line} tells of {name}, which is not there any more" in output
        assert output.splitlines()[-1].startswith("1 problem: ")

    @pytest.mark.parametrize(
        ("name", "words"),
        [("summary.json", "summary.json cannot be read"), ("config.yaml", "line 1 tells of config.yaml, which cannot")],
    )
    def test_file_that_cannot_be_read_is_a_problem_among_others(self, copied: Path, name: str, words: str) -> None:
        (copied / name).unlink()
        (copied / name).symlink_to("/proc/self/mem")  # which gives an error to everyone who reads it
        (copied / "model" / "prefix.txt").unlink()
        code, output = verify(copied)
        assert code == 1 and f"wrong: {words}" in output and "2 problems: " in output

    def test_changed_figure_of_the_summary_is_found(self, copied: Path) -> None:
        summary = json.loads((copied / "summary.json").read_text("utf-8"))
        summary["arms"]["gpta"]["accuracy"] = 0.99
        (copied / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        code, output = verify(copied)
        assert code == 1 and "line 13 tells of another summary.json" in output

    @pytest.mark.parametrize("content", ["{", "[]", "{}"])
    def test_broken_summary_is_found(self, copied: Path, content: str) -> None:
        (copied / "summary.json").write_text(content, encoding="utf-8")
        assert verify(copied)[0] == 1

    def test_end_that_was_cut_off_is_found_by_its_absence_and_by_the_summary(self, copied: Path) -> None:
        lines = (copied / LOG).read_bytes().splitlines(keepends=True)
        (copied / LOG).write_bytes(b"".join(lines[:-1]))
        code, output = verify(copied)
        assert code == 1
        assert "line 13 should tell of the end of the run: it did not finish, or the end was cut off" in output
        assert "no entry has the head that summary.json holds" in output

    def test_log_written_anew_is_found_by_the_noted_head_only(self, copied: Path) -> None:
        head = entries(copied)[-1]["hash"]
        forged, previous = [], GENESIS
        for entry in entries(copied):
            changed = {**entry, "previous": previous, "time": "2020-01-01T00:00:00.000+00:00"}
            forged.append(hashed(changed))
            previous = json.loads(forged[-1])["hash"]
        (copied / LOG).write_bytes(b"".join(forged))
        summary = json.loads((copied / "summary.json").read_text("utf-8"))
        (copied / "summary.json").write_text(json.dumps({**summary, "audit_head": previous}), encoding="utf-8")
        assert verify(copied)[0] == 0
        code, output = verify(copied, "--head", head)
        assert code == 1 and "no entry has the noted head" in output

    def test_noted_head_is_recognised(self, run: Path) -> None:
        code, output = verify(run, "--head", entries(run)[-1]["hash"])
        assert code == 0 and "the noted head is that of line 13, the last" in output

    def test_entry_after_the_end_is_found(self, copied: Path) -> None:
        audit = Audit(copied / LOG)
        audit.answered(3, [])
        audit.close()
        code, output = verify(copied)
        assert code == 1 and "line 14 comes after the end of the run" in output

    def test_entry_of_an_unknown_form_is_found(self, copied: Path) -> None:
        lines = (copied / LOG).read_bytes().splitlines(keepends=True)
        (copied / LOG).write_bytes(b"".join([*lines[:5], hashed({**json.loads(lines[5]), "more": 1}), *lines[6:]]))
        code, output = verify(copied)
        assert code == 1 and "line 6 is no entry that this version of gpta-local knows" in output

    def test_empty_log_is_found(self, copied: Path) -> None:
        (copied / LOG).write_bytes(b"")
        assert verify(copied)[0] == 1

    def test_control_characters_of_a_log_do_not_reach_the_terminal(self, copied: Path) -> None:
        log = entries(copied)
        (written,) = of_kind(copied, "written")
        written["files"] = {"model/\x1b[2Jnew": {"sha256": "0" * 64, "bytes": 1}}
        log[-2], log[-1]["time"] = written, "2020\x1b[8m"
        (copied / LOG).write_bytes(b"".join(map(hashed, log)))
        (copied / "model" / "\x1b[3Jfile").touch()
        code, output = verify(copied)
        assert code == 1 and "\x1b" not in output
        assert "wrong: line 12 tells of model/\\x1b[2Jnew, which is not there any more" in output
        assert "wrong: model/\\x1b[3Jfile is here" in output
        assert "to 2020\\x1b[8m\n" in output

    def test_directory_without_a_log_is_refused(self, tmp_path: Path) -> None:
        assert_refused(invoke("audit", "verify", tmp_path), "no audit log here", str(tmp_path))
        assert_refused(invoke("audit", "show", tmp_path), "no audit log here")

    def test_noted_head_may_have_capitals_and_blanks_around_it(self, run: Path) -> None:
        code, output = verify(run, "--head", f" {entries(run)[-1]['hash'].upper()}\n")
        assert code == 0 and "the noted head is that of line 13" in output

    @pytest.mark.parametrize("head", ["12ab", "", " "])
    def test_head_that_is_none_is_refused(self, run: Path, head: str) -> None:
        result = invoke("audit", "verify", run, "--head", head)
        assert result.exit_code == 2 and "64 digits" in result.output


class TestShow:
    def test_each_entry_is_a_line(self, run: Path) -> None:
        lines = invoke("audit", "show", run).stdout.splitlines()
        assert [line.split()[1] for line in lines] == [entry["event"] for entry in entries(run)]
        assert "replay" in lines[4] and "round 1: prefix × 3" in lines[7]

    def test_texts_are_shown_where_asked_for(self, run: Path) -> None:
        assert "Quimbel" not in invoke("audit", "show", run).stdout
        full = invoke("audit", "show", run, "--full").stdout
        assert "    2: Quimbel of guests:" in full and "Write one new prefix" in full

    def test_control_characters_of_a_completion_do_not_reach_the_terminal(self, copied: Path) -> None:
        TestVerify().change(copied, "UPDATE completions SET text = char(27) || '[2J' WHERE text = 'Zandrik?'")
        full = invoke("audit", "show", copied, "--full").stdout
        assert "\x1b" not in full and "\\x1b[2J" in full

    def test_blobs_in_the_place_of_texts_are_named(self, copied: Path) -> None:
        TestVerify().change(copied, "UPDATE completions SET text = X'00ff' WHERE text = 'Zandrik?'")
        TestVerify().change(copied, "UPDATE requests SET messages = X'00' WHERE id = 2")
        full = invoke("audit", "show", copied, "--full")
        assert full.exit_code == 0 and full.stdout.count("(the history was changed: this is no text)") == 2

    @pytest.mark.parametrize("content", [b"", b"\x00\xff\x1b[2J", b"[]\n"])
    def test_log_without_any_entry_is_said_to_be_none(self, copied: Path, content: bytes) -> None:
        (copied / LOG).write_bytes(content)
        result = invoke("audit", "show", copied)
        assert result.exit_code == 1 and "no whole entry is in this log" in result.stderr

    def test_line_that_was_changed_is_shown_as_such(self, copied: Path) -> None:
        lines = (copied / LOG).read_bytes().splitlines(keepends=True)
        (copied / LOG).write_bytes(b"".join([*lines[:2], b"{}\n", *lines[3:]]))
        assert invoke("audit", "show", copied).stdout.splitlines()[2].startswith("line 3 was changed")


KEEP_APPENDING = """
import sys
from pathlib import Path
from gpta_local.record.audit import Audit
audit = Audit(Path(sys.argv[1]))
while True:
    audit.answered(1, [])
    print("appended")
"""
KILLED_IN_A_LINE = """
import io, os, signal, sys
from pathlib import Path
from gpta_local.record.audit import Audit

class Killed(io.FileIO):
    def write(self, line):
        super().write(line[: int(sys.argv[2])])
        os.kill(os.getpid(), signal.SIGKILL)

audit = Audit(Path(sys.argv[1]))
audit.answered(7, [])
audit._file.close()
audit._file = Killed(sys.argv[1], "ab")
audit.answered(8, [])
"""


def whole_entries(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line.raw) for line in split_lines(log.read_bytes()) if line.entry]


class TestCrash:
    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        audit = Audit(tmp_path / LOG)
        for number in range(3):
            audit.answered(number, [Completion("text", "model")])
        audit.close()
        return tmp_path / LOG

    def chain(self, log: Path) -> list[Problem]:
        return check_chain(split_lines(log.read_bytes()))

    def test_torn_line_is_named_and_gone_on_from_wherever_it_is_torn(self, log: Path) -> None:
        whole = log.read_bytes()
        start = whole.rindex(b"\n", 0, -1) + 1
        for end in range(start + 1, len(whole) - 1, 7):
            log.write_bytes(whole[:end])
            assert self.chain(log) == [Problem(3, "is cut off in the middle")]
            audit = Audit(log)
            audit.answered(9, [])
            audit.close()
            assert self.chain(log) == []
            events = [line.entry.event if line.entry else "" for line in split_lines(log.read_bytes())]
            assert events == ["completions", "completions", "", "torn", "completions"]

    def test_line_that_lacks_its_newline_only_is_completed(self, log: Path) -> None:
        whole = log.read_bytes()
        log.write_bytes(whole[:-1])
        assert self.chain(log) == [Problem(3, "is cut off in the middle")]
        Audit(log).close()
        assert log.read_bytes() == whole

    def test_line_that_is_torn_while_a_torn_line_is_recorded_is_gone_on_from(self, log: Path) -> None:
        log.write_bytes(log.read_bytes()[:-20])
        Audit(log).close()
        log.write_bytes(log.read_bytes()[:-20])
        audit = Audit(log)
        audit.close()
        assert self.chain(log) == []
        assert json.loads(log.read_bytes().splitlines()[-1])["lines"][1]["line"] == 4

    def test_torn_line_that_was_changed_later_is_found(self, log: Path) -> None:
        log.write_bytes(log.read_bytes()[:-20])
        Audit(log).close()
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join([*lines[:2], lines[2].replace(b"model", b"other"), lines[3]]))
        assert self.chain(log)[0].line == 3

    def test_disk_that_fills_up_in_the_middle_of_a_line_is_an_error_and_gone_on_from(self, log: Path) -> None:
        room = log.stat().st_size + 1000

        def small_disk() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

        command = [sys.executable, "-c", KEEP_APPENDING, str(log)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=small_disk)
        assert done.returncode == 1 and "OSError" in done.stderr
        assert log.stat().st_size == room and not log.read_bytes().endswith(b"\n")
        assert done.stdout.splitlines() == ["appended"] * (len(whole_entries(log)) - 3)
        Audit(log).close()
        assert self.chain(log) == []

    @pytest.mark.parametrize("written", [0, 1, 100, -1, 10**6])
    def test_process_killed_while_it_writes_a_line_leaves_a_log_to_go_on_from(self, log: Path, written: int) -> None:
        command = [sys.executable, "-c", KILLED_IN_A_LINE, str(log), str(written)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
        torn = not log.read_bytes().endswith(b"\n")
        assert torn == (written not in (0, 10**6))
        assert [problem.line for problem in self.chain(log)] == [5] * torn
        audit = Audit(log)
        audit.answered(9, [])
        audit.close()
        assert self.chain(log) == []
        assert [entry["request"] for entry in whole_entries(log) if entry["event"] == "completions"] == [
            *(0, 1, 2, 7),
            *((8,) if written in (-1, 10**6) else ()),
            9,
        ]

    def test_second_writer_is_refused(self, log: Path) -> None:
        audit = Audit(log)
        with pytest.raises(OutputError, match="another process"):
            Audit(log)
        audit.close()
        Audit(log).close()
