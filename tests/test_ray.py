"""The benchmark as tasks of a Ray cluster: the same figures, also when a node dies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from benchmarks import write_sets, write_suite
from commands import invoke

from gpta_local.benchmark.trials import Results, Trial

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
ray = pytest.importorskip("ray", reason="needs the extra ray")

SUITE = {"tables": {"main": {"samples": 2, "arms": ["plain", "label_texts", "gpta"]}}}


def figures(output: Path) -> dict[Trial, Any]:
    names = ("accuracy", "macro_f1", "loss", "prefix", "label_texts", "made_up")
    found = Results(output / "results.jsonl").records
    return {trial: {n: record[n] for n in names if n in record} for trial, record in found.items()}


@pytest.fixture(scope="module")
def folder(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    write_sets(folder, sentence)
    write_suite(folder, SUITE)
    return folder


@pytest.fixture(scope="module")
def by_processes(folder: Path) -> dict[Trial, Any]:
    result = invoke("benchmark", folder / "suite.yaml", "--output", folder / "processes", "--quiet")
    assert result.exit_code == 0, result.output
    return figures(folder / "processes")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one core each, on this machine."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_cluster_gives_the_figures_of_processes_though_a_node_is_killed(
    folder: Path, by_processes: dict[Trial, Any], cluster: Any
) -> None:
    output = folder / "cluster"
    node = next(node for node in cluster.list_all_nodes() if node != cluster.head_node)

    def kill() -> None:
        while not (output / "runs").exists():
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    killer = Thread(target=kill, daemon=True)
    killer.start()
    options = ("--output", output, "--jobs", "2", "--engine", "ray", "--ray-address", cluster.address, "--quiet")
    result = invoke("benchmark", folder / "suite.yaml", *options)
    killer.join(10)
    assert result.exit_code == 0, result.output
    assert len(cluster.list_all_nodes()) == 1
    assert figures(output) == by_processes


@pytest.mark.parametrize("address", [["--ray-address", "127.0.0.1:1"], []])
def test_no_cluster_at_the_address_is_one_message(address: list[str], folder: Path, tmp_path: Path) -> None:
    options = ("--output", tmp_path / "out", "--engine", "ray", *address, "--quiet")
    result = invoke("benchmark", folder / "suite.yaml", *options)
    assert result.exit_code == 2 and "no Ray cluster answers at " in result.output and "HOST:PORT" in result.output


def test_seeds_on_a_cluster_are_those_of_processes(folder: Path, cluster: Any) -> None:
    options = ("--seeds", "2", "--jobs", "2", "--quiet")
    on_ray = ("--engine", "ray", "--ray-address", cluster.address)
    for output, place in (("by-processes", ()), ("by-ray", on_ray)):
        result = invoke("train", folder / "guests.yaml", *options, *place, "--output", folder / output)
        assert result.exit_code == 0, result.output
    found = [json.loads((folder / name / "seeds.json").read_text("utf-8")) for name in ("by-processes", "by-ray")]
    for runs in found:
        for run in runs["runs"]:
            del run["seconds"]
    assert found[0] == found[1] and len(found[0]["runs"]) == 2
