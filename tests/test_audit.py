"""The audit log: what it tells, that every tampering is found and its line named, and that it outlives
a crash in the middle of a line."""

from __future__ import annotations

import hashlib
import json
import random
import re
import resource
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from audited import SAID, copy, entries
from chat_models import tiny_chat_llama
from commands import assert_refused, invoke
from fault_server import FaultServer, Json, Reply, completion
from samples import SENTIMENT, record_replies, sentiment_rows, write_config, write_jsonl

from gpta_local.config import load
from gpta_local.errors import OutputError
from gpta_local.record.audit import Audit
from gpta_local.record.entries import GENESIS, LOG, canonical, hex_digest, split_lines
from gpta_local.record.verification import Problem, check_chain, check_ends
from gpta_local.schema import Completion, Message, Request, Sampling

REQUEST = Request("prefix", (Message("user", "Write one new prefix."),))


@pytest.fixture
def run(audited_run: Path) -> Path:
    """A finished run, which no test changes."""
    return audited_run


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


def digests(entry: dict[str, Any]) -> dict[str, str]:
    return {name: digest["sha256"] for name, digest in entry["files"].items()}


def digests_below(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def started(folder: Path, changes: dict[str, Any]) -> Path:
    """A run of which the log tells nothing but its start."""
    write_jsonl(folder / "train.jsonl", sentiment_rows())
    record_replies(folder / "record", [], [])
    replay = {"assistant": {"backend": "replay", "run": "record"}}
    config = write_config(folder / "config.yaml", replay | changes)
    with closing(Audit(folder / LOG)) as audit:
        audit.start(load(config))
    return folder


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
        assert digests(start) == {"config.yaml": sha256_of(run / "config.yaml")}

    def test_data_files_have_their_digests_and_sizes(self, run: Path) -> None:
        train, test = of_kind(run, "data")
        path = run.parent / "train.jsonl"
        assert (train["split"], test["split"], train["path"]) == ("train", "test", str(path))
        assert train["files"] == {"train.jsonl": {"sha256": sha256_of(path), "bytes": path.stat().st_size}}

    def test_each_file_of_a_saved_folder_has_its_digest(self, tmp_path: Path) -> None:
        from datasets import Dataset

        Dataset.from_list(sentiment_rows()).save_to_disk(tmp_path / "saved")
        (data,) = of_kind(started(tmp_path, {"data": {"train": "saved"}}), "data")
        assert digests(data) == digests_below(tmp_path / "saved") and len(data["files"]) == 3

    def test_local_assistant_has_the_digests_of_its_files(self, tmp_path: Path) -> None:
        llama = tiny_chat_llama(tmp_path / "llama")
        run = started(tmp_path, {"assistant": {"backend": "local", "model": str(llama)}})
        (assistant,) = of_kind(run, "assistant")
        assert digests(assistant) == digests_below(llama)
        assert {"model.safetensors", "chat_template.jinja"} <= set(assistant["files"])

    def test_served_assistant_has_the_digests_of_its_weights_and_neither_key_nor_extra_fields(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GPTA_TEST_KEY", "planted-key-5f1c")
        weights = tmp_path / "weights"
        for name in ("model.safetensors", "tokenizer.model", "parts/merges.txt", "README.md"):
            (weights / name).parent.mkdir(parents=True, exist_ok=True)
            (weights / name).write_bytes(name.encode())
        served = {"backend": "vllm", "base_url": "http://127.0.0.1:9/v1", "model": "m", "weights": str(weights)}
        secrets = {"api_key_env": "GPTA_TEST_KEY", "extra_body": {"tenant": "planted-tenant-77"}}
        run = started(tmp_path, {"assistant": {**served, **secrets}})
        (opened,) = of_kind(run, "assistant")
        assert (opened["model"], opened["endpoint"]) == ("m", "http://127.0.0.1:9/v1")
        assert digests(opened) == {n: d for n, d in digests_below(weights).items() if n != "README.md"}
        assert of_kind(run, "started")[0]["config"]["assistant"]["extra_body"] == ["tenant"]
        assert "planted" not in (run / LOG).read_text("ascii")

    def test_backbone_has_the_digests_of_all_files_that_it_is_loaded_from(self, run: Path, sentence: Path) -> None:
        (backbone,) = of_kind(run, "backbone")
        assert backbone["path"] == str(sentence)
        assert digests(backbone) == digests_below(sentence)
        assert {"model.safetensors", "1_Pooling/config.json"} <= set(backbone["files"])

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
        assert digests(written) == {f"model/{name}": digest for name, digest in digests_below(run / "model").items()}

    def test_last_line_printed_and_summary_hold_the_head(self, run: Path) -> None:
        last = entries(run)[-1]["hash"]
        assert json.loads((run / "summary.json").read_text("utf-8"))["audit_head"] == last
        assert (run.parent / "stdout").read_text("utf-8").splitlines()[-1] == f"audit head: {last}"

    def test_no_text_of_a_row_a_request_or_a_completion_is_in_it(self, run: Path) -> None:
        log = (run / LOG).read_text("ascii")
        assert not [text for text, _ in SENTIMENT if text in log]
        assert not [word for word in (*SAID, "What guests of a restaurant", "Write one new") if word in log]

    def test_request_is_logged_before_it_is_sent(self, tmp_path: Path, sentence: Path) -> None:
        seen: list[list[str]] = []

        def unplugged(body: Json) -> Reply:
            if not (tmp_path / "run").exists():  # the request that tries the endpoint
                return Reply(body=completion("yes"))
            seen.append([entry["event"] for entry in entries(tmp_path / "run")])
            return Reply(500)

        write_jsonl(tmp_path / "train.jsonl", sentiment_rows())
        with FaultServer(unplugged) as server:
            assistant = {"backend": "openai", "base_url": server.base_url, "model": "m", "max_retries": 0}
            changes = {"assistant": assistant, "downstream": {"backbone": str(sentence)}}
            invoke("train", write_config(tmp_path / "guests.yaml", changes), "--output", tmp_path / "run")
        assert [events[-2:] for events in seen] == [["completions", "request"]]
        (check,), (first, *_) = of_kind(tmp_path / "run", "check"), of_kind(tmp_path / "run", "request")
        assert check["number"] < first["number"], "what was sent before there was a log is told first"
        assert check["text"] == first["text"] and [c["sha256"] for c in check["completions"]] == [hex_digest(b"yes")]
        assert "sent before this log: label-texts" in invoke("audit", "show", tmp_path / "run").output

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
    return replaced(lines, place, bytes(line)), place + 1


def delete(lines: list[bytes], rng: random.Random) -> tuple[bytes, int]:
    place = rng.randrange(len(lines))
    return replaced(lines, place, b""), place + 1


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
    made = rng.choice([b"", b"{}", b"null", b"[]", b"[1]", b'"x"', b"7", rng.randbytes(20).replace(b"\n", b"")])
    return b"".join([*lines[:place], made + b"\n", *lines[place:]]), place + 1


def respace(lines: list[bytes], rng: random.Random) -> tuple[bytes, int]:
    """The same JSON, written otherwise."""
    place = rng.randrange(len(lines))
    line = lines[place].replace(b'":', rng.choice([b'": ', b'" :', b'":\t']), rng.randint(1, 4))
    return replaced(lines, place, line), place + 1


def rehash(lines: list[bytes], rng: random.Random) -> tuple[bytes, int]:
    """A line is changed and given the hash that it should have; the one after tells."""
    place = rng.randrange(len(lines) - 1)
    time = f"2020-01-01T00:00:{rng.randrange(60):02d}.000+00:00"
    return replaced(lines, place, hashed({**json.loads(lines[place]), "time": time})), place + 2


def replaced(lines: list[bytes], place: int, line: bytes) -> bytes:
    return b"".join([*lines[:place], line, *lines[place + 1 :]])


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
    for _ in range(200):
        tampered, line = tamper(content.splitlines(keepends=True), rng)
        found = problems(tampered)
        results["found" if found else "missed"] += 1
        results["named" if found and min(problem.line for problem in found) == line else "misnamed"] += 1
    assert results == {"found": 200, "named": 200}


def change(run: Path, statement: str) -> None:
    with closing(sqlite3.connect(run / "history.sqlite")) as connection, connection:
        connection.execute(statement)


def unread(run: Path, name: str) -> None:
    """Put something there that gives an error to everyone who reads it."""
    (run / name).unlink()
    (run / name).symlink_to("/proc/self/mem")


def change_figure(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    summary["arms"]["gpta"]["accuracy"] = 0.99
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(content, encoding="utf-8")


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "history gone": (lambda run: (run / "history.sqlite").unlink(), ["the texts cannot be checked"]),
    "history broken": (write("history.sqlite", "SQLite format 3\0 but no more"), ["the texts cannot be checked"]),
    "history of a version": (lambda run: change(run, "PRAGMA user_version = 1"), ["the texts cannot be checked"]),
    "file added": (write("model/modeling_custom.py", "print()"), ["model/modeling_custom.py is here"]),
    "configuration unreadable": (lambda run: unread(run, "config.yaml"), ["line 1 tells of config.yaml, which cannot"]),
    "summary unreadable": (lambda run: unread(run, "summary.json"), ["summary.json cannot be read"]),
    "summary with another figure": (change_figure, ["line 13 tells of another summary.json"]),
    "summary cut off": (write("summary.json", "{"), ["summary.json is broken"]),
    "summary no object": (write("summary.json", "[]"), ["summary.json is broken"]),
    "summary empty": (write("summary.json", "{}"), ["no entry has the head that summary.json holds", "line 13 tells"]),
}


class TestVerify:
    @pytest.mark.parametrize(
        ("statement", "words"),
        [
            ("UPDATE requests SET messages = replace(messages, 'guests', 'hosts') WHERE id = 2", "line 8 .*request 2"),
            ("UPDATE requests SET round = 2 WHERE id = 2", "line 8 .*request 2"),
            ("UPDATE requests SET messages = '[]' WHERE id = 2", "line 8 .*request 2"),
            ("UPDATE completions SET text = 'Zandrik!' WHERE text = 'Zandrik?'", "line 11 .*completion 1 of request 3"),
            ("DELETE FROM completions WHERE text = 'Zandrik?'", "line 11 .*3 completions of request 3.*holds 2"),
            ("INSERT INTO requests VALUES (9, 1, 'prefix', '[]', '{}', 'now', '')", "holds request 9"),
            ("UPDATE requests SET messages = X'00' WHERE id = 2", "line 8 .*request 2"),
            ("UPDATE scores SET gain = 9.9", "line 13 tells of other figures"),
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
        change(copied, statement)
        code, output = verify(copied)
        assert code == 1 and re.search(words, output), output

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damaged_file_is_found(self, copied: Path, damage: str) -> None:
        do, words = DAMAGES[damage]
        do(copied)
        code, output = verify(copied)
        assert code == 1
        assert all(f"wrong: {word}" in output for word in words), output
        assert output.splitlines()[-1].startswith(f"{len(words)} problem"), output

    @pytest.mark.parametrize(
        ("name", "line"),
        [
            ("model/0_Transformer/model.safetensors", 12),
            ("config.yaml", 1),
            ("metrics.jsonl", 13),
            ("summary.json", 13),
        ],
    )
    def test_changed_file_and_one_that_is_gone_are_found(self, copied: Path, name: str, line: int) -> None:
        content = bytearray((copied / name).read_bytes())
        digit = next(place for place in range(len(content) // 2, len(content)) if chr(content[place]).isdigit())
        content[digit] ^= 1
        (copied / name).write_bytes(content)
        code, output = verify(copied)
        assert code == 1 and (f"another {name} than is here" in output or f"another file {name} than is" in output)
        (copied / name).unlink()
        code, output = verify(copied)
        assert code == 1 and f"wrong: line {line} tells of {name}, which is not there any more" in output
        assert output.splitlines()[-1].startswith("1 problem: ")

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

    @pytest.mark.parametrize("written", ["{}", " {} \n"])
    def test_noted_head_is_recognised_however_it_is_written(self, run: Path, written: str) -> None:
        head = entries(run)[-1]["hash"]
        for noted in (head, head.upper()):
            code, output = verify(run, "--head", written.format(noted))
            assert code == 0 and "the noted head is that of line 13, the last" in output

    def test_entry_after_the_end_is_found(self, copied: Path) -> None:
        audit = Audit(copied / LOG)
        audit.answered(3, [])
        audit.close()
        code, output = verify(copied)
        assert code == 1 and "line 14 comes after the end of the run" in output

    def test_entry_of_an_unknown_form_is_found(self, copied: Path) -> None:
        lines = (copied / LOG).read_bytes().splitlines(keepends=True)
        (copied / LOG).write_bytes(replaced(lines, 5, hashed({**json.loads(lines[5]), "more": 1})))
        code, output = verify(copied)
        assert code == 1 and "line 6 is no entry that this version of gpta-local knows" in output

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
        assert "    2: Quimbel of guests:" in full and "Write one new short text" in full

    def test_control_characters_of_a_completion_do_not_reach_the_terminal(self, copied: Path) -> None:
        change(copied, "UPDATE completions SET text = char(27) || '[2J' WHERE text = 'Zandrik?'")
        full = invoke("audit", "show", copied, "--full").stdout
        assert "\x1b" not in full and "\\x1b[2J" in full

    def test_blobs_in_the_place_of_texts_are_named(self, copied: Path) -> None:
        change(copied, "UPDATE completions SET text = X'00ff' WHERE text = 'Zandrik?'")
        change(copied, "UPDATE requests SET messages = X'00' WHERE id = 2")
        full = invoke("audit", "show", copied, "--full")
        assert full.exit_code == 0 and full.stdout.count("(the history was changed: this is no text)") == 2

    @pytest.mark.parametrize("content", [b"", b"\x00\xff\x1b[2J", b"[]\n"])
    def test_log_without_any_entry_is_said_to_be_none(self, copied: Path, content: bytes) -> None:
        (copied / LOG).write_bytes(content)
        result = invoke("audit", "show", copied)
        assert result.exit_code == 1 and "no whole entry is in this log" in result.stderr

    def test_line_that_was_changed_is_shown_as_such(self, copied: Path) -> None:
        lines = (copied / LOG).read_bytes().splitlines(keepends=True)
        (copied / LOG).write_bytes(replaced(lines, 2, b"{}\n"))
        assert invoke("audit", "show", copied).stdout.splitlines()[2].startswith("line 3 was changed")


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
        log.write_bytes(replaced(lines, 2, lines[2].replace(b"model", b"other")))
        assert self.chain(log)[0].line == 3

    def test_disk_that_fills_up_in_the_middle_of_a_line_is_an_error_and_gone_on_from(self, log: Path) -> None:
        room, (soft, hard) = log.stat().st_size + 1000, resource.getrlimit(resource.RLIMIT_FSIZE)
        audit = Audit(log)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(OSError, match="No space left"):
                for number in range(100):
                    audit.answered(number, [])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            audit.close()
        assert log.stat().st_size == room and not log.read_bytes().endswith(b"\n")
        Audit(log).close()
        assert self.chain(log) == []

    def test_second_writer_is_refused(self, log: Path) -> None:
        audit = Audit(log)
        with pytest.raises(OutputError, match="another process"):
            Audit(log)
        audit.close()
        Audit(log).close()
