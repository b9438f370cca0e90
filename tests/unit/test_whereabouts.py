"""homelab/cli/whereabouts.py: `log` and `lock` reach a container that names its cluster through the node that it is on now; `doctor` and `show` count it there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from homelab.cli import whereabouts
from homelab.errors import HomelabError, UnreachableError
from homelab.host.facts import GuestConfig, HostFacts
from homelab.remote import ssh
from homelab.settings import Host, Vm
from tests.unit.hosts import KEY, desktop
from tests.unit.test_places import sharing


def with_container(*ids: int) -> HostFacts:
    facts = desktop()
    configs = [GuestConfig(kind="lxc", id=one, lines="hostname: ai\n") for one in ids]
    return replace(facts, guests=replace(facts.guests, configs=configs))


class File:
    """The settings file, as far as hosts go."""

    def __init__(self) -> None:
        self.settings = sharing()

    def host(self, name: str, _identity: str | None) -> tuple[str, Host]:
        return name, self.settings.hosts[name]


def found(monkeypatch: pytest.MonkeyPatch, *, on: str, off: str = "") -> str:
    """The address of the node that it is found on. ``on``, ``off``: where it is, and which doesn't answer."""
    file: Any = File()

    def read(host: Host, **_: Any) -> HostFacts:
        name = f"pve{host.address[-1]}"
        if name == off:
            raise UnreachableError(wanted="an SSH connection", found="off", why="w", next="n")
        return with_container(901) if name == on else with_container(902)

    monkeypatch.setattr(ssh, "read", read)
    return whereabouts.host_of(file, file.settings, file.settings.containers["ai"], None).address


@pytest.mark.parametrize("off", ["", "pve1"])
def test_a_container_is_found_on_its_node_while_another_node_is_off(monkeypatch: pytest.MonkeyPatch, off: str) -> None:
    assert found(monkeypatch, on="pve2", off=off) == "192.0.2.2"


def test_an_unreachable_node_is_the_error_of_a_container_that_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UnreachableError):
        found(monkeypatch, on="pve1", off="pve1")
    with pytest.raises(HomelabError, match="it is on none of those that the settings have"):
        found(monkeypatch, on="")


@pytest.mark.parametrize(
    ("cluster", "named", "counts"),
    [("home", "home", True), ("home", "pve1", False), ("other", "home", False), (None, "home", False)],
)
def test_a_container_of_the_cluster_counts_on_the_node_that_has_it(
    cluster: str | None, named: str, counts: bool
) -> None:
    settings = sharing()
    host = settings.hosts["pve2"].model_copy(update={"cluster": cluster})
    settings.containers["ai"] = settings.containers["ai"].model_copy(update={"host": named})
    for facts, expected in ((with_container(901), counts), (with_container(902), False)):
        assert ("ai" in whereabouts.guests_on(settings, "pve2", host, facts)[1]) is expected


def test_a_vm_is_reached_by_its_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    file: Any = File()
    vm = Vm.model_validate({"host": "pve1", "vmid": 103, "gpus": ["gpu"], "address": "192.0.2.9", "ssh": {"hostKey": KEY, "agent": True}})  # fmt: skip
    file.settings.vms["games"] = vm
    host, ctid = whereabouts.of_guest(file, file.settings, "vms.games", None)
    assert (host.address, host.ssh, ctid) == ("192.0.2.9", vm.ssh, 0)
    for more, reason in (({"address": "agent"}, "its address is agent"), ({"ssh": None}, "its ssh is not")):
        file.settings.vms["games"] = vm.model_copy(update=more)
        with pytest.raises(HomelabError, match=reason):
            whereabouts.of_guest(file, file.settings, "vms.games", None)
    monkeypatch.setattr(whereabouts, "host_of", lambda *_: host)
    assert whereabouts.of_guest(file, file.settings, "containers.ai", None) == (host, 901)
