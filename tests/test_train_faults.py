"""Every fault of an assistant, before and in the middle of a run of `gpta-local train`: the answers of
docs/RELIABILITY.md. None hangs, none loses what was found, none is a traceback."""

from __future__ import annotations

import itertools
import json
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chat_models import DIALOGUES, settings
from click.testing import Result
from commands import assert_refused, invoke, run_command
from fault_server import (
    Chat,
    FakeVLLM,
    FaultServer,
    Json,
    Raw,
    Reply,
    always,
    completion,
    endless,
    error,
    failed,
    first,
    hang_up,
    reset,
)
from samples import sentiment_rows, write_config, write_jsonl

from gpta_local.assistant.local import load_model
from gpta_local.assistant.openai_api import MAX_CHOICES
from gpta_local.dialogue_gradient.train import train_adapter
from gpta_local.downstream.product import open_product
from gpta_local.record.history import open_existing
from gpta_local.record.verification import verify

pytestmark = pytest.mark.usefixtures("near_prefixes_count")

PREFIXES = ["What a guest says:", "Review:", "About the food:", "The service was", "In short,", "One evening:"]
LABEL_TEXTS_FIRST = {"rounds": 1, "proposals": 2, "label_text_samples": 2}
LONGEST = 20.0
"""Seconds that a run may take; those that go well take one or two."""


def proposes(body: Json) -> Reply:
    """Another prefix for each seed."""
    texts = [PREFIXES[(body["seed"] + i) % len(PREFIXES)] for i in range(body.get("n", 1))]
    return Reply(body=completion(*texts, model=body["model"]))


def after(good: int, fault: Chat) -> Chat:
    """So many good replies to chat requests, the first of which is that to the check and to round 1; then the fault."""
    left = iter(range(good))
    return lambda body: fault(body) if next(left, None) is None else proposes(body)


def configure(folder: Path, backbone: Path, assistant: dict[str, Any], **changes: Any) -> Path:
    write_jsonl(folder / "train.jsonl", sentiment_rows())
    common = {"backend": "openai", "model": "m", "timeout": 1.0, "max_retries": 1}
    content = {
        "assistant": common | assistant,
        "downstream": {"backbone": str(backbone)},
        "knowledge": {"example_texts": 0},
        "search": {"rounds": 3, "proposals": 2, "label_text_samples": 0},
        "finish": {"plain_control": False},
        **changes,
    }
    return write_config(folder / "config.yaml", content)


@dataclass(frozen=True)
class Run:
    result: Result
    folder: Path
    seconds: float

    @property
    def summary(self) -> Json:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def rounds(self) -> list[int]:
        return [number for number, *_ in open_existing(self.folder).rounds()]


Train = Callable[..., Run]


@pytest.fixture
def train(sentence: Path, tmp_path: Path) -> Train:
    """A run of three rounds with two proposals each, against a server that behaves as `chat` says."""

    def run(chat: Chat, assistant: dict[str, Any] | None = None, **changes: Any) -> Run:
        with FaultServer(chat) as server:
            config = configure(tmp_path, sentence, {"base_url": server.base_url, **(assistant or {})}, **changes)
            start = time.monotonic()
            result = invoke("train", config, "--output", tmp_path / "run")
            return Run(result, tmp_path / "run", time.monotonic() - start)

    return run


LASTING: dict[str, tuple[Reply | Raw, str]] = {
    "hang-up": (Raw(hang_up), "the connection broke"),
    "silence": (Raw(lambda connection: time.sleep(2.5)), "no answer within 1 s"),
    "endless stream": (Raw(endless), "the answer goes on after 32 MiB"),
    "503": (Reply(503, {"detail": "loading"}), "the server fails (503): loading"),
    "401": (error(401, "expired"), "asks for a key (401): expired"),
    "no choices": (Reply(body=completion()), "without any completion"),
    "terminal codes": (Reply(500, "\x1b[2Jgone\x07"), "the server fails (500): [2Jgone"),
}
"""Fault → what is said of it; `test_openai_api.py` has many more. The assistant never gives another answer."""


@pytest.mark.parametrize("fault", ["hang-up", "401", "terminal codes"])
def test_lasting_fault_before_the_run_is_one_message_and_nothing_is_written(fault: str, train: Train) -> None:
    reply, words = LASTING[fault]
    run = train(always(reply))
    assert_refused(run.result, words, "assistant.")
    assert "\x1b" not in run.result.output
    assert not run.folder.exists()


@pytest.mark.parametrize("fault", LASTING)
def test_lasting_fault_in_the_middle_ends_the_search_and_the_run_is_finished(fault: str, train: Train) -> None:
    reply, words = LASTING[fault]
    run = train(after(1, always(reply)))
    assert run.result.exit_code == 0, run.result.output
    assert run.seconds < LONGEST
    assert run.rounds == [1]
    assert "warning: The assistant failed in round 2 of 3: assistant." in run.result.stderr
    assert "The search ends here, with the 2 prefixes known so far" in run.result.stderr
    assert "The search ended before its last round: The assistant failed in round 2 of 3" in run.result.stdout
    for told in (run.summary["ended_by"], run.result.stdout, run.result.stderr):
        assert words in told
    assert "\x1b" not in run.result.output
    assert len(open_product(run.folder).labels) == 2
    assert verify(run.folder).problems == []


def test_passing_faults_cost_nothing_but_time(train: Train) -> None:
    faults: dict[int, Reply | Raw] = {1: Reply(503, "oops"), 3: Raw(reset)}  # by the number of the chat request
    numbers = itertools.count()
    run = train(lambda body: faults.get(next(numbers)) or proposes(body))
    assert run.result.exit_code == 0, run.result.output
    assert run.rounds == [1, 2, 3]
    assert run.summary["ended_by"] is None
    assert "warning: The assistant" not in run.result.stderr


CONTENTS: dict[str, Callable[[Json], Reply]] = {
    "garbage": lambda body: Reply(body=completion(*["\x00\x1b[2J\u202e�" * 40] * 2)),
    "empty": lambda body: Reply(body=completion("", None)),
    "of a megabyte": lambda body: Reply(body=completion("word " * 200_000, "x" * 1_000_000)),
    "of a million line breaks": lambda body: Reply(body=completion("\n" * 1_000_000, "\n\r\u2028 " * 250_000)),
    "of a million quotes": lambda body: Reply(body=completion('"' * 999_999, "`" * 1_000_000)),
    "half a surrogate pair": lambda body: Reply(body=completion("\ud83d", "\ude00", model="\ud83d")),
    "more than asked": lambda body: proposes(body | {"n": 5}),
    "of another model": lambda body: Reply(body=completion("Review:", "In short,", model="x" * 100_000)),
    "cut off": lambda body: Reply(body=completion("What a", "What a", finish_reason="length")),
}


def test_unusable_completions_are_counted_and_the_run_goes_on(train: Train) -> None:
    """A round of each kind."""
    kinds = iter(CONTENTS.values())
    rounds = len(CONTENTS) + 1
    run = train(
        after(1, lambda body: next(kinds)(body)), search={"rounds": rounds, "proposals": 2, "label_text_samples": 0}
    )
    assert run.result.exit_code == 0, run.result.output
    assert run.seconds < LONGEST
    assert run.rounds == list(range(1, rounds + 1))
    assert run.summary["cost"]["completions"] == 2 * rounds
    assert "\x1b" not in run.result.output


def test_label_texts_that_fail_leave_the_cards_own(train: Train) -> None:
    broken = first(Reply(500, "oops"), Reply(500, "oops"), then=proposes)
    run = train(after(1, broken), search={"rounds": 1, "proposals": 2, "label_text_samples": MAX_CHOICES + 1})
    assert run.result.exit_code == 0, run.result.output
    assert "warning: no label texts: assistant.base_url" in run.result.stderr
    assert run.summary["ended_by"] is None


def test_fault_before_any_prefix_is_known_ends_the_run(train: Train) -> None:
    run = train(after(1, always(error(401, "expired"))), search=LABEL_TEXTS_FIRST)
    assert_refused(run.result, "asks for a key (401)")
    assert not (run.folder / "summary.json").exists()


def test_run_that_was_told_to_come_back_in_an_hour_goes_on_as_it_says(sentence: Path, tmp_path: Path) -> None:
    pause = error(429, "quota exceeded")
    replies = iter([Reply(429, pause.body, {"retry-after": "3600"})])
    with FaultServer(after(1, lambda body: next(replies, None) or proposes(body))) as server:
        config = configure(tmp_path, sentence, {"base_url": server.base_url}, search=LABEL_TEXTS_FIRST)
        result = invoke("train", config, "--output", tmp_path / "run")
        assert_refused(result, "takes no further requests for 1 h, it says (429): quota exceeded", "--resume")
        (command,) = (line for line in result.stderr.splitlines() if "--resume" in line)
        words = shlex.split(command.partition("gpta-local ")[2])
        result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "summary.json").exists()


def test_example_texts_that_fail_are_not_asked_for_again_when_the_run_goes_on(
    sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chat(body: Json) -> Reply:
        return error(500, "oops") if "different texts" in body["messages"][-1]["content"] else proposes(body)

    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    with FaultServer(chat) as server:
        changes = {"knowledge": {"example_texts": 8}, "search": {"rounds": 1, "proposals": 2, "label_text_samples": 0}}
        config = configure(tmp_path, sentence, {"base_url": server.base_url, "max_retries": 0}, **changes)
        with monkeypatch.context() as patch:
            patch.setattr("gpta_local.run.search.Search.score", stopped)
            assert invoke("train", config, "--output", tmp_path / "run").exit_code == 3
        asked = sum("different texts" in chat["messages"][-1]["content"] for chat in server.chats)
        result = invoke("train", config, "--output", tmp_path / "run", "--resume")
        assert result.exit_code == 0, result.output
        assert asked == sum("different texts" in chat["messages"][-1]["content"] for chat in server.chats) > 0


def test_server_that_starts_anew_is_waited_for(sentence: Path, tmp_path: Path) -> None:
    started = threading.Event()

    def restart(body: Json) -> Reply:
        old.stop_listening()

        def later() -> None:
            time.sleep(1.0)
            with FaultServer(proposes, port=old.port):
                started.set()
                done.wait(LONGEST)

        threading.Thread(target=later, daemon=True).start()
        return proposes(body)

    done = threading.Event()
    with FaultServer(after(1, restart)) as old:
        config = configure(tmp_path, sentence, {"base_url": old.base_url, "max_retries": 4})
        result = invoke("train", config, "--output", tmp_path / "run")
        done.set()
    assert started.is_set()
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ended_by"] is None


def test_online_run_that_is_cut_short_takes_all_its_training_steps(train: Train) -> None:
    changes = {"search": {"rounds": 3, "proposals": 2, "label_text_samples": 0, "regime": "online"}}
    run = train(after(1, always(error(401, "expired"))), **changes, training={"steps": 9, "precision": "fp32"})
    assert run.result.exit_code == 0, run.result.output
    metrics = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = {line["title"]: len(line["losses"]) for line in metrics}
    assert steps == {"round 1: training": 3, "training to the end": 6, "training without a prefix": 9}


class Restarted(FakeVLLM):
    """Forgets its adapters before the third chat request, as after a new start."""

    def __init__(self, root: Path) -> None:
        self.asked = 0
        super().__init__(root)

    def _chat_as_vllm(self, body: Json) -> Reply:
        self.asked += 1
        if self.asked == 3:
            self.adapters.clear()
        known = body["model"] in {"m", *self.adapters}
        return proposes(body) if known else error(404, f"The model `{body['model']}` does not exist.")


@pytest.fixture(scope="module")
def adapter(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    train_adapter(*load_model(chat_model, "cpu", "assistant"), DIALOGUES, settings(), folder, seed=0)
    return folder


@pytest.fixture
def train_with_adapter(restarted: Restarted, adapter: Path, sentence: Path, tmp_path: Path) -> Callable[[], Run]:
    """A run against the server that starts anew, with the adapter from the first round on."""

    def run() -> Run:
        assistant = {"backend": "vllm", "base_url": restarted.base_url, "adapter": str(adapter)}
        config = configure(tmp_path, sentence, assistant)
        return Run(invoke("train", config, "--output", tmp_path / "run"), tmp_path / "run", 0.0)

    return run


@pytest.fixture
def restarted(chat_model: Path) -> Iterator[Restarted]:
    with Restarted(chat_model) as server:
        yield server


def answered(run: Run) -> list[str]:
    return [completion.model for completion in open_existing(run.folder).completions("prefix")]


def test_server_that_starts_anew_gets_its_adapter_again(
    restarted: Restarted, train_with_adapter: Callable[[], Run]
) -> None:
    run = train_with_adapter()
    assert run.result.exit_code == 0, run.result.output
    assert answered(run) == ["m+adapter"] * 6
    assert len([body for body in restarted.sent("load") if Path(body["lora_path"]).is_dir()]) == 2
    assert restarted.adapters == {}, "nothing stays on the server after the run"


def test_base_model_goes_on_for_a_server_that_takes_its_adapter_no_more(
    restarted: Restarted, train_with_adapter: Callable[[], Run]
) -> None:
    def refuse(body: Json) -> Reply:
        return failed("LoRA is not enabled. Use --enable-lora") if restarted.asked > 2 else restarted._load(body)

    restarted.on_load = refuse
    run = train_with_adapter()
    assert run.result.exit_code == 0, run.result.output
    assert "warning: round 2: assistant.base_url" in run.result.stderr
    assert "From here on the base model answers" in run.result.stderr
    assert answered(run) == ["m+adapter"] * 2 + ["m"] * 4
    assert run.summary["ended_by"] is None


def test_adapter_that_is_refused_before_the_run_is_one_message(
    restarted: Restarted, train_with_adapter: Callable[[], Run]
) -> None:
    restarted.on_load = lambda body: failed("LoRA is not enabled. Use --enable-lora")
    run = train_with_adapter()
    assert_refused(run.result, "takes no adapters", "--enable-lora")
    assert not run.folder.exists()


@pytest.mark.slow
def test_process_that_loses_its_assistant_ends_by_itself(sentence: Path, tmp_path: Path) -> None:
    reply, words = LASTING["silence"]
    with FaultServer(after(1, always(reply))) as server:
        config = configure(tmp_path, sentence, {"base_url": server.base_url})
        done = run_command("train", config, "--output", tmp_path / "run", timeout=60)
    assert done.returncode == 0, done.stderr
    assert words in done.stderr and words in done.stdout
    assert "Traceback" not in done.stderr
