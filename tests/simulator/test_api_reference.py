"""The lab's own description of the API says what a real node's says, and every operation of it is served."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from homelab.guest.options import Parameter
from lab.api.errors import FormatError
from lab.api.formats import format_properties
from lab.api.options import check_format, parse_properties
from lab.api.reference import Operation, reference
from lab.api.responses import HANDLERS
from tests.conftest import shared
from tests.rows import check_rows

WITH_NUMBERS = re.compile(r"^(.*?)\[n\]$")


def schema() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(shared("pve_api", "schema.json").read_text(encoding="utf-8"))
    return found


def test_every_operation_is_served_and_nothing_else() -> None:
    assert set(HANDLERS) == set(reference().operations)


def test_every_recorded_operation_is_there_with_its_parameters() -> None:
    recorded = schema()

    def check(method: str, path: str) -> None:
        wrong = differences(reference().operations[method, path], recorded[path][method])
        assert not wrong, ", ".join(wrong)

    check_rows(check, [(method, path) for method, path in reference().operations if method in recorded.get(path, {})])


def differences(operation: Operation, about: dict[str, Any]) -> list[str]:
    wanted = about["parameters"].get("properties", {})
    numbered = {match[1] for name in wanted if (match := WITH_NUMBERS.match(name))}
    given: dict[str, Parameter] = {}
    for name, parameter in operation.parameters.items():
        stem = re.sub(r"\d+$", "", name)
        given[f"{stem}[n]" if stem in numbered and name not in wanted else name] = parameter
    found = [f"lacks {name}" for name in sorted(set(wanted) - set(given))]
    found += [f"has {name}, which isn't recorded" for name in sorted(set(given) - set(wanted))]
    for name in sorted(set(wanted) & set(given)):
        found += [f"{name}: {text}" for text in parameter_differences(given[name], wanted[name])]
    return found


def parameter_differences(ours: Parameter, theirs: dict[str, Any]) -> list[str]:
    kind = {"string": "text", "array": "list"}.get(theirs["type"], theirs["type"])
    kind = "one of" if "enum" in theirs else kind
    low, high = (theirs.get(name) for name in ("minimum", "maximum"))
    if kind == "text":
        low, high = theirs.get("minLength"), theirs.get("maxLength")
    named = theirs.get("format") if isinstance(theirs.get("format"), str) else None
    checks = {
        "kind": (ours.kind, kind),
        "optional": (ours.optional, str(theirs.get("optional", 0)) == "1"),
        "words": (list(ours.words), theirs.get("enum", [])),
        "low": (ours.low, None if low is None else float(low)),
        "high": (ours.high, None if high is None else float(high)),
        "requires": (ours.requires, theirs.get("requires")),
        "pattern": (ours.pattern is None, theirs.get("pattern") is None),
        "format": (ours.format, named or ours.format),
    }
    return [f"{what} is {mine!r}, recorded {real!r}" for what, (mine, real) in checks.items() if mine != real]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qemu-net", "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1"),
        ("pve-qm-hostpci", "mapping=gpu0,pcie=1,x-vga=1"),
        ("pve-qm-hostpci", "0000:01:00;0000:41:00.0,pcie=1"),
        ("qemu-disk", "local-lvm:vm-103-disk-1,iothread=1,size=128G"),
        ("lxc-dev", "/dev/dri/renderD128,gid=104,mode=0660"),
        ("mapping-entry", "id=10de:2684,node=pve1,path=0000:01:00,iommugroup=16"),
    ],
)
def test_a_property_string_is_read_and_printed_as_a_node_does(name: str, text: str) -> None:
    assert format_properties(name, parse_properties(name, text)) == text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("pve-qm-hostpci", "0000:01:00,pcie=maybe", "type check ('boolean') failed - got 'maybe'"),
        ("pve-qm-hostpci", "mapping=gpu0,mapping=gpu1", "duplicate key in comma-separated list property: mapping"),
        ("lxc-net", "bridge=vmbr0", "name: property is missing and it is not optional"),
        ("lxc-net", "eth0", "value without key, but schema does not define a default key"),
        ("lxc-dev", "/dev/a/../../etc/shadow", "is not a valid device path"),
        ("pve-storage-id", "1bad", "illegal characters"),
    ],
)
def test_a_wrong_property_string_is_refused_with_its_reason(name: str, text: str, message: str) -> None:
    with pytest.raises(FormatError, match=re.escape(message)):
        check_format(name, text, "")
