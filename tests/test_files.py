"""Secrets, pickles, manifests and archives: what is refused is refused whole, with one message."""

from __future__ import annotations

import ast
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from commands import ROOT
from evil_archives import plain, tarred, zipped
from samples import sentiment_rows, write_config, write_jsonl

from gpta_local.assistant import open_assistant
from gpta_local.config import load
from gpta_local.downstream.product import open_product
from gpta_local.errors import ConfigError, GptaError, ModelError
from gpta_local.record.history import History
from gpta_local.schema import Message, Request, Sampling
from gpta_local.system import files, manifests, models
from gpta_local.system.files import owner_only, read_secret
from gpta_local.system.manifests import MANIFEST, verify_manifest, write_manifest
from gpta_local.system.models import checked_folder
from gpta_local.system.pickles import find_pickles

KEY = "planted-0123456789-key"


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


class TestSecrets:
    def file(self, folder: Path, content: str | bytes = f"{KEY}\n", permissions: int = 0o600) -> Path:
        path = folder / "key"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(permissions)
        return path

    @pytest.mark.parametrize("permissions", [0o600, 0o400])
    def test_key_of_a_file_that_is_its_owners_only_is_read(self, tmp_path: Path, permissions: int) -> None:
        assert read_secret(self.file(tmp_path, permissions=permissions), "key") == KEY

    @pytest.mark.parametrize("permissions", [0o640, 0o604, 0o620, 0o610])
    def test_file_that_others_can_reach_is_refused(self, tmp_path: Path, permissions: int) -> None:
        (tmp_path / "link").symlink_to(self.file(tmp_path, permissions=permissions))
        for name in ("key", "link"):
            with pytest.raises(ConfigError, match=f"others can reach the file .mode {permissions:04o}.*chmod 600"):
                read_secret(tmp_path / name, "key")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", "empty"),
            (" \n", "empty"),
            (f"{KEY}ü", "not plain ASCII"),
            (f"{KEY}\xff".encode("latin-1"), "not plain ASCII"),
            (KEY * 1000, "which is no key"),
        ],
    )
    def test_file_without_a_key_is_refused_and_not_repeated(
        self, tmp_path: Path, content: str | bytes, words: str
    ) -> None:
        with pytest.raises(ConfigError, match=words) as caught:
            read_secret(self.file(tmp_path, content), "key")
        assert KEY not in str(caught.value) and caught.value.__cause__ is None

    def test_what_is_no_file_is_refused_at_once(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe", 0o600)
        (tmp_path / "folder").mkdir()
        for name, words in (("pipe", "not a file"), ("folder", "Is a directory"), ("none", "No such file")):
            with pytest.raises(ConfigError, match=words):
                read_secret(tmp_path / name, "key")

    def test_file_of_another_user_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = self.file(tmp_path)
        monkeypatch.setattr(files.os, "geteuid", lambda: path.stat().st_uid + 1)
        with pytest.raises(ConfigError, match="another user"):
            read_secret(path, "key")

    def config(self, folder: Path, **assistant: Any) -> Any:
        write_jsonl(folder / "train.jsonl", sentiment_rows())
        settings = {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", **assistant}
        return load(write_config(folder / "config.yaml", {"assistant": settings})).assistant

    def test_path_of_the_key_is_relative_to_the_configuration(self, tmp_path: Path) -> None:
        self.file(tmp_path)
        assistant = self.config(tmp_path, api_key_file="key")
        assert assistant.api_key_file == str(tmp_path / "key")
        assert open_assistant(assistant)._key == KEY  # type: ignore[attr-defined]  # the protocol has no key

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"api_key_env": "A", "api_key_file": "key"}, "keep one"),
            ({"api_key_env": f"sk-{KEY}"}, "not the name of an environment variable"),
            ({"api_key_env": 12345678901234567890}, "not what is given"),
            ({"base_url": f"ftp://user:{KEY}@host"}, r"//\*\*\*@host"),
            ({"extra_body": {"api_key": KEY}}, "'api_key' looks like a secret"),
            ({"extra_body": {"a": [{"Auth-Token": KEY}]}}, "'Auth-Token' looks like a secret"),
            ({"extra_body": {"header": f"Bearer {KEY}"}}, "'header' looks like a secret"),
            ({"extra_body": {"user": f"sk-{KEY}"}}, "'user' looks like a secret"),
        ],
    )
    def test_secret_in_the_configuration_is_refused_and_not_repeated(
        self, tmp_path: Path, settings: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(ConfigError, match=words) as caught:
            self.config(tmp_path, **settings)
        assert KEY not in str(caught.value) and "1234567890123" not in str(caught.value)

    def test_fields_of_requests_are_no_secrets(self, tmp_path: Path) -> None:
        body = {
            "stop_token_ids": [1],
            "max_completion_tokens": 8,
            "skip_special_tokens": True,
            "chat_template_kwargs": {"bos_token": "<s>"},
            "api_key": None,
        }
        assert self.config(tmp_path, extra_body=body).extra_body == body

    @pytest.mark.parametrize(
        "address", ["http://u:{}@127.0.0.1:0/v1", "http://[u:{}@host/v1", "http://[::1]/v1?key={}"]
    )
    def test_secret_in_an_address_is_refused_and_not_repeated(self, tmp_path: Path, address: str) -> None:
        with pytest.raises(GptaError, match="holds a user name, a password") as caught:
            open_assistant(self.config(tmp_path, base_url=address.format(KEY)))
        assert KEY not in str(caught.value)


class TestPrivateOutputs:
    def test_what_is_made_inside_is_its_owners_alone(self, tmp_path: Path, umask: Callable[[int], int]) -> None:
        umask(0)
        with owner_only():
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder" / "file").touch()
            subprocess.run(["touch", tmp_path / "folder" / "childs"], check=True)
        assert mode(tmp_path / "folder") == 0o700
        assert mode(tmp_path / "folder" / "file") == mode(tmp_path / "folder" / "childs") == 0o600

    @pytest.mark.parametrize("users", [0, 0o022, 0o077])
    def test_umask_is_the_users_again_afterwards(self, umask: Callable[[int], int], users: int) -> None:
        umask(users)
        with pytest.raises(ZeroDivisionError), owner_only():
            raise ZeroDivisionError
        assert umask(users) == users

    def test_journal_of_a_history_has_the_mode_of_the_history(
        self, tmp_path: Path, umask: Callable[[int], int]
    ) -> None:
        umask(0)
        with owner_only():
            history = History(tmp_path / "history.sqlite")
        history._connection.execute("BEGIN IMMEDIATE")
        history._connection.execute("INSERT INTO runs (card, regime, written_by) VALUES ('{}', 'online', 'test')")
        history._connection.execute("PRAGMA cache_spill")
        assert {path.name: mode(path) for path in tmp_path.iterdir()} == {
            "history.sqlite": 0o600,
            "history.sqlite-journal": 0o600,
        }
        history._connection.rollback()
        history.add_request(1, Request("prefix", (Message("user", "?"),)), Sampling())
        history.close()


class Call:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def torch_saved(legacy: bool) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def joblib_saved(compressed: bool) -> bytes:
    import joblib

    buffer = io.BytesIO()
    joblib.dump({"weight": np.zeros(3)}, buffer, compress=3 if compressed else 0)
    return buffer.getvalue()


def npy(array: Any, *, packed: bool = False) -> bytes:
    buffer = io.BytesIO()
    if packed:
        np.savez(buffer, array=array)
    else:
        np.save(buffer, array)
    return buffer.getvalue()


OBJECTS = np.array([{"a": 1}], dtype=object)
RECORDS = np.array([(1, None)], dtype=[("number", "i4"), ("thing", "O")])


class TestPickles:
    def kinds(self, folder: Path) -> dict[str, bytes]:
        call = Call(folder)
        body = pickle.dumps(call, protocol=4)
        return {
            **{f"protocol {protocol}": pickle.dumps(call, protocol=protocol) for protocol in range(6)},
            "protocol 0, cut off after the call": pickle.dumps(call, protocol=0)[:-1] + b"\xff",
            "protocol 2, an empty dictionary": pickle.dumps({}, protocol=2),
            "class by name": b"(ios\nsystem\n.",
            "gzip": gzip.compress(body),
            "zlib": zlib.compress(body),
            "bzip2": bz2.compress(body),
            "xz": lzma.compress(body),
            "lzma": lzma.compress(body, lzma.FORMAT_ALONE),
            "zip": zipped("model/data.pkl", body),
            "zip, another name": zipped("weights", body),
            "tar": tarred(plain("weights", body)),
            "tar.gz": tarred(plain("weights", body), compressed=True),
            "torch": torch_saved(legacy=False),
            "torch, legacy": torch_saved(legacy=True),
            "joblib": joblib_saved(compressed=False),
            "joblib, compressed": joblib_saved(compressed=True),
            "npy of objects": npy(OBJECTS),
            "npy of records with objects": npy(RECORDS),
            "npz of objects": npy(OBJECTS, packed=True),
        }

    def test_pickles_of_every_kind_are_found_by_content_and_nothing_runs(self, tmp_path: Path) -> None:
        (tmp_path / "model" / "deep").mkdir(parents=True)
        for number, content in enumerate(self.kinds(tmp_path / "made").values()):
            (tmp_path / "model" / "deep" / f"{number:03d}.json").write_bytes(content)
        found = {int(path.stem) for path in find_pickles(tmp_path / "model")}
        missed = [kind for number, kind in enumerate(self.kinds(tmp_path / "made")) if number not in found]
        assert missed == []
        assert not (tmp_path / "made").exists()
        pickle.loads(self.kinds(tmp_path / "made")["protocol 0, cut off after the call"][:-1] + b".")
        assert (tmp_path / "made").is_dir(), "they would run"

    def test_pickles_are_found_by_name_too(self, tmp_path: Path) -> None:
        for name in ("a.PT", "pytorch_model.bin", "x.pkl", "y.ckpt", "README.md"):
            (tmp_path / name).write_bytes(b"unknown")
        assert [path.name for path in find_pickles(tmp_path)] == ["a.PT", "pytorch_model.bin", "x.pkl", "y.ckpt"]

    def test_other_files_are_no_pickles(self, tmp_path: Path) -> None:
        from safetensors.numpy import save

        contents = {
            "empty": b"",
            "one byte": b"\x80",
            "text": b"README\nbuild\nconfig\n",
            "words": b"cat\ndog\nfish\n.",
            "a number": b"0.85\n",
            "npy": npy(np.zeros(3)),
            "npz": npy(np.zeros(3), packed=True),
            "npy with a field named O": npy(np.array([(1,)], dtype=[("Other", "i4")])),
            "zip": zipped("model/data.txt", b"words"),
            "tar": tarred(plain("a"), compressed=True),
            "gzip, damaged": gzip.compress(b"words" * 100)[:20],
            "safetensors": save({"weight": np.zeros(3, dtype=np.float32)}),
        }
        # a safetensors file begins with the length of its header: here with the bytes of a pickle's
        contents |= {f"header of {n} bytes": n.to_bytes(8, "little") + b'{"a":1}' for n in (0x280, 0x480, 0x28_0280)}
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        assert find_pickles(tmp_path) == []

    def test_files_that_come_with_the_project_are_no_pickles(self) -> None:
        assert find_pickles(ROOT / "configs") == find_pickles(ROOT / "tests") == []

    def test_pickle_beside_the_weights_of_a_backbone_is_not_loaded(self, bert: Path, tmp_path: Path) -> None:
        from gpta_local.downstream.model import SequenceClassifier

        folder = shutil.copytree(bert, tmp_path / "bert")
        for name in ("pytorch_model.bin", "training_args.bin", "scheduler.pt"):
            (folder / name).write_bytes(pickle.dumps(Call(tmp_path / "made")))
        SequenceClassifier(checked_folder(str(folder), "downstream.backbone"), 2, None)
        assert not (tmp_path / "made").exists()


class TestSource:
    """What the package cannot do, because it does not say it."""

    MODULES = ("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
    NAMES = ("eval", "exec", "compile", "__import__")
    LOADER_FLAGS: ClassVar = {"trust_remote_code": "False", "local_files_only": "True", "use_safetensors": "True"}
    METHODS = (("torch", "load"), ("torch", "save"), ("yaml", "unsafe_load"), ("yaml", "full_load"))

    def faults(self, tree: ast.AST) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name.split(".")[0] in self.MODULES)
            elif isinstance(node, ast.ImportFrom):
                yield from [node.module] if (node.module or "").split(".")[0] in self.MODULES else []
            elif isinstance(node, ast.Name) and node.id in self.NAMES:
                yield node.id
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                yield from [ast.unparse(node)] if (node.value.id, node.attr) in self.METHODS else []
            elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                yield from [] if ast.unparse(node.value) == "False" else [ast.unparse(node)]

    def loads(self, tree: ast.AST) -> Iterator[str]:
        """Where a flag of the loader is named, or a library's loader is called; peft's reads safetensors only."""
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword | ast.Constant):
                name = node.arg if isinstance(node, ast.keyword) else node.value
                yield from [str(name)] if name in self.LOADER_FLAGS else []
            elif isinstance(node, ast.Call) and ast.unparse(node.func) != "PeftModel.from_pretrained":
                yield from [ast.unparse(node)] if ast.unparse(node.func).endswith(".from_pretrained") else []

    def sources(self) -> dict[Path, ast.AST]:
        found = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "gpta_local").rglob("*.py")}
        assert len(found) > 40
        return found

    def test_package_neither_unpickles_nor_runs_what_it_reads(self) -> None:
        assert {path: found for path, tree in self.sources().items() if (found := list(self.faults(tree)))} == {}

    def test_models_are_loaded_in_one_place_from_disk_without_code_or_pickles(self) -> None:
        sources = self.sources()
        loader = ast.unparse(sources.pop(Path(models.__file__)))
        assert {path: found for path, tree in sources.items() if (found := list(self.loads(tree)))} == {}
        given = re.findall(r"(trust_remote_code|local_files_only|use_safetensors)\W+(\w+)", loader)
        assert set(given) == self.LOADER_FLAGS.items()
        assert loader.count("from_pretrained(") == loader.count("**FROM_DISK") - 1  # the other is SentenceTransformer's

    @pytest.mark.parametrize(
        "source",
        [
            "import pickle",
            "from joblib import load",
            "import torch; torch.load('a')",
            "eval('1')",
            "numpy.load('a', allow_pickle=True)",
            "AutoModel.from_pretrained('a')",
            "f(trust_remote_code=True)",
            "{'local_files_only': False}",
        ],
    )
    def test_each_of_these_would_be_seen(self, source: str) -> None:
        tree = ast.parse(source)
        assert len([*self.faults(tree), *self.loads(tree)]) == 1


CODE = "from pathlib import Path\nPath({!r}).touch()\nclass Evil: ...\n"
ESCAPE = "{{% for kind in ''.__class__.__mro__[1].__subclasses__() %}}{{{{ kind }}}}{{% endfor %}}"


def with_code(folder: Path, made: Path, model_type: str | None) -> Path:
    """Put code into a model folder, and its name into every file that could lead to it."""
    (folder / "evil.py").write_text(CODE.format(str(made)), encoding="utf-8")
    kinds = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM")
    changes = {
        "config.json": {"auto_map": dict.fromkeys(kinds, "evil.Evil")}
        | ({"model_type": model_type} if model_type else {}),
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
    }
    for name, change in changes.items():
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content | change), encoding="utf-8")
    return folder


class TestModelFolders:
    """Code that comes with a model is not run."""

    @pytest.mark.parametrize("model_type", [None, "evil"])
    def test_code_of_a_backbone_is_not_run(self, bert: Path, tmp_path: Path, model_type: str | None) -> None:
        from gpta_local.downstream.model import SequenceClassifier

        folder = with_code(shutil.copytree(bert, tmp_path / "bert"), tmp_path / "made", model_type)
        with suppress(ModelError) if model_type is None else pytest.raises(ModelError, match="cannot be loaded"):
            SequenceClassifier(checked_folder(str(folder), "downstream.backbone"), 2, None)
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("model_type", [None, "evil"])
    def test_code_of_an_assistant_is_not_run(self, tmp_path: Path, model_type: str | None) -> None:
        from chat_models import tiny_chat_llama

        from gpta_local.assistant.local import load_model

        folder = with_code(tiny_chat_llama(tmp_path / "llama"), tmp_path / "made", model_type)
        with suppress(ModelError) if model_type is None else pytest.raises(ModelError, match="cannot be loaded"):
            load_model(folder, "cpu", "assistant")
        assert not (tmp_path / "made").exists()

    def test_code_of_a_product_is_not_run(self, sentence: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(sentence, tmp_path / "model")
        (folder / "evil.py").write_text(CODE.format(str(tmp_path / "made")), encoding="utf-8")
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        modules[1]["type"] = "evil.Evil"
        (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
        record = {"labels": ["a"], "prefix": "", "library": "sentence-transformers", "columns": {}}
        (folder / "gpta.json").write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(ModelError, match="cannot be loaded"):
            next(open_product(folder).logits([("text",)]))
        assert not (tmp_path / "made").exists()

    def test_the_code_would_be_run_if_it_were_trusted(self, bert: Path, tmp_path: Path) -> None:
        from transformers import AutoConfig

        folder = with_code(shutil.copytree(bert, tmp_path / "bert"), tmp_path / "made", "evil")
        with pytest.MonkeyPatch.context() as environment, suppress(Exception):
            environment.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
            AutoConfig.from_pretrained(folder, trust_remote_code=True)
        assert (tmp_path / "made").exists()

    def test_chat_template_cannot_reach_python(self, tmp_path: Path) -> None:
        from chat_models import tiny_chat_llama

        from gpta_local.assistant.local import chat, load_model

        folder = tiny_chat_llama(tmp_path / "llama")
        (folder / "chat_template.jinja").write_text(ESCAPE.format(), encoding="utf-8")
        _, tokenizer = load_model(folder, "cpu", "assistant")
        with pytest.raises(ModelError, match=r"the chat template refuses the request .*unsafe"):
            chat(tokenizer, Request("prefix", (Message("user", "?"),)), "assistant.model")


class TestManifest:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "model"
        (folder / "1_Pooling").mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "1_Pooling/config.json", "README.md"):
            (folder / name).write_text(f"content of {name}", encoding="utf-8")
        return folder

    def sha256sum(self, folder: Path, command: str) -> None:
        subprocess.run(command, shell=True, cwd=folder, check=True, capture_output=True)

    @pytest.mark.parametrize(
        "command",
        [
            "find . -type f ! -name SHA256SUMS -exec sha256sum {} + > SHA256SUMS",
            "find * -type f -exec sha256sum --binary {} + > SHA256SUMS",
            "touch SHA256SUMS; sha256sum * */* > SHA256SUMS || true",  # names itself
        ],
    )
    def test_list_of_the_stock_tool_is_read(self, folder: Path, command: str) -> None:
        self.sha256sum(folder, command)
        verify_manifest(folder)

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("model.safetensors", "content of model.safetensorz", "is not the file that SHA256SUMS lists"),
            ("1_Pooling/config.json", None, "is listed in SHA256SUMS and missing"),
            ("tokenizer.json", "slipped in", "is not listed"),
            ("model-2.safetensors", "slipped in", "is not listed"),
            ("1_Pooling/chat_template.jinja", "slipped in", "is not listed"),
            ("vocab.txt", "slipped in", "is not listed"),
        ],
    )
    def test_file_that_was_changed_or_is_missing_or_slipped_in_is_named(
        self, folder: Path, name: str, content: str | None, words: str
    ) -> None:
        verify_manifest(folder)  # without a list it is not checked
        write_manifest(folder)
        (folder / "LICENSE").write_text("not loaded, so it need not be listed", encoding="utf-8")
        verify_manifest(folder)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(content, encoding="utf-8")
        with pytest.raises(ModelError, match=f"model: '{name}' {words}"):
            verify_manifest(folder)

    def test_stock_tool_checks_our_list(self, folder: Path) -> None:
        (folder / "a\\b\nc.json").write_text("odd", encoding="utf-8")
        write_manifest(folder)
        self.sha256sum(folder, "sha256sum --check --strict SHA256SUMS")
        verify_manifest(folder)
        (folder / "a\\b\nc.json").write_text("other", encoding="utf-8")
        with pytest.raises(ModelError, match="is not the file"):
            verify_manifest(folder)

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("", "lists no file"),
            ("d41d8cd98f00b204e9800998ecf8427e  config.json", "SHA256SUMS:1: not a line of sha256sum"),
            (f"{'0' * 64}  ../model.safetensors", "leads out of the folder"),
            (f"{'0' * 64}  /etc/hostname", "leads out of the folder"),
            (f"{'0' * 64}  config.json\n{'1' * 64}  ./config.json", "SHA256SUMS:2: the file is listed twice"),
        ],
    )
    def test_list_that_is_none_is_told(self, folder: Path, line: str, words: str) -> None:
        (folder / MANIFEST).write_text(f"{line}\n", encoding="utf-8")
        with pytest.raises(ModelError, match=words):
            verify_manifest(folder)

    def test_files_are_hashed_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_manifest(folder)
        hashed: list[Path] = []
        real = manifests.sha256
        monkeypatch.setattr(manifests, "sha256", lambda path: hashed.append(path) or real(path))
        for _ in range(3):
            verify_manifest(folder)
        assert len(hashed) == 4
