"""The commands `gpta-local assistant …`. Like `cli`: arguments and exit codes, nothing heavy at the top."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import signal
import sys
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from gpta_local.cli.options import PATH, json_option

if TYPE_CHECKING:
    from gpta_local.assistant.vllm_server import VLLMServer
    from gpta_local.config import VLLMAssistantConfig


@click.group()
def assistant() -> None:
    """Serve, teach and measure the language model that proposes."""


@assistant.command()
@click.argument("model")
@click.argument("vllm_arguments", metavar="[-- VLLM-ARGUMENT...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--name", help="What requests call the model. Default: the name of its folder.")
@click.option("--port", type=int, help="Default: a free one.")
@click.option("--python", type=PATH, help="A Python that has vLLM. Default: this one, or GPTA_VLLM_PYTHON.")
@click.option(
    "--log", type=click.Path(path_type=Path, dir_okay=False), help="File for what vLLM prints. Default: vllm-PORT.log"
)
@click.option(
    "--api-key-env",
    show_default="GPTA_VLLM_KEY",
    metavar="VARIABLE",
    help="Environment variable with the key. If it is not set, a random key is written to a file beside the log.",
)
@click.option("--max-model-len", type=click.IntRange(min=1), help="Tokens of a request and its completion together.")
@click.option("--max-lora-rank", type=int, show_default="16", help="Of the adapters that can be loaded.")
@click.option("--no-lora", is_flag=True, help="Serve without adapters.")
@click.option(
    "--gpu-memory-utilization",
    type=click.FloatRange(0, 1, min_open=True),
    show_default="0.9",
    help="vLLM's part of the GPU's memory. The dialogue gradient can train on the rest, should they share the GPU.",
)
@click.option(
    "--tensor-parallel",
    type=click.IntRange(1),
    show_default="1",
    help="GPUs that each copy of the model is spread over.",
)
@click.option(
    "--data-parallel", type=click.IntRange(1), show_default="1", help="Copies of the model that share the requests."
)
@click.option("--start-seconds", default=600.0, show_default=True, help="How long to wait until it is ready.")
def serve(
    model: str,
    vllm_arguments: tuple[str, ...],
    name: str | None,
    port: int | None,
    python: Path | None,
    log: Path | None,
    api_key_env: str | None,
    no_lora: bool,
    start_seconds: float,
    **sizes: Any,
) -> None:
    """Serve MODEL by vLLM on this machine until Ctrl-C.

    MODEL is a model folder, a name of `gpta-local models list`, or a configuration (.yaml) whose section
    `assistant` has `backend: vllm`: then model, name, port, key and the sizes of `assistant.serve` are those
    it says, where no option says otherwise. When the server is ready, the section `assistant` of a
    configuration that uses it is printed.

    It answers on 127.0.0.1 only. That is its protection against others: the key guards only what is
    below /v1, and whoever has an account on this machine can reach the rest.

    \b
    Examples:
      gpta-local assistant serve Qwen2.5-Coder-1.5B-Instruct
      gpta-local assistant serve /models/own-model --port 8001
      gpta-local assistant serve config.yaml --tensor-parallel 2
    """
    import yaml

    from gpta_local.assistant.vllm_memory import Parallel
    from gpta_local.assistant.vllm_server import VLLMServer, find_interpreter, private_file
    from gpta_local.config import ServeConfig
    from gpta_local.system.files import read_secret
    from gpta_local.system.library import assistant_folder
    from gpta_local.system.models import checked_folder

    config = _served_by(Path(model)) if model.endswith((".yaml", ".yml")) else None
    given_key = ""
    if config is not None:
        model, name = config.model, name or config.model
        port = port or urlsplit(config.base_url).port
        if config.api_key_file and not api_key_env:
            given_key = read_secret(Path(config.api_key_file), "assistant.api_key_file")
        api_key_env = api_key_env or config.api_key_env
    api_key_env = api_key_env or "GPTA_VLLM_KEY"
    asked = config.serve if config else ServeConfig()
    asked = asked.model_copy(update={option: value for option, value in sizes.items() if value is not None})
    folder = (
        checked_folder(config.weights, "assistant.weights") if config and config.weights else assistant_folder(model)
    )
    given_key = given_key or os.environ.get(api_key_env, "").strip()
    key = given_key or secrets.token_urlsafe(32)
    server = VLLMServer(
        folder,
        name or folder.resolve().name,
        interpreter=find_interpreter(python),
        api_key=key,
        log=log,
        port=port,
        lora_rank=None if no_lora else asked.max_lora_rank,
        max_model_len=asked.max_model_len,
        gpu_memory_utilization=asked.gpu_memory_utilization,
        parallel=Parallel(asked.tensor_parallel, asked.data_parallel),
        extra=vllm_arguments,
    )
    section = {"backend": "vllm", "model": server.name, "base_url": server.base_url, "api_key_env": api_key_env}
    key_file = server.log.with_name(f"{server.log.name}.key")
    ready = False
    _end_as_by_ctrl_c()
    try:
        with server, ExitStack() as files:
            if not given_key:
                files.enter_context(private_file(key_file, f"{key}\n"))
                click.echo(f'the key: export {api_key_env}="$(cat {shlex.quote(str(key_file))})"', err=True)
            seconds = server.wait_until_healthy(start_seconds, partial(_tell_of_waiting, server, start_seconds))
            ready = True
            if config is None:
                click.echo(yaml.safe_dump({"assistant": section}, sort_keys=False), nl=False)
            click.echo(f"ready after {seconds:.0f} s. Ctrl-C stops the server; log: {server.log}", err=True)
            server.wait()
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(0 if ready else 3)


def _served_by(path: Path) -> VLLMAssistantConfig:
    """The section `assistant` of a configuration, of a server that this machine can start.

    Raises:
        ConfigError: it is not of such a server.
    """
    from gpta_local.config import VLLMAssistantConfig, load
    from gpta_local.errors import ConfigError

    config = load(path).assistant
    if not isinstance(config, VLLMAssistantConfig):
        what, key, fix = f"backend {config.backend!r} is not served", "backend", "Set it to vllm, or give MODEL"
    elif not re.fullmatch(r"http://(127\.0\.0\.1|localhost):\d+/v1/?", config.base_url):
        what, key = f"{config.base_url} is not served: a server listens on this machine alone", "base_url"
        fix = "Set it to http://127.0.0.1:PORT/v1, or start the server on its own machine"
    elif not (config.api_key_env or config.api_key_file):
        what, key, fix = "a server asks for a key, and none is named", "api_key_env", "Set it to GPTA_VLLM_KEY"
    else:
        return config
    raise ConfigError(what, where=f"{path}: assistant.{key}", fix=fix)


def _end_as_by_ctrl_c() -> None:
    """On the signals by which others end a process."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is signal.SIG_DFL:  # nohup ignores the second, and means it
            signal.signal(ending, signal.default_int_handler)


def _tell_of_waiting(server: VLLMServer, at_most: float, seconds: float) -> None:
    waited = f"{seconds:.0f} of at most {at_most:g} s"
    click.echo(f"waiting until vLLM has loaded {server.name}: {waited}; log: {server.log}", err=True)


@assistant.command()
@click.argument("runs", metavar="RUN...", type=PATH, nargs=-1, required=True)
@click.option("--output", type=PATH, required=True, help="Folder for the adapter; must not exist.")
@click.option("--model", show_default="the assistant of the runs", help="Name or folder of the base model.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of the section dialogue_gradient, as in steps=60.",
)
@click.option(
    "--history-shown", default=8, show_default=True, type=click.IntRange(0), help="Most prefixes that a dialogue shows."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def tune(
    runs: tuple[Path, ...], output: Path, model: str | None, overrides: tuple[str, ...], history_shown: int, seed: int
) -> None:
    """Teach an assistant what the histories of finished RUNs show.

    The adapter goes into `assistant.adapter` of the next configuration. No row is read: a run's history
    holds prefixes, label texts, example texts and what they were worth.

    \b
    Example:
      gpta-local assistant tune runs/FIRST runs/SECOND --output adapter
    """
    from gpta_local.cli import console
    from gpta_local.config import dialogue_gradient
    from gpta_local.dialogue_gradient import tune
    from gpta_local.dialogue_gradient.train import number_of_steps
    from gpta_local.system.library import assistant_folder

    settings = dialogue_gradient(overrides)
    dialogues = tune.dialogues_of(runs, settings, shown=history_shown, seed=seed)
    with console.TerminalObserver(0) as observer:
        observer.stage("teaching the assistant", number_of_steps(settings, len(dialogues)))
        folder = assistant_folder(model or tune.assistant_of(runs))
        step = tune.tune(folder, dialogues, output, settings, seed=seed, on_step=observer.advance)
        observer.taught(step, "")
    how = "set assistant.adapter to it, or compare it first: gpta-local assistant evaluate CONFIG"
    click.echo(f"{output.absolute()}: {how}")


@assistant.command()
@click.argument("configs", metavar="CONFIG...", type=PATH, nargs=-1, required=True)
@click.option(
    "--adapter", "adapters", multiple=True, type=PATH, help="An adapter to compare with the base; may be repeated."
)
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of all configurations.")
@click.option(
    "--samples",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Seeds, from the configuration's on: other shots, other history.",
)
@click.option(
    "--proposals", default=64, show_default=True, type=click.IntRange(1), help="Of each assistant, for each sample."
)
@click.option(
    "--first-proposals",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="From which the shown history is made.",
)
@json_option
def evaluate(
    configs: tuple[Path, ...],
    adapters: tuple[Path, ...],
    overrides: tuple[str, ...],
    samples: int,
    proposals: int,
    first_proposals: int,
    as_json: bool,
) -> None:
    """Measure the proposals of an assistant on the data of CONFIGs.

    The hit rate is the share of proposals that are new and gain more than the best prefix shown. All
    assistants are shown the same history and scored on the same training rows.

    \b
    Example:
      gpta-local assistant evaluate config.yaml --adapter adapter --samples 3
    """
    import json

    from gpta_local.assistant import open_assistant
    from gpta_local.assistant.openai_api import PROBE
    from gpta_local.cli import console
    from gpta_local.config import load
    from gpta_local.dialogue_gradient import evaluate
    from gpta_local.system.network import GUARD

    results = []
    with console.TerminalObserver(0) as observer:
        for path in configs:
            settings = load(path, overrides)
            GUARD.allow(settings.privacy.allow_hosts)
            with closing(open_assistant(settings.assistant)) as assistant:
                observer.note(f"assistant: {assistant.check(PROBE, observer.warn)}")
                for seed in range(settings.seed, settings.seed + samples):
                    observer.stage(f"{settings.card.name}, seed {seed}", 1)
                    sample = settings.model_copy(update={"seed": seed})
                    results += evaluate.measure(
                        sample, assistant, adapters, proposals=proposals, first_proposals=first_proposals
                    )
                    observer.advance()
    if as_json:
        click.echo(json.dumps(evaluate.as_records(results), indent=2, ensure_ascii=False))
    else:
        console.show_proposals(results, [str(adapter) for adapter in adapters])
