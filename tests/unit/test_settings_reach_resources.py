"""Every setting reaches a resource: one that nothing takes notice of would be silently without effect (settings_changes.yaml)."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import runpy
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple, Unpack, get_args

import pulumi
import pytest
from pulumi.runtime import resource_cycle_breaker
from pulumi.runtime.mocks import MockMonitor
from pulumi.runtime.proto import source_pb2
from pydantic import BaseModel

from homelab import tables
from homelab.nvidia import compatibility
from homelab.nvidia.resource import LAYERS
from homelab.resources import command, kept_agent
from homelab.resources.base import declared
from homelab.settings import Nvidia, Settings
from tests.conftest import PROJECT
from tests.unit.hosts import KEY

pytestmark = pytest.mark.filterwarnings("ignore:This resource is deprecated:DeprecationWarning")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

DATA = tables.read(Path(__file__).parent / "settings_changes.yaml")
CARD = {"name": "", "keep": False, "slot": "0000:01:00", "path": "0000:01:00", "use": "vm", "iommuGroup": 1}
FUNCTION = {"address": "0000:01:00.0", "id": "10de:2b85", "class": "0300", "subsystem": "1:1", "iommuGroup": 1}
CARD["functions"] = [FUNCTION]
FACTS = {
    "distribution": "debian", "version": "12", "kernels": ["6.17.2-1-pve"], "running": "6.17.2-1-pve",
    "secure_boot": False, "cards": ["10de:2b85"], "host_driver": "580.95.05",
}  # fmt: skip
PROBE = "homelab:host:Probe", "pve-probe"
BOOT = {"id": "b", "stopped": [], "at": 1}
# What resources put out, by type.
OUTPUTS: dict[str, dict[str, Any]] = {
    "HostProbe": {
        "iommu_words": "iommu=pt", "vfio_words": "homelab.vfio=a", "functions": {"0000:01:00.0": "10de:2b85"}, "by_hand": [],
        "generation": {}, "stale": False, "gpus": {"rtx5090": CARD, "rtx4090": CARD | {"use": "lxc"}},
    },
    "BootVerification": {"kernel": "k", "boot_id": "b", "iommu": {"groups": 1, "kernelLog": []}, "devices": {}, "boot": BOOT},
    "CardMapping": {"before": ""}, "StorageFile": {"made": True},
    "VmCards": {"guest_name": "a", "state": "running", "guest_address": "192.0.2.3", "starts": 0},
    "Guest": {"instance": "a"},
    "ContainerProbe": {"minors": [0], "functions": ["0000:01:00.0"], "guest_name": "a", "rebooted_at": 0, "generation": 0, "shared": {}, "again": 0},
    "ContainerVerification": {"state": "running", "nodes": []},
    "NvidiaSystem": {"facts": FACTS, "generation": dict.fromkeys(LAYERS, 0)},
    "GuestReboot": {"boot_id": "b"},
    "NvidiaVerification": {"result": {}},
}  # fmt: skip
ANSWER = {
    "devices": {},
    "digest": "",
    "revision": 0,
    "reboot": "no",
    "guests": [],
    "reasons": [],
}
INSTALLED = {
    "version": "580.95.05", "source": "packages", "flavour": "open", "capabilities": ["compute", "video"], "reboot": "no", "why": "",
    "cuda": "12.9", "toolkit": "1.18.0-1", "packages": [], "changed": False,
}  # fmt: skip


def reachable(from_resource: pulumi.Resource, to_resource: pulumi.Resource) -> bool:
    """As Pulumi's own, which is a generator in a generator for each step of the way."""
    seen: set[pulumi.Resource] = set()
    todo = {from_resource}
    while todo and to_resource not in todo:
        seen |= todo
        todo = set().union(*map(resource_cycle_breaker._deps, todo)) - seen
    return bool(todo)


class Loop(asyncio.SelectorEventLoop):
    """What the SDK does in threads, since an engine may take long to answer, is done at once: nobody takes long here."""

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


class Engine(pulumi.runtime.Mocks):
    """Notes what each resource is told."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.told: dict[tuple[str, str], Any] = {}
        self.gpus = {name: host.get("gpus", {}) for name, host in config["hosts"].items()}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        assert (args.typ, args.name) not in self.told, f"two resources have the name {args.name}"
        self.told[args.typ, args.name] = args.inputs
        outputs = OUTPUTS.get(declared()[args.typ].__name__, {}) if args.typ in declared() else {}
        if "gpus" in outputs:  # only those that the host is to have
            outputs = outputs | {
                "gpus": {name: card for name, card in outputs["gpus"].items() if name in self.gpus[args.inputs["host"]]}
            }
        if args.typ == "command:remote:Command":
            outputs = {"stdout": json.dumps(INSTALLED if args.name.endswith("-packages") else ANSWER)}
        return args.name, {**args.inputs, **copy.deepcopy(outputs)}

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        raise AssertionError(f"nothing is to be called: {args.token}")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """What the program's resources are told under a configuration."""
    loops: list[asyncio.AbstractEventLoop] = []

    def noted() -> asyncio.AbstractEventLoop:
        loops.append(Loop())
        return loops[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", noted)
    kept_agent._of_way.cache_clear()  # or each program stays in memory
    # A third of what a program takes here: from where in pytest's stack each resource was declared, which nobody reads, and the search for circles.
    monkeypatch.setattr(pulumi.runtime.resource, "_get_stack_trace", source_pb2.StackTrace)
    monkeypatch.setattr(resource_cycle_breaker, "_reachable", reachable)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text(f"{KEY[:-4]}AAAA\n")
    words = {
        "KEY": KEY, "KEY2": f"{KEY[:-4]}AAAA", "FINGERPRINT": "ab" * 32, "FILE": str(tmp_path / "file"),
        "PRIVATE": "-----BEGIN OPENSSH PRIVATE KEY-----\nYQ==\n-----END OPENSSH PRIVATE KEY-----\n",
    }  # fmt: skip

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {filled(key): filled(one) for key, one in value.items()}
        if isinstance(value, list):
            return [filled(one) for one in value]
        return words.get(value, value) if isinstance(value, str) else value

    def run(config: dict[str, Any]) -> Any:
        main = noted()
        asyncio.set_event_loop(main)
        engine = Engine(config)
        values = {f"homelab:{key}": json.dumps(one) for key, one in filled(config).items()}
        monkeypatch.setenv("PULUMI_CONFIG", json.dumps(values | {"homelab:allowPlainSecrets": "true"}))
        pulumi.runtime.set_mocks(engine, project="homelab", stack="lab", preview=False)
        monkeypatch.setattr(command, "_ask_the_agent", lambda: None)  # nobody has one here

        @pulumi.runtime.test  # type: ignore[untyped-decorator]
        def program() -> None:
            runpy.run_path(str(PROJECT / "__main__.py"))

        program()
        pulumi.runtime.settings.reset_options()
        main.run_until_complete(main.shutdown_default_executor())
        return engine.told

    yield run
    asyncio.set_event_loop(None)
    for loop in loops:
        loop.close()


def at_each_registration(monkeypatch: pytest.MonkeyPatch, note: Callable[[str, Any], None]) -> None:
    """Has ``note`` called with the URN of each resource that is registered, and with what the engine is asked."""
    inherited: Any = MockMonitor.RegisterResource

    def register(monitor: MockMonitor, request: Any) -> Any:
        response = inherited(monitor, request)
        note(response.urn, request)
        return response

    monkeypatch.setattr(MockMonitor, "RegisterResource", register)


def left_out(place: str) -> tuple[str, ...]:
    """What of the base a setting has nothing to do with."""
    (longest,) = sorted((one for one in DATA["without"] if f"{place}.".startswith(f"{one}.")), key=len)[-1:]
    return tuple(DATA["without"][longest])


def changed(changes: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The base, but for some of its places, with changes laid over it."""
    config: dict[str, Any] = copy.deepcopy(DATA["base"])
    for place, value in {**dict.fromkeys(without), **changes}.items():
        *folders, last = place.split(".")
        inside = config
        for folder in folders:
            inside = inside.setdefault(folder, {})
        if value is None:
            inside.pop(last, None)
        else:
            inside[last] = value
    return config


def leaves(model: type[BaseModel], place: str = "") -> Iterator[str]:
    """Every setting's place; NVIDIA's, which hosts, VMs and containers have, once."""
    for name, field in model.model_fields.items():
        path = f"{place}{field.alias or name}"
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = next((one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)), None)
        if inner is Nvidia:
            continue
        many = getattr(field.annotation, "__origin__", None) in (dict, list)
        if inner is None:
            yield path
        else:
            yield from leaves(inner, f"{path}.{'*.' if many else ''}")


def test_every_setting_is_changed_or_has_a_reason() -> None:
    known = {*leaves(Settings), *leaves(Nvidia, "nvidia.")}
    assert known == DATA["changes"].keys() | DATA["of_no_resource"].keys()


def of_one_base() -> dict[tuple[str, ...], list[str]]:
    """The changed settings' places, by what is left out of the base."""
    found: dict[tuple[str, ...], list[str]] = {}
    for place in DATA["changes"]:
        found.setdefault(left_out(place), []).append(place)
    return found


@pytest.mark.parametrize(("without", "places"), [pytest.param(*one, id=one[1][0]) for one in of_one_base().items()])
def test_a_setting_that_changes_changes_what_a_resource_is_told(
    told: Callable[[dict[str, Any]], Any], without: tuple[str, ...], places: list[str]
) -> None:
    before, unnoticed, ungated = told(changed({}, without)), list[str](), list[str]()
    for place in places:
        after = told(changed(DATA["changes"][place], without))
        unnoticed += [place] * (after == before)
        # Gates read all of it, but for how a system is reached, and how long that may take.
        is_gated = not re.search(r"\.(address|ssh\.\w+|timeouts\.\w+)$", place) or "gpus" in place
        ungated += [place] * ((after[PROBE] != before[PROBE]) is not is_gated)
    assert (unnoticed, ungated) == ([], [])


def test_a_setting_of_no_resource_changes_nothing_that_one_is_told(told: Callable[[dict[str, Any]], Any]) -> None:
    changes = {place: value for each in DATA["of_no_resource"].values() for place, value in each.items()}
    assert told(changed(changes)) == told(changed({}))


def test_a_shared_card_of_a_vm_and_a_card_named_like_both_are_two(
    told: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = {
        "rtx5090": CARD | {"use": "shared"},
        "rtx5090-sandbox": CARD
        | {"slot": "0000:02:00", "path": "0000:02:00", "functions": [FUNCTION | {"address": "0000:02:00.0"}]},
    }
    monkeypatch.setitem(OUTPUTS["HostProbe"], "gpus", cards)
    config = changed({}, ("hosts.pve2", "containers", "vms.made", "vms.sandbox.nvidia", "hosts.pve.downloads"))
    config["hosts"]["pve"]["nvidia"] = {}
    config["hosts"]["pve"]["gpus"] = {
        "rtx5090": {"match": "10de:2b85", "use": "shared"},
        "rtx5090-sandbox": {"match": "10de:2684"},
    }
    mappings = [inputs for (kind, _), inputs in told(config).items() if kind == "homelab:pci:Mapping"]
    found = {mapping["mapping"]: mapping["keepers"] for mapping in mappings}
    assert found == {"rtx5090": [103], "rtx5090-sandbox": []}


def test_each_step_shows_what_it_does_while_it_runs(told: Callable[[dict[str, Any]], Any]) -> None:
    shown = {name: inputs["logging"] for (kind, name), inputs in told(changed({}, ())).items() if "Command" in kind}
    assert {"pve-cmdline", "pve-initrd", "pve-reboot"} <= shown.keys() and {*shown.values()} == {"stderr"}


def test_the_programs_resources_keep_their_urns_and_what_each_comes_after(
    told: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another URN is another resource: the engine would undo the old one on every owner's host."""
    program = tables.read(Path(__file__).parent / "program_resources.yaml")
    registered: dict[str, list[str]] = {}

    def note(urn: str, request: Any) -> None:
        if request.custom:
            registered[short(urn)] = sorted(map(short, request.dependencies))

    def short(urn: str) -> str:
        return urn.removeprefix("urn:pulumi:lab::homelab::").replace("pulumi:pulumi:Stack$", "")

    at_each_registration(monkeypatch, note)
    told(changed(program["changes"]))
    assert registered == program["resources"]


def test_newer_data_of_nvidias_have_the_hosts_planned_anew_that_install_by_them(
    told: Callable[[dict[str, Any]], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--skip-preview`, too, all is asked that stands against what they change."""
    without = tuple(DATA["without"]["nvidia"])
    settings = [changed({}, without), changed({}, (*without, "hosts.pve.nvidia"))]
    before = [told(one)[PROBE] for one in settings]
    newer = tmp_path / "facts.yaml"
    newer.write_text(compatibility.FILE.read_text(encoding="utf-8") + "# of today\n", encoding="utf-8")
    monkeypatch.setattr(compatibility, "FILE", newer)
    after = [told(one)[PROBE] for one in settings]
    assert before[0] != after[0] and before[1] == after[1]
