"""The schema of configurations, made from the classes of their sections and the kinds of tasks.

``python -m pipeline.experiment.schema`` writes it to :data:`SCHEMA`, for people and for editors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .kinds import KINDS
from .sections import Experiment

SCHEMA = Path(__file__).parents[2] / "workflow" / "schemas" / "config.schema.yaml"

Node = dict[str, Any]


def schema() -> Node:
    """Return the JSON schema (draft 2020-12) of a configuration, without references."""
    whole = flat(Experiment.model_json_schema())
    whole["properties"]["tasks"]["additionalProperties"] = task_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A LESS experiment",
        **whole,
    }


def task_schema() -> Node:
    """Return the schema of a task: the section of its kind."""
    branches: list[Node] = []
    for name, kind in KINDS.items():
        own = flat(kind.section.model_json_schema())
        described = own.pop("description")
        own["properties"]["kind"] = {"description": described, "const": name, "type": "string"}
        chosen = {"properties": {"kind": {"const": name}}, "required": ["kind"]}
        branches.append({"if": chosen, "then": own})
    meant = (f"`{name}`: {kind.section.__doc__}" for name, kind in KINDS.items())
    kinds = {"description": " ".join(meant), "enum": list(KINDS)}
    properties = {"kind": kinds}
    return {"type": "object", "required": ["kind"], "properties": properties, "allOf": branches}


def flat(node: Mapping[str, Any]) -> Node:
    """Return a schema that pydantic made, references followed, nulls among types, untitled."""
    return _flat(node, node.get("$defs", {}))


def _flat(node: Mapping[str, Any], known: Mapping[str, Any]) -> Node:
    own = {key: value for key, value in node.items() if key not in ("title", "$defs", "$ref")}
    if "$ref" in node:
        return _flat(known[node["$ref"].rsplit("/", 1)[1]], known) | own
    choices = own.pop("anyOf", None)
    if choices is not None:  # something, or null
        (something,) = (choice for choice in choices if choice != {"type": "null"})
        inner = _flat(something, known)
        return inner | {"type": [inner["type"], "null"]} | own
    if "patternProperties" in own:  # entries of any name that is one
        ((pattern, entry),) = own.pop("patternProperties").items()
        own |= {"propertyNames": {"type": "string", "pattern": pattern}}
        own |= {"additionalProperties": entry}
    for key in ("items", "additionalProperties"):
        if isinstance(own.get(key), Mapping):
            own[key] = _flat(own[key], known)
    if "prefixItems" in own:
        own["prefixItems"] = [_flat(item, known) for item in own["prefixItems"]]
    if "properties" in own:
        own["properties"] = {k: _flat(v, known) for k, v in own["properties"].items()}
    return own


def main() -> None:
    """Write :data:`SCHEMA`."""
    SCHEMA.write_text(as_yaml(), encoding="utf-8")


def as_yaml() -> str:
    """Return the schema as YAML."""
    head = (
        "# Made by `python -m pipeline.experiment.schema` from pipeline/experiment/sections.py.\n"
    )
    return head + yaml.safe_dump(schema(), sort_keys=False, allow_unicode=True, width=100)


if __name__ == "__main__":
    main()
