"""A run in a process of its own, with a key, an endpoint that repeats it, and a umask that lets everybody
in: no byte of the key is kept, nobody else can read what is, and nothing is unpickled."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from audited import copy, entries, files_with
from chat_models import DIALOGUES, settings, tiny_chat_llama
from commands import PROGRAM, ROOT, invoke
from fault_server import FaultServer, Json, Reply, completion
from samples import label_text_reply, sentiment_rows, write_config, write_jsonl

from gpta_local.record.history import open_existing
from gpta_local.record.purge import purge
from gpta_local.record.verification import verify
from gpta_local.system.adapters import check_adapter
from gpta_local.system.manifests import MANIFEST, verify_manifest
from gpta_local.system.pickles import find_pickles

KEY = "planted-0123456789-key"
PHRASES = ("Note:", "A guest says", "Was it good or bad:", "Opinion:", "After the meal:", "Table talk:", "Dinner,")
WATCHED = ("pickle.find_class", "subprocess.Popen", "os.exec", "os.posix_spawn")
WATCH = f"""
import os, sys

def watch(event, arguments):
    if event in {WATCHED}:
        with open(os.environ["WATCH_LOG"], "a") as log:
            print(os.getpid(), event, *arguments[:2], file=log)

sys.addaudithook(watch)
"""


class Parrot:
    """A chat endpoint that repeats the key wherever it can, and after some replies only fails."""

    def __init__(self, replies: int) -> None:
        self.left = replies
        self.said = 0

    def __call__(self, body: Json) -> Reply:
        echo = {"x-echo": KEY}
        self.left -= 1
        if self.left < 0:
            return Reply(500, {"error": {"message": f"no more for {KEY}", "request": f"Bearer {KEY}"}}, echo)
        texts = []
        for _ in range(body.get("n", 1)):
            self.said += 1
            texts.append(f"{PHRASES[self.said % len(PHRASES)]} {KEY if self.said == 3 else self.said}")
        if "label" in body["messages"][-1]["content"].split("\n")[-1].lower() and body["max_tokens"] > 50:
            texts = [label_text_reply({"bad": f"a complaint {KEY}", "good": "praise"})] * len(texts)
        return Reply(body=completion(*texts, model=f"m {KEY}", finish_reason=f"stop {KEY}"), headers=echo)


@dataclass(frozen=True)
class Watched:
    """What is left of a run: its directory, all that it printed, and what was seen of its processes."""

    folder: Path
    status: int
    printed: str
    events: list[str]


def watched_run(place: Path, bert: Path, route: str, replies: int, proposals: int = 8) -> Watched:
    (place / "watch").mkdir(parents=True)
    (place / "watch" / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    (place / "key").write_text(f"{KEY}\n", encoding="utf-8")
    (place / "key").chmod(0o600)
    write_jsonl(place / "train.jsonl", sentiment_rows())
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(place / "watch"), os.environ.get("PYTHONPATH", ""), str(ROOT)]),
        "WATCH_LOG": str(place / "events"),
        "OPENAI_LOG": "debug",
    }
    source = {"api_key_file": "key"} if route == "file" else {"api_key_env": "GPTA_TEST_KEY"}
    if route == "environment":
        environment["GPTA_TEST_KEY"] = KEY
    with FaultServer(Parrot(replies)) as server:
        assistant = {"backend": "openai", "model": "m", "base_url": server.base_url, "max_retries": 0, **source}
        config = write_config(
            place / "config.yaml",
            {
                "data": {"test": "train.jsonl"},
                "assistant": {**assistant, "weights": str(tiny_chat_llama(place / "llama"))},
                "downstream": {"backbone": str(bert)},
                "search": {"rounds": 2, "proposals": proposals},
                "dialogue_gradient": settings().model_dump(),
            },
        )
        done = subprocess.run(
            [*PROGRAM, "train", config, "--output", place / "runs" / "run", "--verbose"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            umask=0,
        )
        sent = [request.headers.get("authorization") for request in server.received]
    assert sent and set(sent) == {f"Bearer {KEY}"}, "the key got to the server"
    events = (place / "events").read_text(encoding="utf-8").splitlines()
    return Watched(place / "runs" / "run", done.returncode, done.stdout + done.stderr, events)


@pytest.fixture(scope="module")
def finished(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A run whose key is in a file, that taught the assistant in a process of its own."""
    run = watched_run(tmp_path_factory.mktemp("finished"), bert, "file", replies=1000)
    assert run.status == 0, run.printed
    assert (run.folder / "adapters" / "001" / "adapter_model.safetensors").is_file()
    return run


@pytest.fixture(scope="module")
def failed(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A run whose key is in the environment, and whose endpoint answers the check and then fails in the first round."""
    run = watched_run(tmp_path_factory.mktemp("failed"), bert, "environment", replies=1, proposals=20)
    assert run.status == 2, run.printed
    assert "no more for ***" in run.printed
    assert (run.folder / "history.sqlite").is_file()
    return run


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def places_of_the_key(run: Watched) -> list[str]:
    places = [str(path) for path in files_of(run.folder.parent) if KEY.encode() in path.read_bytes()]
    return places + [text[:20] for text in (run.printed, *run.events) if KEY in text]


@pytest.mark.slow
class TestKey:
    @pytest.mark.parametrize("kind", ["finished", "failed"])
    def test_key_is_kept_nowhere_though_the_endpoint_repeats_it(
        self, kind: str, request: pytest.FixtureRequest
    ) -> None:
        run: Watched = request.getfixturevalue(kind)
        assert places_of_the_key(run) == []

    def test_what_the_endpoint_repeated_was_recorded_without_it(self, finished: Watched) -> None:
        history = open_existing(finished.folder)
        recorded = [*history.completions("prefix"), *history.completions("label-texts")]
        history.close()
        assert any("***" in completion.text for completion in recorded)
        assert {completion.model for completion in recorded} == {"m ***"}


@pytest.mark.slow
class TestPickles:
    def test_nothing_was_unpickled_in_any_process(self, finished: Watched) -> None:
        assert any("gpta_local.dialogue_gradient.worker" in event for event in finished.events)
        assert [event for event in finished.events if "pickle.find_class" in event] == []

    def test_it_would_have_been_seen(self, finished: Watched, tmp_path: Path) -> None:
        script = f"import pickle; pickle.loads({pickle.dumps(Path('a'))!r})"
        watch = {"PYTHONPATH": str(finished.folder.parents[1] / "watch"), "WATCH_LOG": str(tmp_path / "log")}
        subprocess.run([sys.executable, "-c", script], env=os.environ | watch, check=True)
        assert "pickle.find_class pathlib PosixPath" in (tmp_path / "log").read_text(encoding="utf-8")

    def test_run_holds_no_pickle(self, finished: Watched) -> None:
        assert find_pickles(finished.folder) == []

    def test_product_and_adapter_are_listed_with_their_sums(self, finished: Watched) -> None:
        for folder in (finished.folder / "model", finished.folder / "adapters" / "001"):
            verify_manifest(folder)
            subprocess.run(["sha256sum", "--check", "--strict", "--quiet", MANIFEST], cwd=folder, check=True)


@pytest.mark.slow
def test_run_that_taught_is_in_order_before_and_after_its_purge(finished: Watched, tmp_path: Path) -> None:
    run = copy(finished.folder, tmp_path)
    assert [entry["event"] for entry in entries(run)].count("written") == 2  # the adapter and the model
    assert verify(run).problems == []
    weights = run / "adapters" / "001" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert ["adapters/001/adapter_model.safetensors" in str(problem) for problem in verify(run).problems] == [True]
    weights.write_bytes(content)
    assert files_with(run, ["Write one new short text"]) == ["dialogues.jsonl", "history.sqlite"]
    assert purge(run).deleted == ["adapters/001/dialogues.jsonl", "report.html", "report.md"]
    assert files_with(run, ["Write one new short text"]) == []
    assert verify(run).problems == []
    check_adapter(run / "adapters" / "001", finished.folder.parents[1] / "llama")


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0)
    yield os.umask
    os.umask(before)


def modes(folder: Path) -> set[tuple[str, int]]:
    kinds = {True: "folder", False: "file"}
    return {(kinds[path.is_dir()], path.stat().st_mode & 0o7777) for path in (folder, *folder.rglob("*"))}


PRIVATE = {("folder", 0o700), ("file", 0o600)}


@pytest.mark.slow
class TestModes:
    @pytest.mark.parametrize("kind", ["finished", "failed"])
    def test_run_is_its_owners_alone_whatever_the_umask(self, kind: str, request: pytest.FixtureRequest) -> None:
        run: Watched = request.getfixturevalue(kind)
        assert modes(run.folder) == PRIVATE

    @pytest.mark.parametrize(("users", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
    def test_exported_folder_is_as_the_umask_says(
        self, finished: Watched, tmp_path: Path, umask: Callable[[int], int], users: int, folder: int, file: int
    ) -> None:
        umask(users)
        assert invoke("export", finished.folder, tmp_path / "out").exit_code == 0
        assert modes(tmp_path / "out") == {("folder", folder), ("file", file)}
        assert modes(finished.folder) == PRIVATE

    def test_predictions_are_their_owners_alone(
        self, finished: Watched, tmp_path: Path, umask: Callable[[int], int]
    ) -> None:
        rows = finished.folder.parents[1] / "train.jsonl"
        (tmp_path / "labels.jsonl").touch()
        assert invoke("predict", finished.folder, rows, "--output", tmp_path / "labels.jsonl").exit_code == 0
        assert modes(tmp_path / "labels.jsonl") == {("file", 0o600)}


def test_adapter_of_tune_is_its_owners_alone_and_holds_no_pickle(tmp_path: Path, umask: Callable[[int], int]) -> None:
    from gpta_local.dialogue_gradient.tune import tune

    base = tiny_chat_llama(tmp_path / "llama")
    tune(base, DIALOGUES, tmp_path / "adapters" / "ours", settings(), seed=0)
    assert modes(tmp_path / "adapters") == PRIVATE
    assert find_pickles(tmp_path / "adapters") == []
    verify_manifest(tmp_path / "adapters" / "ours")


def test_folder_of_runs_that_is_there_keeps_its_mode(tmp_path: Path, umask: Callable[[int], int]) -> None:
    from gpta_local.record.folder import make_folder
    from gpta_local.system.files import owner_only

    (tmp_path / "runs").mkdir(mode=0o755)
    with owner_only():
        make_folder(tmp_path / "runs" / "a", 1000)
    assert modes(tmp_path / "runs") == {("folder", 0o755), ("folder", 0o700)}


@pytest.mark.parametrize("change", ["changed", "slipped in", "missing"])
def test_product_that_was_changed_is_refused(sentence: Path, tmp_path: Path, change: str) -> None:
    import shutil

    from gpta_local.system.manifests import write_manifest

    folder = shutil.copytree(sentence, tmp_path / "model")
    (folder / "gpta.json").write_text('{"labels": [], "prefix": "", "library": "", "columns": {}}', encoding="utf-8")
    write_manifest(folder)
    changes: dict[str, Any] = {
        "changed": lambda: (folder / "config.json").write_text("{}", encoding="utf-8"),
        "slipped in": lambda: (folder / "added_tokens.json").write_text("{}", encoding="utf-8"),
        "missing": lambda: (folder / "tokenizer.json").unlink(),
    }
    changes[change]()
    for command in (("predict", tmp_path, tmp_path / "rows.jsonl"), ("evaluate", folder), ("export", folder, "out")):
        result = invoke(*command)
        assert result.exit_code == 2 and MANIFEST in result.stderr, result.output
