"""The JSON schema of report.json, from its dataclasses: `python -m orchestrator.run.json_schema` writes the file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from orchestrator.run.report_schema import SCHEMA, ReportData

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def make_json_schema() -> dict[str, Any]:
    """Return the JSON schema of report.json."""
    definitions: dict[str, Any] = {}
    _describe(ReportData, definitions)
    report: dict[str, Any] = definitions.pop(ReportData.__name__)
    report["properties"] = {"schema": {"const": SCHEMA}} | report["properties"]
    report["required"].insert(0, "schema")
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "report.json"}
    return dialect | report | {"$defs": dict(sorted(definitions.items()))}


_PLAIN: dict[Any, dict[str, str]] = {
    Any: {},
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    NoneType: {"type": "null"},
}


def _describe(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one type; classes are added to the definitions."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, UnionType):
        return {"anyOf": [_describe(part, definitions) for part in args]}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _describe(args[1], definitions)}
    if origin is not None and issubclass(origin, Sequence):
        return {"type": "array", "items": _describe(args[0], definitions)}
    if hint.__name__ not in definitions:
        hints = get_type_hints(hint)
        definitions[hint.__name__] = {
            "type": "object",
            "description": hint.__doc__.splitlines()[0],
            "properties": {name: _describe(part, definitions) for name, part in hints.items()},
            "required": list(hints) if is_dataclass(hint) else sorted(hint.__required_keys__),
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{hint.__name__}"}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(make_json_schema(), indent=2) + "\n", encoding="utf-8")
