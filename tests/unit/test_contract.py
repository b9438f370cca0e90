"""homelab/contract.py: what a stack puts out is what its consumers were promised, and what isn't is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from homelab import contract
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
    written = (PROJECT / "docs" / "outputs.schema.json").read_text(encoding="utf-8")
    assert written == contract.text(), "write it anew: python -m homelab.contract"


def test_the_schema_requires_what_a_consumer_works_with() -> None:
    schema = contract.schema()
    required = {name: set(about.get("required", ())) for name, about in schema["$defs"].items()}
    assert required["HostOutput"] == {"node", "kernel", "bootId", "iommu", "gpus"}
    assert required["Function"] == {"address", "id", "subsystem", "class", "driver"}
    assert {"slot", "name", "path", "use", "functions"} <= required["GpuOutput"]
    assert {"iommuGroup", "mapping", "hostpci", "holder"} <= set(schema["$defs"]["GpuOutput"]["properties"])
    assert required["VmOutput"] == {"host", "node", "vmid", "name", "state", "gpus"}
    assert schema["properties"]["version"]["const"] == contract.VERSION


def test_what_is_null_is_left_out_at_any_depth() -> None:
    put_out = {"vmid": 103, "address": None, "nvidia": {"cuda": None, "gpus": [{"name": None, "uuid": "GPU-1"}]}}
    assert contract.without_nulls(put_out) == {"vmid": 103, "nvidia": {"gpus": [{"uuid": "GPU-1"}]}}


def test_outputs_are_read_as_pulumi_hands_them_over() -> None:
    found = contract.consumed("homelab", values())
    assert found.vms["sandbox"].vmid == 103
    assert found.vms["sandbox"].address is None
    assert found.hosts["pve"].gpus["rtx5090"].functions[0].iommu_group == 14
    assert found.hosts["pve"].gpus["rtx5090"].holder == "sandbox"


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
NULLABLE = {"iommuGroup", "mapping", "hostpci", "holder", "address"}


@rows(
    "key",
    [
        (*place, key)
        for place in places(values())
        if place not in NAMES
        for key in at(values(), place)
        if key not in NULLABLE
    ],
    ids=str,
)
def test_a_key_that_is_gone_is_named(key: tuple[Any, ...]) -> None:
    less = values()
    del at(less, key[:-1])[key[-1]]
    message = refused(less)
    assert (".".join(map(str, key)) if key != ("version",) else "no `version`") in message
    assert "run `pulumi up` in organization/homelab/homelab" in message


def _as_text(value: Any) -> Any:
    return str(value)


def _as_list(value: Any) -> Any:
    return [value]


@rows(
    ("key", "changed"),
    [
        (("vms", "sandbox", "vmid"), _as_text),
        (("vms", "sandbox", "vmid"), lambda _: 103.5),
        (("vms", "sandbox", "state"), lambda _: "paused by somebody"),
        (("vms", "sandbox", "gpus"), lambda _: "rtx5090"),
        (("hosts", "pve", "gpus", "rtx5090", "use"), lambda _: "container"),
        (("hosts", "pve", "gpus", "rtx5090", "slot"), _as_list),
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
    again = json.loads(json.dumps(read.model_dump(mode="json", by_alias=True)))
    assert contract.consumed("homelab", again) == read
