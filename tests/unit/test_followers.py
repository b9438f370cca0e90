"""What apt says on a host and on its containers, which must follow its driver: asked before anything is changed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, cast

import pytest

from homelab.errors import HomelabError, UnreachableError
from homelab.nvidia import plan
from homelab.nvidia.preview import Stack
from homelab.nvidia.request import Request
from homelab.nvidia.resource import NvidiaSystem
from homelab.nvidia.versions import fits
from homelab.nvidia.versions import parse as version_of
from homelab.nvidia.work import NvidiaSystemWork
from homelab.reading import planning, stacks
from homelab.remote import host_session, ssh
from homelab.settings import Nvidia
from homelab.settings import parse as parse_settings
from remote_scripts.both.nvidia_packages import Said, Wanted
from remote_scripts.both.read_system import Answer as SystemReading
from remote_scripts.tools.plain import of_plain, to_plain
from tests.unit.hosts import KEY, SYSTEM, conf, desktop, gpu, seen, tree, values

OLD, NEW = "590.48.01", "595.58.03"
BOTH = (OLD, NEW)
KERNEL = "6.14.11-4-pve"


class World:
    """A host with the old driver and its containers. `offers`: id, 0 for the host -> the versions that apt can bring
    in there; `asked`: the digest of what was carried out on all of them."""

    def __init__(self, **offers: tuple[str, ...]) -> None:
        self.offers = {0: BOTH, 901: BOTH, 950: BOTH} | {int(name[1:]): found for name, found in offers.items()}
        self.there, self.asked, self.drift, self.wanted = OLD, "", list[list[str]](), {"driver": "595"}
        self.fails: dict[str, HomelabError] = {}
        self.calls: list[str] = []

    def ask(
        self, verb: str, layer: str, wanted: Any, seconds: float = 0, *, ctid: int = 0, proxy: str = ""
    ) -> dict[str, Any]:
        self.calls.append(call := f"{verb} {layer} {ctid}")
        if call in self.fails:
            raise self.fails[call]
        if layer == "nvidia_index":
            lacking = [name for name in wanted.names if "12" in name]
            return {"against": [f"{name} isn't offered; there is cuda-toolkit-13-1" for name in lacking]}
        answer = self.reading(ctid) if layer == "read_system" else dataclasses.asdict(self.said(wanted, ctid))
        return cast("dict[str, Any]", json.loads(json.dumps(answer)))

    def said(self, wanted: Wanted, ctid: int) -> Said:
        offered = self.offers[ctid]
        for number, way in enumerate(wanted.tries):
            found = [version for version in offered if fits(version_of(version), version_of(way.driver))]
            if way.run or found:
                version = way.run.version if way.run else max(found)
                return Said(chosen=number, version=version, was=self.there, way_back=True)
        return Said(chosen=None, was=self.there, offered=offered, against=("E: Version not found",))

    def reading(self, ctid: int) -> dict[str, Any]:
        about: dict[str, Any] = {"distribution": "debian", "version": "13", "kernels": (KERNEL,), "running": KERNEL}
        about |= {"cards": ("10de:2b85",), "loaded": self.there, "host_driver": self.there if ctid else None}
        about |= {"runtimes": (), "asked": self.asked, "steps": ("packages",), "libraries": self.there}
        return cast("dict[str, Any]", to_plain(seen(**about, drift=self.drift)))


def request_of(world: World, **stack: object) -> Request:
    return Request.of("host", Nvidia.model_validate(stack), "hosts.pve", read(world))


def read(world: World, ctid: int = 0) -> SystemReading:
    return of_plain(SystemReading, world.reading(ctid), "reading")


def on_host(world: World, driver: str = "595") -> Stack:
    """What comes of the host's own question."""
    stack = Stack.of("host", Nvidia(driver=driver), "hosts.pve", read(world))
    return stacks.asked(cast(ssh.Session, world), stack)


def refusals(world: World, driver: str = "595", **stack: object) -> list[HomelabError]:
    """What its containers say against the driver that the host would get."""
    host = on_host(world, driver)
    known = {"host_driver": host.said.version if host.said else ""}
    settings = Nvidia.model_validate(stack)
    followers = [
        dataclasses.replace(Stack.of("lxc", settings, f"containers.{name}", read(world, ctid), **known), ctid=ctid)
        for name, ctid in (("ai", 901), ("media", 950))
    ]
    found = stacks.asked_after(host, [(cast(ssh.Session, world), one) for one in followers])
    return [*host.errors, *(error for one in found for error in one.errors)]


def test_a_version_that_every_container_can_have_is_asked_for_and_nothing_is_changed() -> None:
    world = World()
    assert refusals(world) == [] and world.calls[0] == "read nvidia_packages 0"
    assert {*world.calls[1:]} == {f"read nvidia_packages {ctid}" for ctid in (901, 950)}


def test_each_that_cannot_have_it_is_told_by_its_name() -> None:
    errors = refusals(World(_901=(OLD,), _950=(OLD,)), source="packages")
    assert [error.wanted.partition(":")[0] for error in errors] == ["containers.ai", "containers.media"]
    for error in errors:
        assert NEW in error.wanted + error.found and f"hosts.pve would get {NEW} in place of {OLD}" in error.why
        assert error.why.count("nothing was changed") == 1


def test_without_packages_of_it_nvidias_installer_does_where_its_checksum_is_known() -> None:
    assert refusals(World(_950=(OLD,))) == []


def test_a_branch_means_the_version_that_the_host_would_get() -> None:
    (error,) = refusals(World(_0=(OLD, NEW), _901=("595.71.05",)), source="packages")
    assert error.wanted.startswith("containers.ai: ")


def test_a_system_that_is_as_it_is_wanted_is_not_asked() -> None:
    """So that nothing fails without NVIDIA's server where nothing is to be done."""
    world = World()
    world.asked = plan.wanted(request_of(world, driver="590")).digest
    assert on_host(world, "590").is_done and not world.calls
    on_host(world, "595")  # something else is wanted now
    world.drift = [["boot", "no module is loaded"]]
    on_host(world, "590")  # no package is missing
    assert len(world.calls) == 1
    world.drift = [["packages", "nvidia-kernel-open-dkms is gone"]]
    on_host(world, "590")
    assert len(world.calls) == 2


def test_a_repository_that_can_not_be_had_is_an_error_of_the_system() -> None:
    world = World()
    world.fails["read nvidia_packages 0"] = HomelabError(wanted="its repository", found="404", why="w", next="n")
    assert [(error.wanted, error.found) for error in on_host(world).errors] == [("hosts.pve: its repository", "404")]


# -- a preview ---------------------------------------------------------------------------------------------------------
SSH = {"hostKey": KEY, "agent": True}


def previewed(
    world: World, monkeypatch: pytest.MonkeyPatch, **inside: object
) -> tuple[list[Stack], list[str], list[HomelabError]]:
    """A host with a card for containers, a container that follows it, and a VM with a card of its own."""
    gpus = {"big": {"address": "01:00", "use": "lxc"}, "own": {"address": "03:00"}}
    of_stack = {
        "hosts": {"pve": values(gpus, nvidia={"driver": "595"})},
        "vms": {"v": {"host": "pve", "vmid": 103, "gpus": ["own"], "ssh": SSH, "address": "192.0.2.9", "nvidia": {}}},
        "containers": {"media": {"host": "pve", "ctid": 950, "gpuAssignment": "all", "nvidia": inside}},
    }
    found = parse_settings(of_stack)
    host = found.hosts["pve"]
    guests = {"configs": [conf("lxc", 950, "ostype: debian"), conf("vm", 103, "ostype: l26")], "running": [950, 103]}
    facts = desktop(*gpu("0000:03:00", 18), nvidia_minors={"0000:01:00.0": 0}, guests=guests)
    monkeypatch.setattr(ssh, "Session", lambda *_: VM)
    session = cast(ssh.Session, world)
    seen, sessions = planning._with_systems(session, tree(facts, host, found.vms, found.containers), None)
    asked = planning._with_stacks(session, seen, sessions)
    errors = [error for system in asked.systems.values() for error in system.against]
    return asked.stacks, asked.unread, [*errors, *asked.others]


VM = World(_0=(NEW,))


def test_a_preview_asks_each_system_what_apt_would_do_there(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    VM.calls.clear()
    VM.there = ""
    stacks, remarks, errors = previewed(world, monkeypatch)
    assert (remarks, errors) == ([], [])
    assert [call for call in world.calls if "packages" in call] == [f"read nvidia_packages {ctid}" for ctid in (0, 950)]
    assert VM.calls == ["read read_system 0", "read nvidia_packages 0"]
    assert [stack.said.version if stack.said else "" for stack in stacks] == [NEW, NEW, NEW]
    assert [stack.name for stack in stacks] == ["hosts.pve", "vms.v", "containers.media"]


def test_a_preview_refuses_a_drivers_update_that_a_container_can_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, (error,) = previewed(World(_950=(OLD,)), monkeypatch, source="packages")
    assert error.wanted.startswith("containers.media: ") and f"hosts.pve would get {NEW} in place of {OLD}" in error.why


def test_where_the_hosts_own_driver_is_refused_its_guests_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(_0=())
    world.fails["read nvidia_packages 0"] = HomelabError(wanted="its repository", found="404", why="w", next="n")
    _, _, errors = previewed(world, monkeypatch)
    assert [error.found for error in errors] == ["404"] and "read nvidia_packages 950" not in world.calls


def test_a_vm_that_is_lost_between_two_questions_is_no_host_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    VM.fails["read nvidia_packages 0"] = UnreachableError(wanted="a", found="gone", why="c", next="d")
    try:
        _, _, errors = previewed(World(), monkeypatch)
    finally:
        VM.fails.clear()
    assert [error.found for error in errors] == ["gone"]


@pytest.mark.parametrize(("cuda", "is_refused"), [("12.8", True), ("13.1", False)])
def test_of_a_guest_that_is_not_there_yet_its_host_says_what_nvidias_repository_lacks(
    cuda: str, is_refused: bool
) -> None:
    world, settings = World(), Nvidia.model_validate({"cuda": cuda})
    known: dict[str, Any] = {"distribution": "debian", "version": "13", "host_driver": "595.58.03"}
    new = Stack.of("lxc", settings, "containers.new", **known)
    new = stacks.asked(cast(ssh.Session, world), dataclasses.replace(new, ctid=960, is_new=True))
    assert world.calls == ["read nvidia_index 0"] and new.said is None
    lacking = "cuda-toolkit-12-8 isn't offered; there is cuda-toolkit-13-1"
    assert [error.found for error in new.errors] == [lacking] * is_refused
    assert all('set nvidia.cuda: "13' in error.next for error in new.errors), new.errors


# -- an `up` -----------------------------------------------------------------------------------------------------------
def planned(world: World, monkeypatch: pytest.MonkeyPatch, **inside: object) -> NvidiaSystem.Outputs:
    """What comes of the host's NvidiaSystem, before a step."""
    containers = {"media": {"host": "pve", "ctid": 950, "gpuAssignment": "all", "nvidia": inside}}
    texts = {"hosts": json.dumps({"pve": values(nvidia=world.wanted)}), "containers": json.dumps(containers)}
    monkeypatch.setattr(ssh, "Session", lambda *_: world)
    monkeypatch.setattr(host_session.HostSession, "hold", lambda *_: None)
    inputs = NvidiaSystem.Inputs(**SYSTEM, target="host", system_name="hosts.pve", address="192.0.2.1")
    return NvidiaSystemWork(texts).create(inputs)


def test_an_up_asks_apt_before_anything_and_says_that_a_branch_gets_no_more_fixes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    world.there, world.wanted = NEW, {"driver": "590"}
    outputs = planned(world, monkeypatch)
    assert outputs.generation == {"packages": 0, "boot": 0, "toolkit": 0} and outputs.facts.version == "13"
    assert {call.partition(" ")[0] for call in world.calls} == {"read"}
    assert "hosts.pve: branch 590 has reached its end of life" in capsys.readouterr().out


def test_an_up_of_what_is_done_judges_the_very_driver_that_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    world.there = "590.40.01"  # older than the one that this CUDA came with
    world.wanted = {"driver": "590", "cuda": "13.1"}
    world.asked = plan.wanted(request_of(world, **world.wanted)).digest
    planned(world, monkeypatch)
    assert "with 590.40.01 its programs run within" in capsys.readouterr().out
    assert not [call for call in world.calls if "packages" in call]
