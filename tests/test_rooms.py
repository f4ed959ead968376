"""The floor plan: who may import whom. CONTRIBUTING.md says why."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from commands import ROOT

import gpta_local

PACKAGE = ROOT / "gpta_local"
FLOORS = (
    ("errors", "schema", "metrics", "observer"),
    ("system",),
    ("config",),
    ("data",),
    ("record",),
    ("assistant", "downstream"),
    ("tasks", "privacy", "knowledge"),
    ("dialogue_gradient", "report"),
    ("run",),
    ("benchmark", "doctor", "bundle", "labelling", "serving"),
    ("cli",),
    ("__main__",),
)
"""From the ground up. A room imports from floors below its own; within a room, modules import each other."""
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOST_LINES = 450


def modules() -> dict[str, Path]:
    """Dotted name below the package → file; a room's `__init__` under the room's name. The package's own is the list
    of what is public and left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a module imports, also inside functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpta_local."):
            below = (node.module or "").removeprefix("gpta_local.")
            names = {f"{below}.{alias.name}" for alias in node.names}
            yield from names & set(known) or {below}
        elif isinstance(node, ast.ImportFrom) and node.module == "gpta_local":
            yield from {alias.name for alias in node.names} & set(known)


MODULES = modules()


def test_every_room_has_a_floor() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(FLOOR_OF)


@pytest.mark.parametrize("name", MODULES)
def test_no_import_runs_up(name: str) -> None:
    room = name.partition(".")[0]
    for imported in imports(MODULES[name], MODULES):
        other = imported.partition(".")[0]
        assert other == room or FLOOR_OF[other] < FLOOR_OF[room] or FLOOR_OF[room] == 0, f"{name} imports {imported}"


def test_no_modules_import_in_a_circle() -> None:
    graph = {name: set(imports(path, MODULES)) - {name} for name, path in MODULES.items()}
    rooms = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph = {
        name: imported - rooms if name.partition(".")[0] in rooms else imported for name, imported in graph.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        pytest.fail(f"a circle of imports: {' → '.join(exc.args[1])}")


def test_the_root_holds_few_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_no_module_is_long() -> None:
    long = {name: n for name, path in MODULES.items() if (n := len(path.read_text("utf-8").splitlines())) > MOST_LINES}
    assert not long


class TestPublicNames:
    def test_each_can_be_imported(self) -> None:
        assert all(getattr(gpta_local, name) for name in gpta_local.__all__)

    def test_unknown_name_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="has no attribute 'trian'"):
            gpta_local.trian  # noqa: B018  the attribute is the subject

    def test_importing_the_package_loads_nothing_heavy(self) -> None:
        script = (
            "import sys; from gpta_local import GptaError; print(*{'torch', 'numpy', 'pydantic'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.split() == []
