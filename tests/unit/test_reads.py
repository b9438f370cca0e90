"""homelab/resources/work/base.py: what a refresh says of a host that doesn't answer: one error for all its resources, in a read's words."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from homelab.cards.work import CardMappingWork
from homelab.errors import HomelabError, NotThereError, UnreachableError
from homelab.guest.work import GuestWork
from homelab.host.resource import HostProbe
from homelab.host.work import HostProbeWork
from homelab.remote import host_session, ssh
from homelab.remote.host_session import HostSession
from homelab.remote.proxmox.connection import unanswered
from homelab.resources.work import api
from homelab.resources.work.base import Work, read_as
from homelab.settings import Host
from homelab.vm.work import VmCardsWork
from tests.unit.hosts import NO_PLAN, VM_CARDS, cmdline, desktop, values

HOST = values({"card": {"match": "10de:2b85"}})
TEXTS = {"hosts": json.dumps({"pve": HOST})}
VM = VM_CARDS | {"guest_name": "Sandbox", "state": "running"}
PROBE = {"host": "pve", "settings": "", **NO_PLAN, "generation": {}}
# Work, and the state of its resource.
STATES: list[tuple[type[Work[Any, Any]], dict[str, Any]]] = [
    (HostProbeWork, PROBE),
    (CardMappingWork, {"host": "pve", "node": "pve", "gpu": "card", "mapping": "m", "entry": {"path": "0000:01:00"}, "before": "", "drift": []}),
    (VmCardsWork, VM),
]  # fmt: skip


class _Silent:
    """An API that gives no answer."""

    def __init__(self, host: Host, *_: Any, **__: Any) -> None:
        self._host = host

    def get(self, *_: str) -> Any:
        raise unanswered(self._host, "nobody listens", sent=False)


def refreshed(monkeypatch: pytest.MonkeyPatch, *, off: bool) -> tuple[list[HomelabError], int, list[tuple[bool, str]]]:
    """All resources, refreshed: the errors, how often the host was asked, and of each other one whether it stays as it was."""
    asked = 0

    def read(*_: Any, **__: Any) -> Any:
        nonlocal asked
        asked += 1
        if off:
            raise UnreachableError(wanted="an SSH connection", found="Connect call failed", why="w", next="n")
        return desktop()

    def ask(*_: Any, **__: Any) -> Any:
        read()
        raise HomelabError(wanted="w", found="127.0.0.1:85: Connection refused", why="w", next="n")

    monkeypatch.setattr(ssh, "read", read)
    monkeypatch.setattr(ssh.Session, "ask", ask)
    monkeypatch.setattr(api, "Api", _Silent)
    errors, others = [], []
    for work, state in STATES:
        try:
            others.append((work(TEXTS).refreshed(state) == state, work.__name__))
        except HomelabError as error:
            errors.append(error)
    return errors, asked, others


def test_a_host_that_is_off_is_one_error_and_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, asked, others = refreshed(monkeypatch, off=True)
    assert [error.found for error in errors] == ["Connect call failed"] and asked == 1
    assert others == [(True, "CardMappingWork"), (True, "VmCardsWork")]


def test_a_destroy_of_a_host_that_is_off_says_what_goes_on_and_how_it_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*_: Any, **__: Any) -> Any:
        raise UnreachableError(wanted="an SSH connection", found="Connect call failed", why="w", next="n")

    monkeypatch.setattr(ssh.Session, "ask", read)
    host_session.of("pve").is_out_of_reach = True
    with pytest.raises(UnreachableError) as raised:
        VmCardsWork(TEXTS).deleted(VM)
    assert raised.value.found == "Connect call failed" and "nothing was changed" in raised.value.why
    for advice in ("--continue-on-error", "--target-dependents 'URN of pve-probe'", "out of homelab:hosts"):
        assert advice in raised.value.next


@pytest.mark.parametrize("found_by_another", [False, True])
def test_a_destroy_that_loses_its_host_in_the_middle_does_not_say_that_nothing_was_changed(
    monkeypatch: pytest.MonkeyPatch, found_by_another: bool
) -> None:
    """Another resource may have found by then that the host is out of reach."""
    monkeypatch.setattr(HostSession, "hold", lambda *_: None)

    def read(*_: Any, **__: Any) -> Any:
        host_session.of("pve").is_out_of_reach = found_by_another
        raise UnreachableError(wanted="an SSH connection", found="Connection lost", why="w", next="again")

    monkeypatch.setattr(ssh.Session, "ask", read)
    with pytest.raises(UnreachableError) as raised:
        VmCardsWork(TEXTS).deleted(VM)
    assert (raised.value.why, raised.value.next) == ("w", "again")


CREATED = {"host": "pve", "node": "pve", "guest": "ai", "guest_kind": "lxc", "vmid": 300, "config": {"cores": "2"}}
CREATED |= {
    "protect": False,
    "mark": "made by x",
    "shutdown": VM["shutdown"],
    "instance": "i",
    "written": {"cores": "2"},
}


@pytest.mark.parametrize(
    ("answer", "drift"),
    [
        (None, None),
        ({"cores": 2, "description": "made by x"}, []),
        ({"cores": 4, "description": "made by x"}, ["cores"]),
    ],
)
def test_what_somebody_has_removed_is_made_again_and_what_he_has_changed_is_drift(
    monkeypatch: pytest.MonkeyPatch, answer: Any, drift: Any
) -> None:
    def reading(*_: object) -> Any:
        if answer is None:
            raise NotThereError(wanted="w", found="f", why="w", next="n", status=500, reason="does not exist")
        return answer

    monkeypatch.setattr(api.ApiWork, "api", lambda *_: SimpleNamespace(get=reading))
    after = GuestWork(TEXTS).refreshed(CREATED)
    assert (after if after is None else after["drift"]) == drift


def test_an_api_that_is_off_is_named_with_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, _, others = refreshed(monkeypatch, off=False)
    of_api, of_agent = errors
    assert "pvedaemon" in of_api.next and "nothing was asked" in of_api.why
    assert of_agent.found == "127.0.0.1:85: Connection refused" and len(others) == 1


def test_a_host_that_may_have_another_name_by_now_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("homelab.host.work.tell", said.append)
    inputs, outputs = HostProbe.Inputs(host="pve", settings=""), read_as(HostProbe.Outputs, PROBE)
    HostProbeWork({"hosts": json.dumps({"server": HOST})}).delete(inputs, outputs)
    assert "pve: if server is this host under another name" in said[-1] and "`pulumi up --refresh`" in said[-1]
    said.clear()
    for hosts in ("{}", "null", "no JSON"):
        HostProbeWork({"hosts": hosts}).delete(inputs, outputs)
    assert not any("another name" in one for one in said)


@pytest.mark.parametrize(
    ("away", "lost"), [("gpus.card is with VM 103", True), ("gpus.card is with VM 103", False), ("", True)]
)
def test_what_drifts_while_a_card_is_away_is_planned_anew_and_so_refused_in_a_preview(
    monkeypatch: pytest.MonkeyPatch, away: str, lost: bool
) -> None:
    managed = [{"layer": "handover", "path": "/usr/local/sbin/homelab-handover", "state": "missing" if lost else "ok"}]
    found = desktop(managed=managed, handover={"enabled": True, "away": away}, boot_lacks=[])
    monkeypatch.setattr(ssh, "read", lambda *_, **__: found)
    refreshed = HostProbeWork(TEXTS).refreshed(PROBE)
    assert refreshed and refreshed["stale"] is lost and refreshed["generation"]["handover"] == lost


def test_what_drifts_elsewhere_while_a_card_is_away_is_refused_in_a_preview_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = desktop(
        handover={"enabled": True, "away": "gpus.card is with VM 103"}
    )  # no note of what the boot should have
    monkeypatch.setattr(ssh, "read", lambda *_, **__: found)
    refreshed = HostProbeWork(TEXTS).refreshed(PROBE)
    assert refreshed and refreshed["generation"]["iommu"] == 1 and refreshed["stale"] is True


@pytest.mark.parametrize("bound", [True, False])
def test_only_what_runs_with_words_that_the_next_boot_has_not_is_said_to_keep_them(
    monkeypatch: pytest.MonkeyPatch, bound: bool
) -> None:
    """A trial that failed leads back to the stock kernel command line."""

    def unanswered(*_: object) -> None:
        raise HomelabError(wanted="w", found="f", why="w", next="n")

    said: list[str] = []
    word = "homelab.vfio=0000:01:00.0=10de:2b85"
    monkeypatch.setattr("homelab.host.work.tell", said.append)
    running = desktop(cmdline=cmdline(f"quiet {word * bound}", "quiet", generated="quiet"))
    monkeypatch.setattr(ssh, "read", lambda *_: running)
    monkeypatch.setattr("homelab.storage.work.StorageFileWork.remove_unfinished", unanswered)
    outputs = read_as(HostProbe.Outputs, PROBE | {"vfio_words": word})
    HostProbeWork(TEXTS).delete(HostProbe.Inputs(host="pve", settings=""), outputs)
    assert any("the running kernel keeps" in one for one in said) is bound


def test_a_mapping_stays_for_live_migration_while_a_card_of_another_node_is_to_migrate() -> None:
    def host(number: int, **card: Any) -> dict[str, Any]:
        return values({"card": {"match": "10de:2b85", **card}}, address=f"192.0.2.{number}", cluster="home")

    migrating = {"mapping": "gpu", "liveMigration": True}
    hosts = {
        "pve": host(1, **migrating),
        "two": {**host(2, **migrating), "node": "pve2"},
        "three": host(3, **migrating),
        "four": host(4, mapping="gpu"),
        "five": host(5, mapping="another", liveMigration=True),
        "six": {**host(6, **migrating), "cluster": "elsewhere"},
    }
    work = CardMappingWork({"hosts": json.dumps(hosts)})
    assert work._needing_flag(work._inputs({**STATES[1][1], "mapping": "gpu"})) == {"pve2", "three"}
