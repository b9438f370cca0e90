"""An update of a host's driver, tried in its containers: who has which version at the end, whatever fails and wherever it is killed."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from homelab.errors import HomelabError, SeveralErrors, UnreachableError
from homelab.provider.driver_trial import DriverTrialWork
from homelab.provider.systems import Reached
from homelab.remote import ssh
from homelab.resources.nvidia import DriverTrial
from tests.unit.hosts import KEY

OLD, NEW = "580.105.08", "590.48.01"
CTIDS = (901, 950)
TEXTS = {
    "hosts": json.dumps({"pve": {"address": "192.0.2.10", "ssh": {"hostKey": KEY, "agent": True}, "nvidia": {}}}),
    "containers": json.dumps(
        {
            "ai": {"host": "pve", "ctid": 901, "gpuAssignment": "all", "nvidia": {}},
            "media": {"host": "pve", "ctid": 950, "gpuAssignment": "all", "nvidia": {}},
            "plain": {"host": "pve", "ctid": 960, "gpuAssignment": "all"},
        }
    ),
}
INPUTS = DriverTrial.Inputs(
    host="pve",
    target="host",
    system_name="hosts.pve",
    address="192.0.2.10",
    nvidia={},
    after="",
    passed=[],
    stays=True,
    timeout=1,
    done=[],
)


class KilledError(Exception):
    """The provider's process is no more."""


class System:
    """A host or a container, as the scripts leave it."""

    def __init__(self, version: str, phase: str = "") -> None:
        self.version, self.phase, self.kept, self.given_up, self.pinned = (
            version,
            phase,
            OLD if phase else "",
            "",
            version,
        )


class World:
    """The host after the boot with its new driver, and its containers with the old one's libraries."""

    def __init__(self) -> None:
        self.host = System(NEW, "tried")
        self.containers = {ctid: System(OLD) for ctid in CTIDS}
        self.running = [*CTIDS, 960]
        self.without_driver: set[int] = set()
        self.refusing: set[int] = set()
        self.not_going_back: set[int] = set()
        self.without_shell: set[int] = set()
        self.losing: set[int] = set()
        self.several = False
        self.calls: list[str] = []
        self.killed_after, self.killed_by = -1, Exception()
        self.kept_nothing = False

    def ask(self, verb: str, layer: str, wanted: Any, ctid: int) -> dict[str, Any]:
        if len(self.calls) == self.killed_after:
            self.calls.append("killed")
            raise self.killed_by
        assert layer != "driver_update" or wanted.target == ("lxc" if ctid else "host")
        ends = {"read": "waiting", "apply": "confirm", "revert": "back"}
        step = ends[verb] if layer == "driver_update" else layer.removeprefix("nvidia_")
        self.calls.append(f"{ctid or 'host'} {step}")
        if step == "waiting":
            kept = self.host.kept if self.host.phase else ""
            found = {"phase": self.host.phase, "old": kept, "new": self.host.version, "given_up": self.host.given_up}
            return {**found, "running": self.running}
        if step == "back" and ctid in self.not_going_back:
            raise HomelabError(wanted="packages", found="disk full", why="w", next="make room there")
        if not ctid:
            return self.ended(self.host, step, host=True)
        inside = self.containers[ctid]
        if step == "read_system":
            if ctid in self.without_shell:
                raise HomelabError(wanted="an answer from it", found="no shell", why="looked into", next="install it")
            return self.reading(ctid)
        if step == "repository":
            inside.pinned = next(one for one in (OLD, NEW) if one in str(wanted))
            return {"offered": {}}
        if step == "driver" and not wanted.awaited:  # what has no way back of its own is installed
            inside.version = self.host.version
            return {}
        if step == "driver":
            if self.several:
                errors = [
                    HomelabError(wanted=f"{what} in {ctid}", found="f", why="w", next="n")
                    for what in ("libraries", "CUDA")
                ]
                raise SeveralErrors(errors)
            if ctid in self.refusing:
                raise HomelabError(
                    wanted=f"libraries in {ctid}", found="no room", why="they go there", next="make room"
                )
            if inside.version != NEW:
                inside.kept = "" if ctid in self.losing else inside.version
            inside.version, inside.phase = NEW, "tried" if inside.kept else ""
            return {}
        return self.ended(inside, step, host=False)

    def ended(self, system: System, step: str, *, host: bool) -> dict[str, Any]:
        if step == "confirm":
            if system.phase == "tried":
                system.phase, system.kept = "", ""
            return {"old": "", "now": ""}
        assert step == "back"
        if system.phase not in ("tried", "back") or (host and self.kept_nothing):
            return {"old": "", "now": f"its libraries are {system.version}"}
        new, system.version, system.phase, system.kept = system.version, system.kept, "", ""
        if host:
            system.given_up = new
        return {"old": system.version, "now": f"{system.version}; nvidia-smi answers"}

    def reading(self, ctid: int) -> dict[str, Any]:
        steps = [] if ctid in self.without_driver else ["repository", "driver"]
        found: dict[str, Any] = {"boot_id": "b", "distribution": "ubuntu", "version": "24.04", "architecture": "x86_64"}
        found |= {
            "kernels": [],
            "running": "6.14.11-4-pve",
            "secure_boot": None,
            "mok_enrolled": None,
            "cards": ["10de:2b85"],
        }
        found |= {"nouveau": False, "loaded": "", "loaded_flavour": None, "host_driver": self.host.version}
        found |= {"runtimes": [], "room": None, "offered": None, "steps": steps, "drift": []}
        return found

    def versions(self) -> set[str]:
        return {
            self.host.version,
            *(one.version for ctid, one in self.containers.items() if ctid not in self.without_driver),
        }

    def left(self) -> set[str]:
        return {self.host.phase, *(one.phase for one in self.containers.values())}


class Connection:
    """To the host, and through it to its containers."""

    def __init__(self, world: World) -> None:
        self.world = world

    def ask(self, verb: str, layer: str, wanted: object, _seconds: float, *, ctid: int, proxy: str) -> dict[str, Any]:
        return self.world.ask(verb, layer, wanted, ctid)


def tried(world: World) -> None:
    class Work(DriverTrialWork):
        def session(self, inputs: Any, seconds: float = 0) -> Any:
            return Reached(cast(ssh.Session, Connection(world)), seconds)

    Work(TEXTS).create(INPUTS)


def refusal(world: World) -> HomelabError:
    with pytest.raises(HomelabError) as refused:
        tried(world)
    return refused.value


def test_the_host_gives_the_old_version_up_after_its_containers() -> None:
    world = World()
    tried(world)
    assert world.versions() == {NEW} and world.left() == {""}
    assert [call for call in world.calls if call.endswith("confirm")] == ["901 confirm", "950 confirm", "host confirm"]


@pytest.mark.parametrize("refusing", CTIDS)
def test_a_container_without_new_libraries_takes_host_and_others_back(refusing: int) -> None:
    world = World()
    world.refusing = {refusing}
    error = refusal(world)
    assert world.versions() == {OLD} and world.left() == {""}
    assert {one.pinned for one in world.containers.values()} == {OLD}
    assert (error.wanted, error.found) == (f"libraries in {refusing}", "no room")
    assert f"the host's update from {OLD} to {NEW} is given up, too" in error.why
    assert error.next == (
        f"the driver {OLD} is back: hosts.pve: {OLD}; nvidia-smi answers; "
        + "; ".join(
            f"containers.{name}: " + (f"its libraries are {OLD}" if ctid >= refusing else f"{OLD}; nvidia-smi answers")
            for name, ctid in (("ai", 901), ("media", 950))
        )
        + ". Set hosts.pve.nvidia.driver to it; or for another try: make room, then run `pulumi up --refresh`"
    )
    # Until another try, a run ends here, and changes nothing.
    again = refusal(world)
    assert f"NVIDIA's driver {NEW} on the host" in again.wanted and world.versions() == {OLD}
    assert "failed to install it everywhere" in again.found
    # Which begins with the host's own step, and its boot.
    world.host, world.refusing = System(NEW, "tried"), set()
    tried(world)
    assert world.versions() == {NEW} and world.left() == {""}


@pytest.mark.parametrize("killed_by", [KilledError(), UnreachableError(wanted="a", found="b", why="c", next="d")])
@pytest.mark.parametrize("refusing", [set[int](), {950}])
def test_killed_or_cut_off_anywhere_the_next_run_ends_it(refusing: set[int], killed_by: Exception) -> None:
    whole = World()
    whole.refusing = refusing
    try:
        tried(whole)
    except HomelabError:
        assert refusing
    for calls in range(len(whole.calls)):
        world = World()
        world.refusing, world.killed_after, world.killed_by = refusing, calls, killed_by
        with pytest.raises((KilledError, HomelabError)):
            tried(world)
        if refusing:
            refusal(world)
        else:
            tried(world)
        assert world.versions() == ({OLD} if refusing else {NEW}) and world.left() == {""}, calls


def test_a_container_that_cannot_go_back_holds_up_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.refusing, world.not_going_back = {950}, {901}
    error = refusal(world)
    assert world.host.version == world.containers[950].version == OLD and world.containers[901].version == NEW
    assert "containers.ai could not be put back: packages; found: disk full; make room there" in error.next
    world.not_going_back = set()
    refusal(world)
    assert world.versions() == {OLD} and world.left() == {""}


def test_a_host_that_cannot_go_back_yet_says_so_and_the_next_run_goes_on() -> None:
    world = World()
    world.refusing, world.not_going_back = {901}, {0}
    error = refusal(world)
    assert error.found == "no room" and f"{OLD} could not be put back: packages; found: disk full" in error.why
    world.not_going_back = set()
    refusal(world)
    assert world.versions() == {OLD} and world.left() == {""}


def test_a_host_without_a_way_back_stays_with_the_new_version() -> None:
    world = World()
    world.refusing, world.kept_nothing = {950}, True
    assert f"The host stays with {NEW}" in refusal(world).next


@pytest.mark.parametrize("refusing", CTIDS)
def test_without_a_way_back_the_other_containers_follow_the_host(refusing: int) -> None:
    world = World()
    world.refusing, world.kept_nothing = {refusing}, True
    refusal(world)
    assert {ctid for ctid, one in world.containers.items() if one.version == NEW} == set(CTIDS) - {refusing}
    assert world.left() == {""}
    tried(world)


def test_a_container_that_kept_nothing_gets_the_old_version_installed() -> None:
    world = World()
    world.losing, world.refusing = {901}, {950}
    assert f"containers.ai: its libraries are {OLD} again" in refusal(world).next
    assert world.versions() == {OLD} and world.left() == {""}


def test_settings_that_name_the_new_version_keep_no_container_from_going_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be several reasons why they can't be planned with the old one."""
    world = World()
    world.refusing = {950}
    of_a_run = world.ask

    def ask(verb: str, layer: str, wanted: Any, ctid: int) -> dict[str, Any]:
        if world.host.version == OLD and layer == "nvidia_repository":
            one = HomelabError(wanted="the driver", found="another", why="settings", next="change them")
            raise SeveralErrors([one, HomelabError(wanted="CUDA 13", found=OLD, why="too old", next="change it")])
        return of_a_run(verb, layer, wanted, ctid)

    monkeypatch.setattr(world, "ask", ask)
    error = refusal(world)
    assert world.versions() == {OLD} and "could not be put back" not in error.next


def test_several_reasons_of_one_container_are_all_in_the_message() -> None:
    world = World()
    world.several = True
    error = refusal(world)
    assert error.wanted.startswith("libraries in 901; ") and world.versions() == {OLD}


def test_a_container_that_cannot_be_looked_into_takes_nobody_back(capfd: pytest.CaptureFixture[str]) -> None:
    world = World()
    world.without_shell = {901}
    tried(world)
    assert world.host.version == world.containers[950].version == NEW and world.left() == {""}


@pytest.mark.parametrize("phase", ["", "keeping"])
def test_where_no_update_waits_no_container_is_touched(phase: str) -> None:
    world = World()
    world.host = System(NEW, phase)
    tried(world)
    assert world.calls == ["host waiting"]


def test_a_container_that_is_off_or_has_no_libraries_is_skipped(capfd: pytest.CaptureFixture[str]) -> None:
    world = World()
    world.running, world.without_driver = [950], {950}
    world.refusing = set(CTIDS)
    tried(world)
    assert world.host.phase == "" and world.containers[901].version == OLD
    assert not [call for call in world.calls if call.endswith(("driver", "repository"))]
