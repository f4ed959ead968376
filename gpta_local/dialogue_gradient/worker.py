"""The dialogue gradient in a process of its own, which gives all its memory back when it ends.

For assistants that another program serves: this process loads the served weights, trains an adapter
and ends. Job, progress and result are JSON lines on its standard input and output; what
libraries print goes to a log. Knows the pipe; what is trained is `dialogue_gradient`'s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpta_local.errors import GptaError, ModelError, TrainingError
from gpta_local.schema import DialogueGradientStep, Message, Request
from gpta_local.system.network import GUARD, Refusal

if TYPE_CHECKING:
    from gpta_local.config import (
        DialogueGradientConfig,  # both bring libraries, before which the guard must stand
    )
    from gpta_local.dialogue_gradient.dialogues import Dialogue

LOG_END = 600
"""Characters of the log that an error message quotes."""
SILENT_SECONDS = 3600.0
"""For loading a model, or for one step; a process that says nothing for so long is ended."""
END_SECONDS = 10.0
"""For a process that has closed its output to end by itself, which tells its status."""


def train_in_process_of_its_own(
    weights: Path,
    dialogues: Sequence[Dialogue],
    config: DialogueGradientConfig,
    folder: Path,
    *,
    seed: int,
    start: Path | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> DialogueGradientStep:
    """`dialogue_gradient.train_adapter` on the weights of a folder, in a child process.

    Raises:
        ModelError: the weights cannot be loaded, or no dialogue fits.
        TrainingError: a loss is not a number, or the process died (out of memory, for example) or was
            ended because it said nothing for an hour.
    """
    one_gpu, device = _on_one_gpu(config.device)
    job = {
        "weights": str(weights),
        "dialogues": [asdict(dialogue) for dialogue in dialogues],
        "config": config.model_dump(mode="json") | {"device": device},
        "folder": str(folder),
        "seed": seed,
        "start": str(start) if start else None,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    log_path = folder.parent / f"{folder.name}.log"
    with log_path.open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpta_local.dialogue_gradient.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | one_gpu,
            text=True,
            encoding="utf-8",
        )
    assert worker.stdin is not None and worker.stdout is not None
    try:
        _send(worker.stdin, job)
        for line in _lines_in_time(worker):
            event = json.loads(line)
            match event["event"]:
                case "step":
                    on_step()
                case "refused":
                    GUARD.refused[Refusal(event["asked_by"], event["host"])] += event["times"]
                case "done":
                    log_path.unlink()
                    return DialogueGradientStep(**event["step"] | {"losses": tuple(event["step"]["losses"])})
                case "error":
                    kind = {"ModelError": ModelError}.get(event["kind"], TrainingError)
                    raise kind(event["what"], where=event["where"], fix=event["fix"])
        worker.wait(END_SECONDS)
    except (BrokenPipeError, subprocess.TimeoutExpired):
        pass  # the process has died; why, is told below
    finally:
        worker.kill()
        status = worker.wait()
        worker.stdin.close()
        worker.stdout.close()
    said = " ".join(log_path.read_text(encoding="utf-8", errors="replace").split())[-LOG_END:]
    raise TrainingError(
        f"the process of the dialogue gradient ended with status {status}: {said or 'it said nothing'}",
        where=str(log_path),
        fix="If memory ran out, lower dialogue_gradient.batch_size or give it a dialogue_gradient.device of its own",
    )


def _lines_in_time(worker: subprocess.Popen[str]) -> Iterator[str]:
    """Its output, until it ends or has said nothing for `SILENT_SECONDS` and is ended."""
    assert worker.stdout is not None
    line = " "
    while line:
        timer = threading.Timer(SILENT_SECONDS, worker.kill)
        timer.daemon = True
        timer.start()
        line = worker.stdout.readline()
        timer.cancel()
        if line:
            yield line


def _on_one_gpu(device: str) -> tuple[dict[str, str], str]:
    """The environment that shows a process one GPU, and what that is called there: TRL refuses to train
    where it sees several."""
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return {}, device
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    place = int(number) if number.isdigit() else 0
    shown = [str(place)] if visible is None else visible.split(",")[place : place + 1]  # what is hidden stays hidden
    return {"CUDA_VISIBLE_DEVICES": "".join(shown)}, kind


def _send(pipe: Any, message: Any) -> None:
    pipe.write(json.dumps(message, ensure_ascii=False) + "\n")
    pipe.flush()


def main() -> None:
    """Do the job on standard input."""
    GUARD.install()
    parent = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    job = json.loads(sys.stdin.readline())

    end: dict[str, Any]
    try:
        from gpta_local.assistant.local import load_model
        from gpta_local.config import DialogueGradientConfig
        from gpta_local.dialogue_gradient.train import train_adapter

        config = DialogueGradientConfig.model_validate(job["config"])
        model, tokenizer = load_model(Path(job["weights"]), config.device, "dialogue_gradient")
        step = train_adapter(
            model,
            tokenizer,
            [_dialogue(fields) for fields in job["dialogues"]],
            config,
            Path(job["folder"]),
            seed=job["seed"],
            start=Path(job["start"]) if job["start"] else None,
            on_step=lambda: _send(parent, {"event": "step"}),
        )
    except GptaError as exc:
        end = {"event": "error", "kind": type(exc).__name__, "what": exc.what, "where": exc.where, "fix": exc.fix}
    else:
        end = {"event": "done", "step": asdict(step)}
    for refusal, times in GUARD.refused.items():
        _send(parent, {"event": "refused", **asdict(refusal), "times": times})
    _send(parent, end)


def _dialogue(fields: dict[str, Any]) -> Dialogue:
    from gpta_local.dialogue_gradient.dialogues import Dialogue

    asked = {
        name: Request(fields[name]["kind"], tuple(Message(**m) for m in fields[name]["messages"]))
        for name in ("request", "rival")
        if fields[name]
    }
    return Dialogue(**fields | asked)


if __name__ == "__main__":
    main()
