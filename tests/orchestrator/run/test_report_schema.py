"""The schema of report.json, and the refusal of other schemas."""

import json

import pytest
from jsonschema import Draft202012Validator
from report_factories import make_audited, make_paper, make_replicate, make_report

from mura_models.errors import ConfigError
from orchestrator.run.files import write_json
from orchestrator.run.json_schema import SCHEMA_FILE, make_json_schema
from orchestrator.run.report_schema import read_report

SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
BONES = ("hand", "leg", "hip")


def is_valid(report):
    return Draft202012Validator(SCHEMA).is_valid(json.loads(json.dumps(report)))


def test_the_committed_schema_is_that_of_the_dataclasses():
    Draft202012Validator.check_schema(SCHEMA)
    assert make_json_schema() == SCHEMA, "run: python -m orchestrator.run.json_schema"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"is_phantom": True, "with_router": False},
        {"paper": make_paper(), "unfair": ("specialists_mlp_probe_oracle",)},
        {"audit": {"asked": 2, "trials": make_audited(0.01, -0.2)}, "without": {"leg": "not among --bones"}},
        {"audit": None, "replicates": {"baseline/mlp_probe": make_replicate([11])}},
        {"failed": {"specialist:leg/mlp_probe": "every trial failed"}},
    ],
)
def test_reports_are_valid(changes):
    assert is_valid(make_report(BONES, **changes))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda report: report.update(schema=1),
        lambda report: report.pop("best_baseline"),
        lambda report: report["comparisons"][0].update(a="selected_routed"),
        lambda report: report["comparisons"][0].update(unit="patient"),
        lambda report: report["systems"]["selected_routed"]["overall"].update(num_images="90"),
        lambda report: report["selected"]["hand"].pop("reason"),
    ],
)
def test_other_reports_are_not_valid(spoil):
    report = make_report(BONES)
    spoil(report)
    assert not is_valid(report)


@pytest.mark.parametrize(("schema", "reader"), [(1, "0.1"), (3, "of another version"), (None, "of another version")])
def test_a_report_of_another_schema_is_refused_in_one_line(tmp_path, schema, reader):
    path = tmp_path / "report.json"
    write_json(path, make_report(BONES) | {"schema": schema})
    with pytest.raises(ConfigError) as raised:
        read_report(path)
    assert str(raised.value) == (
        f"{path}: has schema {schema}, not 2; use mura-study {reader} for this run, or start a new one with --fresh"
    )
