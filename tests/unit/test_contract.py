"""homelab/contract.py: what a stack puts out is what its consumers were promised, and what isn't is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from docs.tables import outputs
from homelab import contract, shapes
from homelab.errors import HomelabError
from tests.conftest import PROJECT
from tests.rows import rows

Values = dict[str, Any]


def values() -> Values:
    """As a StackReference gives them: numbers are floats, nulls are gone."""
    function = {
        "address": "0000:01:00.0",
        "id": "10de:2b85",
        "subsystem": "1043:89e3",
        "class": "030000",
        "driver": "vfio-pci",
        "iommuGroup": 14.0,
    }
    tested = {
        "guest": "0000:00:10.0",
        "address": "0000:01:00.0",
        "id": "10de:2b85",
        "class": "030000",
        "bars": [{"index": 1.0, "size": 34359738368.0}],
    }
    gpu = {
        "slot": "0000:01:00",
        "name": "RTX 5090",
        "path": "0000:01:00",
        "use": "vm",
        "functions": [function],
        "iommuGroup": 14.0,
        "mapping": "rtx5090",
        "hostpci": "mapping=rtx5090,pcie=1",
        "holder": "sandbox",
        "keep": False,
        "test": {"kernel": "6.17.2-1-pve", "vmid": 9000.0, "functions": [tested]},
    }
    host = {
        "node": "pve",
        "kernel": "6.17.2-1-pve",
        "bootId": "3381e9c6-41c1-4b83-8c78-774635b464fd",
        "iommu": {"groups": 17.0, "kernelLog": []},
        "gpus": {"rtx5090": gpu},
    }
    vm = {
        "host": "pve",
        "node": "pve",
        "vmid": 103.0,
        "name": "Sandbox",
        "state": "running",
        "gpus": ["rtx5090"],
    }
    return {"version": 1.0, "hosts": {"pve": host}, "vms": {"sandbox": vm}, "containers": {}, "result": []}


def refused(found: Values) -> str:
    with pytest.raises(HomelabError) as error:
        contract.consumed("organization/homelab/homelab", found)
    return str(error.value)


def test_the_schema_in_the_docs_is_that_of_the_models() -> None:
    assert outputs.DOCUMENT.read_text(encoding="utf-8") == outputs.text(), "write it anew: make docs"


def test_the_schema_requires_what_a_consumer_works_with() -> None:
    schema = outputs.schema()
    required = {name: set(about.get("required", ())) for name, about in schema["$defs"].items()}
    assert required["HostOutput"] == {"node", "kernel", "bootId", "iommu", "gpus"}
    assert required["FunctionSeen"] == {"address", "id", "subsystem", "class", "driver"}
    assert {"slot", "name", "path", "use", "functions"} <= required["GpuOutput"]
    assert {"iommuGroup", "mapping", "hostpci", "holder"} <= set(schema["$defs"]["GpuOutput"]["properties"])
    assert required["VmOutput"] == {"host", "node", "vmid", "name", "state", "gpus"}
    assert schema["properties"]["version"]["const"] == contract.VERSION


def test_what_is_null_is_left_out_at_any_depth_and_what_was_forgotten_is_named() -> None:
    vm = values()["vms"]["sandbox"] | {"address": None, "nvidia": {"cuda": None, "gpus": [{"name": None, "uuid": "1"}]}}
    assert contract.put_out(shapes.VmOutput, vm) == {key: value for key, value in vm.items() if key != "address"} | {
        "nvidia": {"gpus": [{"uuid": "1"}]}
    }
    del vm["address"]
    with pytest.raises(TypeError, match=r"VmOutput: outputs that are missing or not known: \['address', 'cores'\]"):
        contract.put_out(shapes.VmOutput, vm | {"cores": 4})


def test_the_page_about_outputs_names_each() -> None:
    page = (PROJECT / "docs" / "outputs.md").read_text(encoding="utf-8").partition("## Drift")[0]
    kinds = (shapes.HostOutput, shapes.GpuOutput, shapes.VmOutput, shapes.ContainerOutput)
    assert [key for kind in kinds for key in kind.__annotations__ if f"`{key}`" not in page] == []


def test_outputs_are_read_as_pulumi_hands_them_over() -> None:
    found = contract.consumed("homelab", values())
    assert found["vms"]["sandbox"]["vmid"] == 103
    assert found["vms"]["sandbox"].get("address") is None
    card = found["hosts"]["pve"]["gpus"]["rtx5090"]
    assert (card["functions"][0].get("iommuGroup"), card.get("holder")) == (14, "sandbox")
    assert isinstance(card["functions"][0].get("iommuGroup"), int)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every object in ``value``."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [place for key, one in inside for place in places(one, (*path, key))]
    return [path, *below] if isinstance(value, dict) else below


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


# Objects whose keys are names of things, not of the contract.
NAMES = {("hosts",), ("vms",), ("containers",), ("hosts", "pve", "gpus")}


@rows("place", [place for place in places(values()) if place not in NAMES], ids=str)
def test_a_key_that_is_new_breaks_nobody(place: tuple[Any, ...]) -> None:
    more = values()
    at(more, place)["comesLater"] = {"with": ["anything"]}
    assert contract.consumed("homelab", more) == contract.consumed("homelab", values())


# Null where nothing is known; its absence says the same.
NULLABLE = {"iommuGroup", "mapping", "hostpci", "holder", "address", "test"}
# Of a test's VM, which is gone.
NULLABLE_PLACES = {("hosts", "pve", "gpus", "rtx5090", "test", "vmid")}


@rows(
    "key",
    [
        (*place, key)
        for place in places(values())
        if place not in NAMES
        for key in at(values(), place)
        if key not in NULLABLE and (*place, key) not in NULLABLE_PLACES
    ],
    ids=str,
)
def test_a_key_that_is_gone_is_named(key: tuple[Any, ...]) -> None:
    less = values()
    del at(less, key[:-1])[key[-1]]
    message = refused(less)
    assert (".".join(map(str, key)) if key != ("version",) else "no `version`") in message
    assert "run `pulumi up` in organization/homelab/homelab" in message


@rows(
    ("key", "changed"),
    [
        (("vms", "sandbox", "vmid"), str),
        (("vms", "sandbox", "vmid"), lambda _: 103.5),
        (("vms", "sandbox", "state"), lambda _: "paused by somebody"),
        (("vms", "sandbox", "gpus"), lambda _: "rtx5090"),
        (("hosts", "pve", "gpus", "rtx5090", "use"), lambda _: "container"),
        (("hosts", "pve", "gpus", "rtx5090", "slot"), lambda slot: [slot]),
        (("hosts", "pve", "gpus", "rtx5090", "holder"), lambda _: 103.0),
        (("hosts", "pve", "gpus", "rtx5090", "functions"), lambda functions: functions[0]),
        (("hosts",), lambda hosts: list(hosts.values())),
    ],
)
def test_a_key_that_has_changed_is_named(key: tuple[Any, ...], changed: Callable[[Any], Any]) -> None:
    other = values()
    at(other, key[:-1])[key[-1]] = changed(at(values(), key))
    assert ".".join(map(str, key)) in refused(other)


@pytest.mark.parametrize(
    ("version", "found"),
    [(2.0, "version 2"), (0.0, "version 0"), ("1", "version '1'"), ([], "version []")],
)
def test_another_version_is_refused_before_anything_is_read(version: Any, found: str) -> None:
    message = refused({"version": version, "hosts": "not looked at"})
    for text in ("wanted: version 1 of a homelab stack's outputs", found, "why: ", "with the same checkout"):
        assert text in message


def test_a_stack_that_was_never_deployed_has_no_version() -> None:
    assert "no `version`; there is nothing" in refused({})


def test_what_was_read_can_be_handed_on() -> None:
    read = contract.consumed("homelab", values())
    again = json.loads(json.dumps(read))
    assert contract.consumed("homelab", again) == read
