"""The containers that follow their host's driver: asked before it is replaced, and none of them is changed by that."""

from __future__ import annotations

from typing import Any, cast

import pytest

from homelab.errors import HomelabError, SeveralErrors, UnreachableError, raise_all
from homelab.nvidia.reading import parse
from homelab.nvidia.request import Request
from homelab.nvidia.state import facts_of, request_of
from homelab.remote import followers, ssh
from homelab.settings import Container, Nvidia

OLD, NEW = "590.48.01", "595.58.03"
BOTH = (OLD, NEW)


class World:
    """A host with the old driver and its containers. `offers`: id, 0 for the host -> the driver's versions in its lists."""

    def __init__(self, **offers: tuple[str, ...]) -> None:
        self.offers = {0: BOTH, 901: BOTH, 950: BOTH} | {int(name[1:]): found for name, found in offers.items()}
        self.there, self.without_driver, self.with_modules = OLD, set[int](), set[int]()
        self.unread: dict[int, HomelabError] = {}
        self.calls: list[str] = []

    def ask(
        self, verb: str, layer: str, wanted: Any, _seconds: float = 0, *, ctid: int = 0, proxy: str = ""
    ) -> dict[str, Any]:
        self.calls.append(f"{verb} {layer} {ctid}")
        if layer == "read_system":
            if ctid in self.unread:
                raise self.unread[ctid]
            return self.reading(ctid)
        if layer == "nvidia_driver":
            if ctid in self.with_modules and not wanted.run.sha256:
                raise HomelabError(wanted="its SHA-256", found="none", why="it runs as root", next="-")
            return {"source": "packages"}
        versions = [f"{version}-1" for version in sorted(self.offers[ctid], reverse=True)]
        return {"offered": {name: versions for name in wanted.ask}}

    def reading(self, ctid: int) -> dict[str, Any]:
        steps = [] if ctid in self.without_driver else ["repository", "driver"]
        kernel = "6.14.11-4-pve"
        found: dict[str, Any] = {"boot_id": "b", "distribution": "debian", "version": "13", "architecture": "x86_64"}
        found |= {"kernels": [kernel], "running": kernel, "secure_boot": None, "mok_enrolled": None}
        found |= {"cards": ["10de:2b85"], "nouveau": False, "loaded": self.there, "loaded_flavour": None}
        found |= {"host_driver": self.there if ctid else None, "runtimes": [], "room": None, "offered": None}
        return {**found, "steps": steps, "drift": [], "libraries": self.there}


def need(world: World, driver: str = "595", *, is_preview: bool = False, **stack: object) -> None:
    host = Nvidia.model_validate({"driver": driver})
    reading = parse(world.reading(0))
    request: Request = request_of("host", "hosts.pve", facts_of(reading, "host"), host)
    containers = {
        name: Container.model_validate(
            {"host": "pve", "ctid": ctid, "gpuAssignment": "all", **({} if ctid == 960 else {"nvidia": stack})}
        )
        for name, ctid in (("ai", 901), ("media", 950), ("plain", 960))
    }
    readings = {str(ctid): parse(world.reading(ctid)) for ctid in (901, 950)} if is_preview else None
    raise_all(followers.refused(cast(ssh.Session, world), request, reading, containers, readings))


def test_a_version_that_every_container_can_have_is_asked_for_and_nothing_is_changed() -> None:
    world = World()
    need(world)
    assert [call.removeprefix("read nvidia_") for call in world.calls if "nvidia" in call] == [
        "repository 0",
        *("repository 901", "driver 901"),
        *("repository 950", "driver 950"),
    ]
    assert {call.split()[0] for call in world.calls} == {"read"}


@pytest.mark.parametrize("is_preview", [True, False])
def test_one_that_a_container_cannot_have_is_refused_in_its_name(*, is_preview: bool) -> None:
    with pytest.raises(HomelabError) as refused:
        need(World(_950=(OLD,)), is_preview=is_preview, source="packages")
    error = refused.value
    assert "containers.media: packages of 595.58.03" in error.wanted and OLD not in error.found
    assert f"hosts.pve would get {NEW} in place of {OLD}; nothing was changed" in error.why


def test_all_that_cannot_have_it_are_told_at_once() -> None:
    with pytest.raises(SeveralErrors, match="2 problems"):
        need(World(_901=(OLD,), _950=(OLD,)), source="packages")


def test_what_apt_says_of_the_packages_counts_in_a_container() -> None:
    """They would bring modules, and nobody knows the installer's checksum."""
    world = World(_0=(OLD, "595.71.05"), _901=(OLD, "595.71.05"), _950=(OLD, "595.71.05"))
    world.with_modules = {950}
    with pytest.raises(HomelabError, match="its SHA-256") as refused:
        need(world)
    assert "hosts.pve would get 595.71.05" in refused.value.why


def test_without_packages_of_it_nvidias_installer_does_where_its_checksum_is_known() -> None:
    need(World(_950=(OLD,)))


def test_a_branch_means_the_version_that_the_host_would_get() -> None:
    with pytest.raises(HomelabError, match="packages of 595.58.03"):
        need(World(_0=(OLD, NEW), _901=("595.71.05",)), source="packages")


@pytest.mark.parametrize(("there", "driver"), [("", "595"), (OLD, "590"), (OLD, OLD)])
def test_where_no_driver_is_replaced_nobody_is_asked(there: str, driver: str) -> None:
    world = World()
    world.there = there
    need(world, driver)
    assert not world.calls


def test_a_container_that_is_off_or_has_no_libraries_is_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    world = World(_901=(), _950=())
    world.unread = {901: HomelabError(wanted="an answer from it", found="it is off", why="looked into", next="-")}
    world.without_driver = {950}
    need(world, source="packages")
    assert not [call for call in world.calls if call.endswith(("repository 901", "repository 950"))]


def test_a_host_that_does_not_answer_any_more_is_no_container_that_is_off() -> None:
    world = World()
    world.unread = {901: UnreachableError(wanted="a", found="b", why="c", next="d")}
    with pytest.raises(UnreachableError):
        need(world)
