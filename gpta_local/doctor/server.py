"""Checks of the assistant: whether it answers, who can listen or reach it, what fits, whether it can be taught."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gpta_local.config import EndpointConfig, LocalAssistantConfig, VLLMAssistantConfig
from gpta_local.doctor import exposure
from gpta_local.doctor.findings import Case, Outcome, short
from gpta_local.doctor.machine import requirements
from gpta_local.errors import ModelError, first_line
from gpta_local.system.adapters import adapter_rank, check_adapter
from gpta_local.system.library import assistant_folder, is_name, stored
from gpta_local.system.models import load_config, load_tokenizer, resolve_device

if TYPE_CHECKING:
    from gpta_local.schema import Ask, Request

PATIENCE = 120.0
"""Seconds to wait for one answer of the endpoint: it writes what the run will ask for."""
ROUTE_PATIENCE = 10.0
"""Seconds to wait for an answer that takes no model."""
LOCAL_PORT = 8000
"""In the advice to make a tunnel."""


def assistant(case: Case) -> Iterator[Outcome]:
    """Whether it answers. A served one is asked what the run will ask first, if the card may leave, and else for a word
    or two; a local one is not loaded."""
    from gpta_local.assistant import open_assistant

    config = case.config.assistant
    if isinstance(config, LocalAssistantConfig):
        device = resolve_device(config.device, "assistant.device")
        case.assistant = open_assistant(config)
        yield "ok", f"{config.model} in this process, on {device}"
        return
    if isinstance(config, EndpointConfig):
        config = config.model_copy(update={"timeout": min(config.timeout, PATIENCE), "max_retries": 0})
    opened = open_assistant(config)
    told: list[str] = []
    line = opened.check(_first_ask(case), told.append)
    case.assistant = opened
    yield "ok", line
    for sentence in told:
        yield "warning", sentence


def _first_ask(case: Case) -> Ask:
    from gpta_local.assistant.openai_api import PROBE
    from gpta_local.run.plan import Plan

    if case.task is None or case.scan is None:
        return PROBE
    first = Plan(case.config, case.task, case.task.splits(), case.task.card()).first_ask()
    case.scan.check(first.request)
    return first


def transport(case: Case) -> Iterator[Outcome]:
    """Whether what is sent can be read on its way."""
    config = case.config.assistant
    for url in config.base_urls if isinstance(config, EndpointConfig) else ():
        yield from _transport(url)


def _transport(url: str) -> Iterator[Outcome]:
    address = urlsplit(url)
    if address.scheme == "https":
        yield "ok", "encrypted (https)"
    elif exposure.is_own_address(address.hostname or ""):
        yield "ok", "stays on this machine"
    else:
        tunnel = f"ssh -N -L {LOCAL_PORT}:127.0.0.1:{address.port or 80} {address.hostname}"
        fix = f"Use https, or a tunnel: {tunnel}, and assistant.base_url: http://127.0.0.1:{LOCAL_PORT}/v1"
        yield "error", f"key, description and gains go to {address.hostname} in clear (http)", fix


def exposed_server(case: Case) -> Iterator[Outcome]:
    """Where a server on this machine listens, and what the server gives without a key to whoever reaches it."""
    config = case.config.assistant
    if not isinstance(config, EndpointConfig) or case.assistant is None:
        return
    for url in config.base_urls:
        yield from _exposed(url, of_vllm=isinstance(config, VLLMAssistantConfig))


def _exposed(url: str, *, of_vllm: bool) -> Iterator[Outcome]:
    address = urlsplit(url)
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
    routes = exposure.keyless_routes(url, ROUTE_PATIENCE)
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
    if of_vllm and "/version" in routes:
        yield from _server_version(routes["/version"])


def requests(case: Case) -> Iterator[Outcome]:
    """Whether the longest request and its reply fit into the context, where tokenizer and context are known."""
    from gpta_local.assistant.local import SHORTEST_LINE
    from gpta_local.assistant.prompts import label_texts_request, parts_of, phrases_that_fit, prefix_request, reply_room
    from gpta_local.schema import ScoredPrefix

    known = _tokenizer_and_context(case)
    if known is None or case.task is None:
        return
    tokenizer, context = known
    search, card = case.config.search, case.task.card()
    longest = ScoredPrefix("word " * search.max_prefix_tokens, 0.0, 0.0, 0.0, 0)
    given = case.config.assistant.max_new_tokens
    label_texts = map(label_texts_request, parts_of(card, phrases_that_fit(given)))
    longest_of_these = max(label_texts, key=lambda request: len(request.messages[-1].content))
    for request in (prefix_request(card, [longest] * search.history_shown), longest_of_these):
        room = given or reply_room(request)
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


def dialogue_gradient(case: Case) -> Iterator[Outcome]:
    """Whether the assistant can be trained here, and whether it will take the adapters."""
    from gpta_local.assistant.vllm import VLLMAssistant
    from gpta_local.dialogue_gradient.trial import weights_to_train

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
        yield "ok", f"the server takes the adapter {short(Path(adapter))}"
    if settings is None:
        return
    weights = weights_to_train(opened, config)
    if weights is None:
        yield "ok", "the assistant is trained in this process"
    else:
        device = resolve_device(settings.device, "dialogue_gradient.device")
        yield "ok", f"the assistant is trained on {short(weights)}, on {device}"
    if not opened.takes_adapters:
        yield "warning", f"adapters are trained and saved, but do not answer: {opened.adapters_refused}"
    elif isinstance(opened, VLLMAssistant) and adapter is None:
        opened.check_rank(settings.rank)
        yield "ok", f"the server takes adapters of rank {settings.rank}"


def _server_version(answer: str) -> Iterator[Outcome]:
    """Of a vLLM server, against the range of the extra `vllm`."""
    try:
        version = str(json.loads(answer)["version"])
    except (ValueError, LookupError, TypeError):
        return
    known = next(r for r in requirements("vllm") if r.name == "vllm")
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

    if isinstance(case.assistant, LocalAssistant):
        name = case.assistant.name
        folder: Path | None = stored(name) if is_name(name) else assistant_folder(name)
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
