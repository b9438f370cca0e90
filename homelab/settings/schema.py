"""docs/config.schema.json: what an editor completes and checks in `Pulumi.<stack>.yaml`.
`python -m homelab.settings.schema` writes it anew.

It is made from the settings' models, so it knows each key, its meaning, its type and its bounds. What several settings
must be together (one way to log in, a card for one VM) only the program checks. JSON Schema's draft 7, the newest that
editors for YAML know whole.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from homelab.settings.stack_file import KEYS_OF_PULUMI
from homelab.settings.whole import Settings

FILE = Path(__file__).resolve().parents[2] / "docs" / "config.schema.json"

_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_ENCRYPTED = "Encrypted"


def schema() -> dict[str, Any]:
    """The schema of a stack's file."""
    made = Settings.model_json_schema(ref_template="#/definitions/{model}")
    parts = {name: _adapted(part) for name, part in made.pop("$defs").items()}
    # A card's name alone is a card of a VM; one number of a card needs no quotes.
    parts["VmGpu"] = {"description": parts["VmGpu"]["description"], "anyOf": [{"type": "string"}, parts["VmGpu"]]}
    # A host may take them from its cluster.
    said = parts["Host"].pop("required")
    parts["Host"]["anyOf"] = [{"required": said}, {"required": ["cluster"]}]
    parts["Container"]["properties"]["gpuAssignment"]["anyOf"].append({"type": "integer", "minimum": 0})
    parts[_ENCRYPTED] = {
        "description": "A value that `pulumi config set --secret --path` has encrypted.",
        "type": "object",
        "properties": {"secure": {"type": "string"}},
        "required": ["secure"],
        "additionalProperties": False,
    }
    known = {name: _adapted(about) for name, about in made["properties"].items()}
    keys = {f"homelab:{name}": about for name, about in known.items()}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A stack of homelab",
        "description": "Pulumi.<stack>.yaml: the settings of a stack. docs/settings.md describes them.",
        "type": "object",
        "properties": {
            "config": {
                "description": "The settings.",
                "type": "object",
                "properties": keys,
                # Keys of other projects and providers have a name before the colon, too.
                "patternProperties": {r"^(?!homelab:)[^:]+:.+$": {}},
                "additionalProperties": False,
                "required": [f"homelab:{name}" for name in made["required"]],
            },
            **{name: {"description": about} for name, about in KEYS_OF_PULUMI.items() if name != "config"},
        },
        "additionalProperties": False,
        "required": ["config"],
        "definitions": parts,
    }


def _adapted(value: Any, *, names: bool = False) -> Any:
    """A part of pydantic's schema in the form that editors like.

    :param names: are the keys names of settings, rather than words of JSON Schema?
    """
    if isinstance(value, list):
        return [_adapted(one) for one in value]
    if not isinstance(value, dict):
        return value
    if names:
        return {name: _adapted(one) for name, one in value.items()}
    found = {
        word: _adapted(one, names=word == "properties") if word not in ("default", "enum") else one
        for word, one in value.items()
        if word not in ("title", "format", "writeOnly")
    }
    if "form" in found:
        found["title"] = found.pop("form")
    if "description" in found:
        found["description"] = _LINK.sub(r"\1", " ".join(found["description"].split()))
    if "$ref" in found and len(found) > 1:  # in draft 7, what stands beside a reference counts for nothing
        found = {"allOf": [{"$ref": found.pop("$ref")}], **found}
    if found.get("type") == "string" and "enum" not in found and "const" not in found:
        kind = {"type": found.pop("type"), **({"title": found.pop("title")} if "title" in found else {})}
        found["anyOf"] = [kind, {"$ref": f"#/definitions/{_ENCRYPTED}"}]
    if any(one.keys() == {"anyOf"} for one in found.get("anyOf", ())):
        found["anyOf"] = [
            part for one in found["anyOf"] for part in (one["anyOf"] if one.keys() == {"anyOf"} else [one])
        ]
    if "propertyNames" in found:  # a name is never encrypted
        found["propertyNames"] = {"type": "string"}
    return found


def text() -> str:
    """The file's content."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write docs/config.schema.json."""
    FILE.write_text(text(), encoding="utf-8", newline="\n")
    print(f"written: {FILE}")


if __name__ == "__main__":
    main()
