"""A vLLM server as an assistant.

Knows what vLLM does beyond the chat API: it says the room of the model's context, it can hold a
reply to a form, and it takes LoRA adapters while it runs. Neither starts nor stops a server, and
trains nothing.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpta_local.assistant.faults import own_words
from gpta_local.assistant.openai_api import PROBE, OpenAIAssistant
from gpta_local.assistant.vllm_server import LORA_RANKS, allowed_rank
from gpta_local.errors import AdapterRefused, AssistantError, EndpointError
from gpta_local.schema import Ask, Completion, Request, Sampling
from gpta_local.system.adapters import ADAPTER_CONFIG, adapter_digest, check_adapter
from gpta_local.system.models import checked_folder

if TYPE_CHECKING:
    from openai import APIStatusError
    from openai._types import RequestOptions

LINE_WORDS = 25
"""Words that a line may have after its start, where the form of the reply is given. A limit on characters takes vLLM
fourteen times as long to prepare: nearly five seconds with 150,000 tokens, and after five it gives up (docs/LOG.md)."""
PATIENCE = 5.0
"""Seconds for what is only tidying up."""
NO_SUCH_FOLDER = "/gpta-local asks whether this server takes adapters"
"""Absolute: vLLM would look for any other on the network."""
ADD_LORA_FAILED = re.compile(r"Call to add_lora method failed: (?:Worker failed with error ')?(.*?)(', please.*)?")
RESTART = (
    "Restart it with --enable-lora and the environment variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, "
    "or start it with `gpta-local assistant serve`"
)


class _FolderNotSeen(AdapterRefused):
    pass


class _NotLoaded(AdapterRefused):
    pass


class _RankTooHigh(AdapterRefused):
    pass


class _AdapterGone(EndpointError):
    """The server does not know an adapter that it had: it was started anew."""


class VLLMAssistant(OpenAIAssistant):
    """An `OpenAIAssistant` that insists on vLLM; its list of models is complete and is believed.

    Adapters are checked here before the server hears of them: it takes one of another base model
    too, and answers nonsense. Each is loaded under a name that was never used before, because the
    server keeps what it computed from a prompt by the adapter's name and folder, and because
    several runs may use one server.

    After `check`: `max_model_len` is the room, in tokens, for a request and its completion;
    `weights` is the folder of the base model, if it is known; `adapters_refused` says why not where
    `takes_adapters` is false.

    Args:
        weights: the served model's folder on this machine; None: the one that the server names.
        endpoint: as for `OpenAIAssistant`.
    """

    max_model_len: int | None = None
    adapters_refused = "Whether the server takes adapters is known after the check"

    def __init__(self, model: str, *, weights: Path | None = None, **endpoint: Any) -> None:
        super().__init__(model, **endpoint)
        self.weights = weights
        self._loaded: dict[Path, str] = {}
        self._in_use: Path | None = None

    def check(self, ask: Ask = PROBE, tell: Callable[[str], None] = lambda _: None) -> str:
        if self.weights is not None:
            checked_folder(str(self.weights), "assistant.weights")
        line = super().check(ask, tell)
        facts = self._served.get(self.name, {})
        room = facts.get("max_model_len")
        if not isinstance(room, int):
            what = "the server answers, but not as vLLM: its list of models has no max_model_len"
            raise EndpointError(what, where=self._at("base_url"), fix="Set assistant.backend to openai")
        self.max_model_len = room
        self.weights = self.weights or _model_folder(facts.get("root"))
        self.adapters_refused = self._why_no_adapters()
        self.takes_adapters = not self.adapters_refused
        return f"{line} (vLLM, context of {room} tokens)"

    def complete_all(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        """As in the protocol. A server that was started anew is given the adapter once more.

        Raises:
            AdapterRefused: it does not take it any more.
        """
        try:
            return super().complete_all(asks)
        except _AdapterGone:
            self._loaded.clear()
            self.use_adapter(self._in_use)
        return super().complete_all(asks)

    def use_adapter(self, folder: Path | None) -> None:
        folder = folder and folder.resolve()
        if folder is not None and folder not in self._loaded:
            self._loaded[folder] = self._load(folder)
        self._in_use = folder
        self._asked_for = self.name if folder is None else self._loaded[folder]

    @property
    def _adapter(self) -> str:
        return adapter_digest(self._in_use) if self._in_use else ""

    def drop_adapter(self, folder: Path) -> None:
        """As in the protocol; one that is not loaded is dropped already.

        Raises:
            ValueError: the adapter is in use.
            EndpointError: the server cannot be reached.
        """
        folder = folder.resolve()
        if folder == self._in_use:
            raise ValueError(f"the adapter {folder} is in use")
        if folder in self._loaded:
            self._unload(self._loaded[folder])
            del self._loaded[folder]

    def check_rank(self, rank: int) -> None:
        """Find out whether the server takes adapters of a rank, by asking it to load one without weights,
        which changes nothing. A server that does not see this machine's files says nothing of ranks.

        Raises:
            AdapterRefused: the rank is greater than the server was started for.
            EndpointError: the server cannot be reached.
        """
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": []}
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
            try:
                self._change("load", {"lora_name": f"{self.name}-{uuid.uuid4().hex[:12]}", "lora_path": folder})
            except _RankTooHigh:
                raise
            except AdapterRefused:  # for want of weights
                pass

    def close(self) -> None:
        try:
            with suppress(AssistantError):  # a server that is gone holds no adapters
                for name in self._loaded.values():
                    self._unload(name, timeout=PATIENCE)
        finally:
            self._loaded.clear()
            super().close()

    def _load(self, folder: Path) -> str:
        """Load an adapter into the server: the name under which it answers."""
        if self.weights is None:
            raise self._unknown_weights()
        check_adapter(folder, self.weights)
        name = f"{self.name}-{folder.name}-{uuid.uuid4().hex[:12]}"
        try:
            self._change("load", {"lora_name": name, "lora_path": str(folder)})
        except AdapterRefused:
            raise
        except BaseException:  # after a timeout or Ctrl-C the server may still load it
            with suppress(AssistantError):
                self._unload(name, timeout=PATIENCE)
            raise
        return name

    def _unload(self, name: str, timeout: float | None = None) -> None:
        with suppress(_NotLoaded):
            self._change("unload", {"lora_name": name}, timeout)

    def _change(self, action: str, body: Mapping[str, str], timeout: float | None = None) -> None:
        """Not tried again: vLLM's answer to an adapter that it does not take is that of a passing failure."""
        options: RequestOptions = {"max_retries": 0} if timeout is None else {"max_retries": 0, "timeout": timeout}
        with self._explained(self._adapter_refusal):
            self._in_time(lambda: self._client.post(f"/{action}_lora_adapter", body=body, cast_to=str, options=options))

    def _why_no_adapters(self) -> str:
        """Empty if there is no reason. Asks the server to load what does not exist, which changes nothing."""
        name = f"{self.name}-{uuid.uuid4().hex[:12]}"
        try:
            self._change("load", {"lora_name": name, "lora_path": NO_SUCH_FOLDER})
        except _FolderNotSeen:
            return "" if self.weights else str(self._unknown_weights())
        except AssistantError as exc:
            return str(exc)
        return f"{self._at('base_url')}: the server says that it loaded an adapter that does not exist"

    def _adapter_refusal(self, exc: APIStatusError) -> AssistantError:
        """What a status other than 2xx means where an adapter is loaded or unloaded.

        vLLM answers 500 to an adapter that it does not take, and to everything once it is dying.
        """
        status, where = exc.status_code, self._at("base_url")
        said = " ".join(own_words(exc.response.text).split()) or "no explanation"
        failed = ADD_LORA_FAILED.fullmatch(said)
        words = self._quote(failed[1] if failed else said).rstrip(".")
        if status == 404 and "No adapter found" in said:
            fix = "It must run on this machine, or see the folder under the same path"
            return _FolderNotSeen(f"the server does not see the adapter's folder (404): {words}", where=where, fix=fix)
        if status == 404 and "lora adapter" in said:
            return _NotLoaded(f"the server does not have the adapter (404): {words}", where=where)
        if status in (404, 405, 501):
            what = f"the server does not load adapters while it runs ({status}): {words}"
            return AdapterRefused(what, where=where, fix=RESTART)
        if failed is None and status not in (400, 422):
            return self._refusal(exc)
        kind = AdapterRefused
        what, fix = f"the server refuses the adapter ({status}): {words}", "Look at the server's log"
        if "LoRA is not enabled" in said:
            what, fix = f"the server takes no adapters ({status}): {words}", RESTART
        elif rank := re.search(r"rank (\d+) is greater than max_lora_rank", said):
            kind = _RankTooHigh
            enough = allowed_rank(min(int(rank[1]), LORA_RANKS[-1]))
            fix = (
                f"Restart it with --max-lora-rank {enough} or `gpta-local assistant serve --max-lora-rank {enough}`, "
                "or lower dialogue_gradient.rank"
            )
        return kind(what, where=where, fix=fix)

    def _unknown_weights(self) -> AdapterRefused:
        what = "which weights the server has is not known here, so no adapter can be trained or checked"
        return AdapterRefused(what, where=self._at("base_url"), fix="Set assistant.weights to the model's folder")

    def _no_such_model(self, what: str) -> EndpointError:
        if self._in_use is None:
            return super()._no_such_model(what)
        fix = f"It had the adapter {self._in_use}: was it started anew?"
        return _AdapterGone(what, where=self._at("model"), fix=fix)

    def _answered_as(self, served_name: str) -> str:
        """The adapter's folder instead of a name that is another each time."""
        return served_name if self._in_use is None else f"{self.name}+{self._in_use.name}"

    def _body(self, request: Request, sampling: Sampling, first: int, n: int) -> dict[str, Any]:
        body = super()._body(request, sampling, first, n)
        if request.line_starts:
            lines = (f"{re.escape(start)}( [^ \\n]+){{1,{LINE_WORDS}}}" for start in request.line_starts)
            body["structured_outputs"] = {"regex": "\\n".join(lines)}
        return body


def _model_folder(root: object) -> Path | None:
    """The path that the server names, if it means a model folder here; a relative one need not."""
    folder = Path(root) if isinstance(root, str) else None
    return folder if folder and folder.is_absolute() and (folder / "config.json").is_file() else None
