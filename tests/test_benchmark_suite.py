"""The suite of a benchmark: what loads, how mistakes are told, what follows from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks import arm, record, write_sets, write_suite
from commands import ROOT, assert_refused, invoke
from samples import write_jsonl

from gpta_local.benchmark.suite import load
from gpta_local.benchmark.trials import Job, Results, Trial, plan
from gpta_local.errors import ConfigError, DataError, OutputError

SHIPPED = [
    ROOT / "configs" / name for name in ("benchmark/suite.yaml", "benchmark/quick.yaml", "quickstart/benchmark.yaml")
]
ARMS = ["plain", "label_texts", "gpta", "best_prefix", "fixed_prefix", "plain_with_best_prefix", "setfit"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_sets(tmp_path, tmp_path / "no-backbone")
    return tmp_path


def refusal(folder: Path, changes: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(write_suite(folder, changes))
    return str(caught.value)


def jobs_of(folder: Path, changes: Mapping[str, Any]) -> list[Job]:
    return plan(load(write_suite(folder, changes)))


def digest_of(folder: Path, trial: Trial, changes: Mapping[str, Any] | None = None) -> str:
    return next(job.digest for job in jobs_of(folder, changes or {}) if trial in job.trials)


def edit(path: Path, old: str, new: str) -> None:
    before = path.read_text(encoding="utf-8")
    assert old in before
    path.write_text(before.replace(old, new), encoding="utf-8")


def set_labels(path: Path, labels: dict[str, str]) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["card"]["labels"] = labels
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def main_table(**changes: Any) -> dict[str, Any]:
    return {"tables": {"main": {"shots": [2], "samples": 1, "arms": ["plain", "gpta"], **changes}}}


class TestFile:
    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
    def test_shipped_suite_loads(self, path: Path) -> None:
        suite = load(path)
        assert suite.file.goals and suite.file.tables
        assert path.parent.name == "benchmark" or plan(suite)  # the quickstart's data are here

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"table": {}}, ["unknown key 'table'", "did you mean 'tables'"]),
            (main_table(sample=3), ["unknown key 'tables.main.sample'", "did you mean 'samples'"]),
            ({"sets": {"guests": {"confg": "x"}}}, ["unknown key 'sets.guests.confg'", "did you mean 'config'"]),
            (main_table(samples=0), ["tables.main.samples", "greater than or equal to 1"]),
            (main_table(sets=["guest"]), ["tables.main.sets", "no set 'guest'", "guests, scenes"]),
            (main_table(arms=["gtpa"]), ["tables.main.arms", "no arm 'gtpa'"]),
            (main_table(arms=[]), ["tables.main.arms", "at least 1 item"]),
            ({"curves": {"shots": 2, "sets": ["x"]}}, ["curves.sets", "no set 'x'"]),
            ({"variants": {"plain": {}}}, ["variants", "'plain'", "choose another"]),
            ({"variants": {"hot": {"search.round": 2}}}, ["variants.hot", "'search.round'", "'rounds'"]),
            ({"variants": {"hot": {"search": 2}}}, ["variants.hot", "search"]),
            ({"sets": {"guests": {"config": "nowhere.yaml"}}}, ["sets.guests.config", "no such configuration"]),
            ({"variants": {"hot": {"search.rounds": {1: 2}}}}, ["variants.hot", "search.rounds"]),
            ({"goals": [{"table": "x", "shots": 2, "theirs": "plain", "at_least": 1}]}, ["no table 'x'", "main"]),
            ({"goals": [{"table": "main", "shots": 8, "theirs": "plain", "at_least": 1}]}, ["at 8 shots"]),
            ({"goals": [{"table": "main", "shots": 2, "theirs": "setfit", "at_least": 1}]}, ["'setfit'"]),
            ({"goals": [{"table": "main", "shots": 2, "theirs": "plain"}]}, ["'accuracy'", "'at_least'"]),
            (main_table(shots=[0]), ["tables.main.shots", "greater than or equal to 1"]),
            ({"transfer": {"shots": -1}}, ["transfer.shots", "greater than or equal to 1"]),
            ({"variants": {"hot": {"data.shots": 16}}}, ["'hot'", "data.shots", "the same rows"]),
            ({"settings": {"data.shots": 16}}, ["settings: data.shots", "the same rows"]),
            ({"settings": {"search.round": 2}}, ["sets.guests.config", "'search.round'", "'rounds'"]),
            ({"variants": {"hot": {"seed": 7}}}, ["'hot'", "seed", "the same rows"]),
        ],
    )
    def test_mistake_is_named(self, folder: Path, changes: dict[str, Any], words: list[str]) -> None:
        message = refusal(folder, changes)
        assert all(word in message for word in ("suite.yaml", *words)), message

    def test_set_without_test_rows_is_refused(self, folder: Path) -> None:
        edit(folder / "guests.yaml", "  test: guests-test.jsonl\n", "")
        assert "no data.test" in refusal(folder, {})

    def test_arm_of_fixed_prefixes_needs_them(self, folder: Path) -> None:
        changes = {**main_table(arms=["gpta", "fixed_prefix"]), "sets": {"scenes": {"fixed_prefix": None}}}
        message = refusal(folder, changes)
        assert "sets.scenes" in message and "fixed_prefix" in message

    @pytest.mark.parametrize("text", ["", "[]", "a: [", "sets: 3", "\x00", "sets: {a: {config: 1}}"])
    def test_garbage_ends_with_one_message(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "suite.yaml").write_text(text, encoding="utf-8")
        assert_refused(invoke("benchmark", tmp_path / "suite.yaml"), "suite.yaml")
        assert [path.name for path in tmp_path.iterdir()] == ["suite.yaml"]

    def test_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        assert_refused(invoke("benchmark", tmp_path / "none.yaml"), "none.yaml", "no such configuration file")

    def test_with_shots_no_arm_is_given_validation_rows(self, folder: Path) -> None:
        edit(folder / "guests.yaml", "data:\n", "data:\n  validation: guests-test.jsonl\n")
        suite = load(write_suite(folder))
        few, all_rows = suite.config("guests", "gpta", 2, 3), suite.config("guests", "gpta", None, 3)
        assert few.data.validation is None and few.data.shots == 2 and few.seed == 3
        assert all_rows.data.validation and all_rows.data.shots is None

    def test_settings_are_those_of_every_set_unless_a_variant_has_others(self, folder: Path) -> None:
        changes = {"settings": {"search.rounds": 2}, "variants": {"long": {"search.rounds": 3}}}
        suite = load(write_suite(folder, changes))
        for name in ("guests", "scenes"):
            assert (
                suite.config(name, "gpta", 2, 0).search.rounds == suite.config(name, "plain", 2, 0).search.rounds == 2
            )
            assert suite.config(name, "long", 2, 0).search.rounds == 3
            assert suite.config(name, "long, label texts alone", 2, 0).search.rounds == 3

    def test_variant_without_meanings_keeps_the_order_in_which_shots_are_drawn(self, folder: Path) -> None:
        set_labels(folder / "guests.yaml", {"good": "a happy guest", "bad": "an unhappy guest"})
        suite = load(write_suite(folder, {"variants": {"bare": {"card.labels": None}}}))
        assert suite.config("guests", "bare", 2, 0).card.labels == ["good", "bad"]


class TestPlan:
    def test_run_brings_its_own_controls(self, folder: Path) -> None:
        jobs = jobs_of(folder, main_table(sets=["guests"], arms=["plain", "label_texts", "gpta"]))
        assert [[trial.arm for trial in job.trials] for job in jobs] == [["gpta", "label_texts", "plain"]]

    def test_run_of_a_variant_brings_its_own_control(self, folder: Path) -> None:
        own, variants = "long, label texts alone", {"long": {"search.rounds": 2}}
        for arms in (["long"], [own], ["long", own]):
            jobs = jobs_of(folder, {"variants": variants, **main_table(sets=["guests"], arms=arms)})
            assert [[trial.arm for trial in job.trials] for job in jobs] == [["long", own]]

    def test_what_is_needed_is_planned_before(self, folder: Path) -> None:
        changes = {
            **main_table(arms=ARMS),
            "transfer": {"shots": 2, "samples": 2},
            "curves": {"shots": 2, "samples": 2},
        }
        planned: set[Trial] = set()
        for job in jobs_of(folder, changes):
            assert set(job.needs) <= planned
            assert not planned & set(job.trials)
            planned |= set(job.trials)
        assert {trial.sample for trial in planned} == {0, 1}
        assert sum(trial.kind == "transfer" for trial in planned) == 4

    def test_samples_come_one_after_the_other(self, folder: Path) -> None:
        samples = [job.trials[0].sample for job in jobs_of(folder, main_table(samples=3, arms=ARMS))]
        assert samples == sorted(samples) and set(samples) == {0, 1, 2}

    def test_trial_of_two_tables_is_planned_once(self, folder: Path) -> None:
        tables = {"more": {"shots": [2], "samples": 2, "arms": ["gpta", "setfit"]}}
        once = jobs_of(folder, main_table(samples=2, arms=ARMS))
        assert len(jobs_of(folder, {"tables": {**main_table(samples=2, arms=ARMS)["tables"], **tables}})) == len(once)

    def test_missing_rows_are_named(self, folder: Path) -> None:
        (folder / "scenes-test.jsonl").unlink()
        with pytest.raises(DataError, match=r"scenes-test\.jsonl.*relative to the configuration"):
            jobs_of(folder, {})

    def test_digest_changes_with_rows_and_settings_only(
        self, folder: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        trial = arm("guests", "gpta", shots=2)
        first = digest_of(folder, trial)
        moved = tmp_path_factory.mktemp("moved")
        for path in folder.glob("*.*"):
            (moved / path.name).write_bytes(path.read_bytes())
        assert digest_of(moved, trial) == first
        assert digest_of(folder, trial, {"test_rows": 5}) != first
        (folder / "scenes-train.jsonl").write_text("{}\n", encoding="utf-8")
        assert digest_of(folder, trial) == first
        write_jsonl(folder / "guests-train.jsonl", [{"text": "other", "label": "bad"}])
        assert digest_of(folder, trial) != first

    @pytest.mark.parametrize("of", ["gpta", "setfit"])
    def test_digest_holds_the_order_of_the_labels_in_which_shots_are_drawn(self, folder: Path, of: str) -> None:
        digests = set()
        for labels in ({"good": "happy", "bad": "unhappy"}, {"bad": "unhappy", "good": "happy"}):
            set_labels(folder / "guests.yaml", labels)
            digests.add(digest_of(folder, arm("guests", of, shots=2), main_table(arms=[of])))
        assert len(digests) == 2

    def test_digest_of_a_transfer_holds_both_sets(self, folder: Path) -> None:
        trial = Trial("transfer", "guests", 2, 0, "best_prefix", "scenes")
        changes = {"transfer": {"shots": 2, "samples": 1}}
        first = digest_of(folder, trial, changes)
        edit(folder / "scenes.yaml", "rounds: 1", "rounds: 2")
        assert digest_of(folder, trial, changes) != first

    @pytest.mark.parametrize(
        ("of", "old", "new", "same"),
        [
            ("setfit", "rounds: 1", "rounds: 2", True),
            ("setfit", "rounds: 1", "regime: online", False),  # which can set training rows aside
            ("setfit_label_words", "rounds: 1", "rounds: 2", True),
            ("zero_shot", "rounds: 1", "rounds: 2", True),
            ("zero_shot", "description: What", "description: All that", False),
            ("plain_with_best_prefix", "rounds: 1", "rounds: 2", False),
        ],
    )
    def test_rivals_depend_on_no_more_of_a_configuration_than_they_see(
        self, folder: Path, of: str, old: str, new: str, same: bool
    ) -> None:
        trial, changes = arm("guests", of, shots=2), main_table(arms=[of])
        first = digest_of(folder, trial, changes)
        edit(folder / "guests.yaml", old, new)
        assert (digest_of(folder, trial, changes) == first) is same

    @pytest.mark.parametrize(("of", "same"), [("setfit", True), ("setfit_label_words", False)])
    def test_meanings_are_part_of_the_digest_where_they_are_rows(self, folder: Path, of: str, same: bool) -> None:
        digests = set()
        for meaning in ("an unhappy guest", "a guest who will not come back"):
            set_labels(folder / "guests.yaml", {"bad": meaning, "good": "a happy guest"})
            digests.add(digest_of(folder, arm("guests", of, shots=2), main_table(arms=[of])))
        assert (len(digests) == 1) is same

    def test_fixed_prefix_is_part_of_its_own_digest_only(self, folder: Path) -> None:
        changes = main_table(arms=["gpta", "fixed_prefix"])
        other = {**changes, "sets": {"guests": {"fixed_prefix": "Mood:"}}}
        for of, same in (("fixed_prefix", False), ("gpta", True)):
            trial = arm("guests", of, shots=2)
            assert (digest_of(folder, trial, changes) == digest_of(folder, trial, other)) is same


class TestResults:
    def test_lines_come_back(self, tmp_path: Path) -> None:
        results = Results(tmp_path / "results.jsonl")
        with results.appending():
            results.add(arm("a", "gpta"), record(0.5, prefix="Überschrift:"))
        again = Results(tmp_path / "results.jsonl")
        assert again.records == results.records and again.records[arm("a", "gpta")]["prefix"] == "Überschrift:"

    @pytest.mark.parametrize("rest", [b'{"kind": "arm", "set": "a', b"{}", b"\xff\xfe"])
    def test_half_written_last_line_is_dropped(self, tmp_path: Path, rest: bytes) -> None:
        path = tmp_path / "results.jsonl"
        first = Results(path)
        with first.appending():
            first.add(arm("a", "gpta"), record(0.5))
        with path.open("ab") as file:
            file.write(rest)
        second = Results(path)
        with second.appending():
            second.add(arm("a", "gpta", 1), record(0.6))
        assert [json.loads(line)["sample"] for line in path.read_text().splitlines()] == [0, 1]

    @pytest.mark.parametrize("line", ["{", "[]", "{}", '{"kind": "arm", "set": [], "shots": 1}', "3"])
    def test_broken_line_is_named(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "results.jsonl"
        path.write_text(f"{line}\n", encoding="utf-8")
        with pytest.raises(OutputError, match=r"results\.jsonl:1: not a line of results"):
            Results(path)

    def test_later_line_counts(self, tmp_path: Path) -> None:
        results = Results(tmp_path / "results.jsonl")
        with results.appending():
            results.add(arm("a", "gpta"), {"error": "no disk", "digest": "d"})
            results.add(arm("a", "gpta"), record(0.5))
        assert Results(results.path).records[arm("a", "gpta")]["accuracy"] == 0.5

    def test_lines_that_another_writes_after_they_were_read_are_kept(self, tmp_path: Path) -> None:
        first, second = Results(tmp_path / "results.jsonl"), Results(tmp_path / "results.jsonl")
        with first.appending():
            first.add(arm("a", "gpta"), record(0.5))
        before = first.path.read_bytes()
        with pytest.raises(OutputError, match=r"was writing here.*the same command again"), second.appending():
            pass
        assert first.path.read_bytes() == before

    def test_records_are_those_of_the_jobs(self, folder: Path, tmp_path: Path) -> None:
        results = Results(tmp_path / "results.jsonl")
        jobs = jobs_of(folder, main_table(sets=["guests"], arms=["gpta"]))
        with results.appending():
            for name, of in (("guests", "gpta"), ("guests", "plain"), ("scenes", "gpta")):
                results.add(arm(name, of, shots=2), record(0.5))
        assert list(results.of(jobs)) == [arm("guests", "gpta", shots=2), arm("guests", "plain", shots=2)]

    def test_second_writer_is_refused(self, tmp_path: Path) -> None:
        first, second = Results(tmp_path / "results.jsonl"), Results(tmp_path / "results.jsonl")
        with first.appending(), pytest.raises(OutputError, match="another benchmark"), second.appending():
            pass
