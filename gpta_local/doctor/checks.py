"""Checks of a machine and of a configuration before a run, each with a grade and what to do.

A list of small functions, run in order. They know how the parts of the package say what is wrong,
and pass it on; what is dangerous but no error of a run, they find by themselves. Nothing is changed,
nothing is sent but to the configured endpoint, no row and no secret gets into a finding, and every
wait has a limit.

Grades: "error": the run would fail, would not do what the configuration asks, or lays something open
to other machines. "warning": it runs, but look at it. "ok".

The names of the checks are the names of the functions.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpta_local import __version__
from gpta_local.config import (
    Config,
    EndpointConfig,
    LocalAssistantConfig,
    VLLMAssistantConfig,
    load,
)
from gpta_local.doctor import exposure
from gpta_local.errors import GptaError, ModelError, PrivacyError, first_line
from gpta_local.system.files import find_pickles, verify_manifest
from gpta_local.system.models import DEMO_BACKBONE, EMBEDDED_ASSISTANT
from gpta_local.system.network import GUARD, OFFLINE

if TYPE_CHECKING:
    from gpta_local.assistant import Assistant
    from gpta_local.schema import Request
    from gpta_local.tasks.base import Task

Grade = Literal["ok", "warning", "error"]

PACKAGE = "gpta-local"
TESTED_PYTHON = "3.11"
PATIENCE = 10.0
"""Seconds to wait for one answer of the endpoint."""
LOCAL_PORT = 8000
"""In the advice to make a tunnel."""
RUNS = Path("runs")
"""Where `train` puts a run if it is not told otherwise."""
SHOWN = 4
"""Paths that a finding names."""
FEW_TEST_ROWS = 100
"""With fewer, a 95 % interval of the accuracy can be wider than ± 10 points."""
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CUSTOM_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json")
"""Files in which a model names code of its own, as auto_map."""
INVITING = re.compile(
    r"(?i)(https?|all|ftp)_proxy"
    r"|HF_TOKEN|HUGGING_FACE_HUB_TOKEN|HUGGINGFACE_TOKEN|HF_ENDPOINT"
    r"|WANDB_(API_KEY|BASE_URL|ENTITY|PROJECT)|MLFLOW_TRACKING_\w+|COMET_\w+|NEPTUNE_\w+|CLEARML_\w+|DVC_STUDIO_\w+"
    r"|SWANLAB_\w+|TRACKIO_\w+|SENTRY_DSN|OTEL_EXPORTER_\w+|VLLM_USAGE_STATS_SERVER|VLLM_S3_\w+"
)
"""Variables by which a user says to some library: go on the network, or report."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is the name of the check, `fix` what to do; empty where there is nothing to do."""

    check: str
    grade: Grade
    finding: str
    fix: str = ""


Verdict = tuple[Grade, str] | tuple[Grade, str, str]
"""What a check finds: grade, finding and, maybe, what to do."""


@dataclass
class Case:
    """What the checks look at: the configuration, its file, and what earlier checks have opened."""

    config: Config
    path: Path
    task: Task | None = None
    """With its data read; None where that failed."""
    assistant: Assistant | None = None
    """Open, and where it is served, found to answer; None where it is not."""


Check = Callable[[], Iterable[Verdict]]


def examine(path: Path | None, overrides: Sequence[str] = ()) -> list[Finding]:
    """Run all checks: of this machine and, if a configuration file is given, of that.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    case = Case(load(path, overrides), path) if path else None
    GUARD.allow(case.config.privacy.allow_hosts if case else ())
    checks: dict[str, Check] = {check.__name__: check for check in OF_THE_MACHINE}
    if case is not None:
        checks |= {check.__name__: partial(check, case) for check in OF_THE_CONFIGURATION}
    findings = [finding for name, check in checks.items() for finding in _findings(name.replace("_", "-"), check)]
    if case is not None and case.assistant is not None:
        case.assistant.close()
    return findings


def _findings(name: str, check: Check) -> Iterator[Finding]:
    """What a check finds; its own failure is a finding too."""
    try:
        for verdict in check():
            yield Finding(name, *verdict)
    except GptaError as exc:
        yield Finding(name, "error", f"{exc.where}: {exc.what}" if exc.where else exc.what, exc.fix)
    except Exception as exc:  # whatever it is, the other checks are still worth their while
        yield Finding(name, "error", f"could not be checked ({type(exc).__name__})", "Please report this")


def versions() -> dict[str, str]:
    """Of this program, Python and the packages that it stands on; those that are not there are left out."""
    found = {PACKAGE: __version__, "python": platform.python_version()}
    for requirement in _requirements():
        with suppress(importlib.metadata.PackageNotFoundError):
            found[requirement.name] = importlib.metadata.version(requirement.name)
    return found


# ── the machine ─────────────────────────────────────────────────────────────────────────────────


def python() -> Iterator[Verdict]:
    version = platform.python_version()
    if version.startswith(f"{TESTED_PYTHON}."):
        yield "ok", version
    else:
        yield "warning", f"{version}; the tests ran with {TESTED_PYTHON}", "Keep it unless something goes wrong"


def packages() -> Iterator[Verdict]:
    """Against the ranges of the package's metadata, and against the versions of the tests."""
    constraints = _constraints_file()
    lines = re.findall(r"(?m)^[\w.-]+==\S+", constraints.read_text(encoding="utf-8"))
    tested = {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, lines)}
    others, count = [], 0
    for requirement in _requirements():
        name = requirement.name
        fix = f'pip install "{requirement}"'
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield "error", f"{name} is not installed", fix
            continue
        count += 1
        pin = tested[canonicalize_name(name)]
        if not requirement.specifier.contains(version, prereleases=True):
            yield "error", f"{name} {version} is out of the range {requirement.specifier}", fix
        elif not pin.contains(version, prereleases=True):
            others.append(f"{name} {version} (tested {str(pin).removeprefix('==')})")
    if others:
        fix = f"For the tested versions: pip install -c {shlex.quote(_short(constraints))} {PACKAGE}"
        yield "warning", f"{len(others)} of {count} in their range, but not as tested: {', '.join(others)}", fix
    else:
        yield "ok", f"all {count} as tested"


def devices() -> Iterator[Verdict]:
    import torch

    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU"
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    line = f"torch {torch.__version__} {build}; {_count(cores, 'core')}, {_count(threads, 'thread')}"
    if threads > cores:
        yield "warning", line, f"More threads than cores make it slow: export OMP_NUM_THREADS={cores}"
    else:
        yield "ok", line
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield "ok", f"cuda:{number} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if NVIDIA_DRIVER.exists() and not torch.cuda.is_available():
        yield "warning", "an NVIDIA driver is here, but torch sees no GPU", "Install the torch for its CUDA version"


def disk() -> Iterator[Verdict]:
    """Where `train` puts its runs."""
    from gpta_local.record.folder import HISTORY_ROOM

    place = _nearest_existing(RUNS.absolute())
    free = shutil.disk_usage(place).free
    where = f"{_short(RUNS.absolute())}: {free / 2**30:.1f} GiB free"
    if not place.is_dir() or not os.access(place, os.W_OK):
        yield "error", f"{place} cannot be written, and runs go there", "Choose another place with train --output"
    elif free < HISTORY_ROOM:
        yield "error", where, "Make room, or choose another place with train --output"
    elif kind := exposure.network_file_system(place):
        fix = "Choose a place on a local disk with train --output"
        yield "warning", f"{where}, on a network file system ({kind}), where SQLite's locks may fail", fix
    else:
        yield "ok", where


def environment() -> Iterator[Verdict]:
    """What the user's shell says to libraries; only names of variables are told, never values."""
    found = sorted(name for name in os.environ if INVITING.fullmatch(name) and name not in OFFLINE)
    if found:
        line = f"set in this shell: {', '.join(found)}. gpta-local uses none of them, but other programs may"
        yield "warning", line, f"unset {' '.join(found)}"
    yield "ok", f"gpta-local itself sets {len(OFFLINE)} variables that keep libraries quiet, such as {min(OFFLINE)}"


# ── the configuration ───────────────────────────────────────────────────────────────────────────


def modes(case: Case) -> Iterator[Verdict]:
    """Whether other accounts of this machine can read what is private."""
    data = case.config.data
    named = [case.path, *(Path(path) for path in (data.train, data.validation, data.test) if path)]
    keys = sorted(Path.cwd().glob("*.log.key"))  # of `assistant serve`; `assistant.api_key_file` is checked on use
    runs = sorted(RUNS.iterdir()) if RUNS.is_dir() else []
    private = [path for path in (*named, *keys, *runs) if path.exists()]
    readable = [path for path in private if exposure.readable_by_others(path)]
    if readable:
        line = f"any account of this machine can read {_named(readable)}"
        yield "warning", line, f"chmod -R o-rwx {_quoted(readable)}"
    else:
        yield "ok", "other accounts cannot read the configuration, the data and earlier runs"


def backbone_files(case: Case) -> Iterator[Verdict]:
    from gpta_local.system.models import backbone_folder

    backbone = case.config.downstream.backbone
    yield from _model_files(backbone_folder(backbone), ours=backbone == DEMO_BACKBONE)


def assistant_files(case: Case) -> Iterator[Verdict]:
    """The folder of a local assistant, or that of a served one's weights, where it is known before asking."""
    from gpta_local.system.adapters import check_adapter
    from gpta_local.system.models import assistant_folder, checked_folder

    config = case.config.assistant
    if isinstance(config, LocalAssistantConfig):
        folder = assistant_folder(config.model)
        yield from _model_files(folder, ours=config.model == EMBEDDED_ASSISTANT)
        if config.adapter is not None:
            check_adapter(Path(config.adapter), folder)
            yield "ok", f"the adapter {_short(Path(config.adapter))} fits it"
    elif isinstance(config, EndpointConfig) and config.weights is not None:
        yield from _model_files(checked_folder(config.weights, "assistant.weights"), ours=False)


def data(case: Case) -> Iterator[Verdict]:
    """The rows, read as `train` reads them."""
    from gpta_local.downstream.probe import FOLDS
    from gpta_local.tasks import open_task

    try:
        task = case.task = open_task(case.config)
    except ModelError:
        yield "warning", "not read, as the backbone cannot be opened", "Mend the backbone first"
        return
    splits, labels = task.splits(), task.label_names
    yield from _leaks(case.config, task)
    train, test = splits.train, splits.test
    sizes = f"{len(train)} training, {len(splits.validation)} validation, {len(test)} test rows"
    yield "ok", f"{len(labels)} labels; {sizes}"
    for sentence in splits.warnings:
        yield "warning", sentence
    rows, label = min((count, label) for label, count in Counter(example.label for example in train).items())
    if rows < FOLDS:
        few = _count(rows, "training row")
        line = f"{few} of the label {labels[label]!r} for the {FOLDS} folds that score prefixes"
        yield "warning", line, "Add rows, or raise data.shots"
    if not test:
        yield "warning", "no test rows, so no figure of the result is unbiased", "Set data.test"
    elif len(test) < FEW_TEST_ROWS:
        width = 98 / len(test) ** 0.5
        yield "warning", f"{len(test)} test rows tell an accuracy to within ± {width:.0f} points", "Add test rows"


def _leaks(config: Config, task: Task) -> Iterator[Verdict]:
    """Whether the card, or a field of all requests, holds words of rows or personal data."""
    from gpta_local.privacy.leak_scan import scan_of, weaker_than_default

    try:
        scan_of(config, task.texts(), task.card())
    except PrivacyError as exc:
        yield "error", f"{exc.where}: {exc.what}", exc.fix
    if weakness := weaker_than_default(config.privacy.leak_scan):
        yield "warning", weakness, "Leave privacy.leak_scan as it is by default"


def backbone(case: Case) -> Iterator[Verdict]:
    """The model before training, on its device, and room for what is made of it."""
    from gpta_local.record.folder import HISTORY_ROOM
    from gpta_local.run.plan import Plan
    from gpta_local.system.models import multiplies_in_bf16, resolve_device

    training = case.config.training
    device = resolve_device(training.device, "training.device")
    if case.task is None:
        return
    model = case.task.build_plain()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    bf16 = multiplies_in_bf16(training.precision, device)
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters"
    numbers = "bfloat16" if bf16 else "float32"
    yield "ok", f"{size}, inputs of {model.tokenizer.max_length} tokens, on {device}, multiplies in {numbers}"
    if bf16 and not multiplies_in_bf16("auto", device):
        yield "warning", f"{device} has no bfloat16 and is slow with it", "Set training.precision to auto"
    if not case.task.uses_label_texts:
        line = "a plain encoder: its head starts at random, not from label texts"
        yield "warning", line, "Take a sentence-transformers backbone with mean pooling, if there is one"
    plan = Plan(case.config, case.task, case.task.splits(), case.task.card())
    free, needed = shutil.disk_usage(_nearest_existing(RUNS.absolute())).free, plan.room(weights) + HISTORY_ROOM
    if free < needed:
        line = f"a run needs {needed // 2**20} MiB, and the disk of {_short(RUNS.absolute())} has {free // 2**20}"
        yield "error", line, "Make room, or choose another place with train --output"


def assistant(case: Case) -> Iterator[Verdict]:
    """Whether it answers. A served one is asked for two completions of one token; a local one is not loaded."""
    from gpta_local.assistant import open_assistant
    from gpta_local.system.models import resolve_device

    config = case.config.assistant
    if isinstance(config, LocalAssistantConfig):
        device = resolve_device(config.device, "assistant.device")
        case.assistant = open_assistant(config)
        yield "ok", f"{config.model} in this process, on {device}"
        return
    if isinstance(config, EndpointConfig):
        config = config.model_copy(update={"timeout": min(config.timeout, PATIENCE), "max_retries": 0})
    opened = open_assistant(config)
    line = opened.check()
    case.assistant = opened
    yield "ok", line


def transport(case: Case) -> Iterator[Verdict]:
    """Whether what is sent can be read on its way."""
    config = case.config.assistant
    if not isinstance(config, EndpointConfig):
        return
    address = urlsplit(config.base_url)
    if address.scheme == "https":
        yield "ok", "encrypted (https)"
    elif exposure.is_own_address(address.hostname or ""):
        yield "ok", "stays on this machine"
    else:
        tunnel = f"ssh -N -L {LOCAL_PORT}:127.0.0.1:{address.port or 80} {address.hostname}"
        fix = f"Use https, or a tunnel: {tunnel}, and assistant.base_url: http://127.0.0.1:{LOCAL_PORT}/v1"
        yield "error", f"key, description and gains go to {address.hostname} in clear (http)", fix


def exposed_server(case: Case) -> Iterator[Verdict]:
    """Where a server on this machine listens, and what the server gives without a key to whoever reaches it."""
    config = case.config.assistant
    if not isinstance(config, EndpointConfig) or case.assistant is None:
        return
    address = urlsplit(config.base_url)
    public = not exposure.is_own_address(address.hostname or "")
    if not public:
        port = address.port or (443 if address.scheme == "https" else 80)
        listening = exposure.listening_on(port)
        wide = [str(place) for place in listening if not place.is_loopback]
        public = bool(wide)
        if public:
            line = f"the server listens on {', '.join(wide)}, port {port}: other machines reach it"
            yield "warning", line, "Start it with --host 127.0.0.1, as `gpta-local assistant serve` does"
        elif listening:
            yield "ok", f"the server listens on {', '.join(map(str, listening))} only"
        else:
            yield "warning", f"where port {port} listens is not seen here", "Is it in a container? Look at its ports"
    routes = exposure.keyless_routes(config.base_url, PATIENCE)
    given = [f"{route} ({exposure.OPENS[route]})" for route in routes if route in exposure.OPENS]
    told = [route for route in routes if route not in exposure.OPENS]
    if given:
        who = "any machine that reaches it" if public else "any account of this machine"
        line = f"without a key, {who} can use {', '.join(given)}; it also answers {', '.join(told)}"
        fix = "Let it listen on 127.0.0.1 only, or put a proxy before it that passes nothing but /v1 on, with the key"
        if not public:
            fix = "vLLM's key guards /v1 alone: give accounts of this machine only to people who may use the model"
        yield "error" if public else "warning", line, fix
    else:
        yield "ok", f"without a key only {', '.join(told)} answer" if told else "nothing answers without a key"
    if isinstance(config, VLLMAssistantConfig) and "/version" in routes:
        yield from _server_version(routes["/version"])


def requests(case: Case) -> Iterator[Verdict]:
    """Whether the longest request and its reply fit into the context, where tokenizer and context are known."""
    from gpta_local.assistant.local import SHORTEST_LINE
    from gpta_local.assistant.prompts import label_texts_request, prefix_request, reply_room
    from gpta_local.schema import ScoredPrefix

    known = _tokenizer_and_context(case)
    if known is None or case.task is None:
        return
    tokenizer, context = known
    search, card = case.config.search, case.task.card()
    longest = ScoredPrefix("word " * search.max_prefix_tokens, 0.0, 0.0, 0.0, 0)
    for request in (prefix_request(card, [longest] * search.history_shown), label_texts_request(card)):
        room = case.config.assistant.max_new_tokens or reply_room(request, card)
        if isinstance(case.config.assistant, LocalAssistantConfig):  # its replies are cut to the room that is left
            room = SHORTEST_LINE * len(request.labels) or room
        length = _length(tokenizer, request)
        what = "label texts" if request.labels else "a prefix"
        line = f"to ask for {what} takes about {length} tokens and {room} for the reply, of {context}"
        if length + room > context:
            fix = "Shorten card.description, or lower search.history_shown or assistant.max_new_tokens"
            yield "error", line, fix
        else:
            yield "ok", line


def dialogue_gradient(case: Case) -> Iterator[Verdict]:
    """Whether the assistant can be trained here, and whether it will take the adapters."""
    from gpta_local.assistant.vllm import VLLMAssistant
    from gpta_local.dialogue_gradient.trial import weights_to_train
    from gpta_local.system.adapters import adapter_rank, check_adapter
    from gpta_local.system.models import resolve_device

    settings, config, opened = case.config.dialogue_gradient, case.config.assistant, case.assistant
    if opened is None:
        return
    adapter = config.adapter if isinstance(config, VLLMAssistantConfig) else None
    if isinstance(opened, VLLMAssistant) and adapter is not None:
        if not opened.takes_adapters:
            yield "error", f"the run begins with an adapter, and {opened.adapters_refused}"
            return
        if opened.weights is not None:
            check_adapter(Path(adapter), opened.weights)
        opened.check_rank(adapter_rank(Path(adapter)))
        yield "ok", f"the server takes the adapter {_short(Path(adapter))}"
    if settings is None:
        return
    weights = weights_to_train(opened, config)
    if weights is None:
        yield "ok", "the assistant is trained in this process"
    else:
        device = resolve_device(settings.device, "dialogue_gradient.device")
        yield "ok", f"the assistant is trained on {_short(weights)}, on {device}"
    if not opened.takes_adapters:
        yield "warning", f"adapters are trained and saved, but do not answer: {opened.adapters_refused}"
    elif isinstance(opened, VLLMAssistant) and adapter is None:
        opened.check_rank(settings.rank)
        yield "ok", f"the server takes adapters of rank {settings.rank}"


OF_THE_MACHINE = (python, packages, devices, disk, environment)
OF_THE_CONFIGURATION = (
    *(modes, backbone_files, assistant_files, data, backbone),
    *(assistant, transport, exposed_server, requests, dialogue_gradient),
)


# ── what the checks share ───────────────────────────────────────────────────────────────────────


def _requirements() -> list[Requirement]:
    """What this package needs, extras left out."""
    found = map(Requirement, importlib.metadata.requires(PACKAGE) or [])
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def _constraints_file() -> Path:
    """The versions of the tests: below the package in a wheel, in `requirements/` in a checkout."""
    package = Path(__file__).parent.parent
    embedded = package / "embedded" / "constraints.txt"
    return embedded if embedded.is_file() else package.parent / "requirements" / "constraints.txt"


def _model_files(folder: Path, *, ours: bool) -> Iterator[Verdict]:
    """Whether weights are whole, as in their SHA256SUMS, not to be changed by others, and free of code.

    Args:
        ours: whether it came with a package; its build scripts are no code of a model.

    Raises:
        ModelError: a file is broken or not as in SHA256SUMS.
    """
    from safetensors import SafetensorError, safe_open

    weights = sorted(folder.rglob("*.safetensors"))
    for path in weights:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError) as exc:
            raise ModelError(f"damaged or cut off ({exc})", where=str(path), fix="Copy the model again") from exc
    verify_manifest(folder)
    size = sum(path.stat().st_size for path in weights) / 2**20
    manifest = "as in SHA256SUMS" if (folder / "SHA256SUMS").is_file() else "no SHA256SUMS to compare with"
    yield "ok", f"{_short(folder)}: {_count(len(weights), 'weights file')}, {size:.0f} MiB, {manifest}"
    if writable := exposure.writable_by_others(folder):
        line = f"any account of this machine can change {_named(writable)}"
        yield "error", line, f"chmod -R o-w {_quoted([folder])}, and make sure that the model is still the right one"
    if pickles := find_pickles(folder):
        yield "warning", f"can run code, and are never loaded: {_named(pickles)}", "Remove them"
    if code := _custom_code(folder, ours):
        line = f"comes with code of its own, which is never run: {', '.join(code)}"
        yield "warning", line, "Take a model that the libraries know, if this one does not load"


def _custom_code(folder: Path, ours: bool) -> list[str]:
    found = [] if ours else [path.name for path in sorted(folder.rglob("*.py"))]
    for name in CUSTOM_CODE:
        with suppress(OSError, ValueError):
            if "auto_map" in json.loads((folder / name).read_text(encoding="utf-8")):
                found.append(f"auto_map in {name}")
    return found


def _server_version(answer: str) -> Iterator[Verdict]:
    """Of a vLLM server, against the range of the extra `vllm`."""
    try:
        version = str(json.loads(answer)["version"])
    except (ValueError, LookupError, TypeError):
        return
    known = next(r for r in map(Requirement, importlib.metadata.requires(PACKAGE) or []) if r.name == "vllm")
    if known.specifier.contains(version, prereleases=True):
        yield "ok", f"vLLM {version}"
    else:
        yield "warning", f"the server is vLLM {version}; tested is {known.specifier}", "Try a short run first"


def _tokenizer_and_context(case: Case) -> tuple[Any, int] | None:
    """Of the assistant; None where either is not known on this machine.

    Raises:
        ModelError: the folder has no tokenizer that can be loaded.
    """
    from gpta_local.assistant.local import LocalAssistant
    from gpta_local.assistant.vllm import VLLMAssistant
    from gpta_local.system.models import assistant_folder, load_config, load_tokenizer

    if isinstance(case.assistant, LocalAssistant):
        folder: Path | None = assistant_folder(case.assistant.name)
    else:
        folder = case.assistant.weights if isinstance(case.assistant, VLLMAssistant) else None
    if folder is None:
        return None
    try:
        tokenizer = load_tokenizer(folder)
        own = getattr(load_config(folder), "max_position_embeddings", None)
    except Exception as exc:  # a broken folder raises OSError, ValueError, KeyError …
        raise ModelError(f"the tokenizer cannot be loaded: {first_line(exc)}", where=str(folder)) from exc
    context = case.assistant.max_model_len if isinstance(case.assistant, VLLMAssistant) else own
    return (tokenizer, context) if context else None


def _length(tokenizer: Any, request: Request) -> int:
    """Tokens of a request as the model reads it."""
    from gpta_local.assistant.local import chat

    text = tokenizer.apply_chat_template(
        chat(tokenizer, request, "assistant.model"), tokenize=False, add_generation_prompt=True
    )
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _nearest_existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _short(path: Path) -> str:
    """Relative to the working directory, where it is below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _named(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(_short, paths[:SHOWN])) + more


def _quoted(paths: Sequence[Path]) -> str:
    return " ".join(shlex.quote(_short(path)) for path in paths)
