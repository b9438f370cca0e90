"""The end of a node's turn to restart, as whoever verifies its boot tells it to the cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from homelab.doctor import host as host_doctor
from homelab.errors import HomelabError
from homelab.host import plan
from homelab.provider import boot_verification
from homelab.remote import ssh
from homelab.resources import limits
from homelab.settings import Host, parse
from remote_scripts.layers import cluster_turn, reboot, start_guests
from tests.unit.hosts import KEY, desktop
from tests.unit.test_doctor import reading
from tests.unit.test_handover import facts, host


@pytest.mark.parametrize("restarts_again", [False, True], ids=["it is back", "it is about to restart"])
def test_a_node_that_rolled_back_ends_its_turn_once_it_is_back(
    monkeypatch: pytest.MonkeyPatch, restarts_again: bool
) -> None:
    ended = []

    def confirm(*_: Any) -> SimpleNamespace:
        return SimpleNamespace(rolled_back="boot x was not confirmed", rolling_back=restarts_again)

    def end(_: Host, name: str) -> None:
        ended.append(name)

    monkeypatch.setattr(ssh, "confirm", confirm)

    def start(_: Host, name: str, own: boot_verification.ManagedGuests) -> None:
        assert own == boot_verification.ManagedGuests(), "this run starts nothing any more"
        ended.append(f"guests of {name}")

    monkeypatch.setattr(boot_verification, "_end_turn", end)
    monkeypatch.setattr(boot_verification, "_start_guests", start)
    want = cast("plan.Wanted", SimpleNamespace(gpus={}))
    answer = {"reboot": "yes", "boot_id": "x", "turn": True}
    with pytest.raises(HomelabError, match="returned by itself"):
        boot_verification._verify(cast("Host", None), "pve1", answer, want, boot_verification.ManagedGuests([103]))
    assert ended == ([] if restarts_again else ["pve1", "guests of pve1"])


@pytest.mark.parametrize("answers", [True, False])
def test_what_was_started_again_is_told_and_who_stays_off(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    class Session:
        def ask(
            self, verb: str, layer: str, wanted: Any, seconds: float, _: object, *, goes_on: bool
        ) -> dict[str, Any]:
            assert goes_on, "a start that is cut off may leave its guest off for good"
            assert (verb, layer, wanted) == (
                "apply",
                "start_guests",
                start_guests.Wanted(later=(103,), unwanted=(200, 201)),
            )
            if not answers:
                raise HomelabError(wanted="x", found="it doesn't answer", why="y", next="z")
            started = ["VM 105 (a)", "container 901 (b)"]
            return {"started": started, "off": ["VM 7 (c) stays off"], "later": ["VM 103 (d)"]}

    told: list[str] = []
    monkeypatch.setattr(ssh, "Session", lambda *_: Session())
    monkeypatch.setattr(boot_verification, "tell", told.append)
    own = boot_verification.ManagedGuests([103], [200, 201])
    boot_verification._start_guests(cast("Host", None), "pve1", own)
    assert told == (
        [
            "pve1: started again what ran before the reboot: VM 105 (a), container 901 (b)",
            "pve1: note: VM 7 (c) stays off",
        ]
        if answers
        else ["pve1: note: it doesn't answer; the host itself starts the guests that ran before the reboot"]
    )


def test_who_waits_for_guests_that_ha_brings_back_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answers:
        def ask(self, verb: str, layer: str, _: object, seconds: float, heard: Callable[[str], None]) -> dict[str, Any]:
            assert (verb, layer) == ("apply", "cluster_turn") and seconds > cluster_turn.RETURN_SECONDS
            heard("waiting for HA, which brings vm:200 back: 5 s")
            heard("note: HA hasn't brought VM 200 back yet")
            return {"over": True, "set": ""}

    told: list[tuple[str, str]] = []
    monkeypatch.setattr(ssh, "Session", lambda _: Answers())
    for name in ("tell", "tell_meanwhile"):
        monkeypatch.setattr(boot_verification, name, lambda text, name=name: told.append((name, text)))
    boot_verification._end_turn(host(), "pve1")
    assert told == [
        ("tell_meanwhile", "pve1: waiting for HA, which brings vm:200 back: 5 s"),
        ("tell", "pve1: note: HA hasn't brought VM 200 back yet"),
    ]


def test_a_node_that_doesnt_come_back_has_its_disks_replaced_by_the_first_other_node_that_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str]] = []

    def lift(host: Any, node: str) -> str:
        asked.append((host, node))
        if host == "off":
            raise HomelabError(wanted="", found="it is off", why="", next="")
        return "no" if host == "without Ceph" else "yes"

    class ThreeNodes:
        def peers(self, _: str) -> list[str]:
            return ["off", "without Ceph", "on", "third"]

        def host(self, name: str) -> str:
            return name

    monkeypatch.setattr(boot_verification, "_lift", lift)
    work = boot_verification.BootVerificationWork.__new__(boot_verification.BootVerificationWork)
    monkeypatch.setattr(work, "stack", ThreeNodes(), raising=False)
    work._give_up("first", "pve1")
    assert asked == [("off", "pve1"), ("without Ceph", "pve1"), ("on", "pve1")]


def test_an_up_waits_for_a_restart_as_long_as_its_script_does() -> None:
    hosts = parse({"hosts": hosts_of(guestsAtReboot="maintenance", timeouts={"step": 60})}).hosts
    assert limits.of_reboot(hosts["pve1"]) >= 60 + reboot.MOVE_SECONDS + 4 * reboot.TURN_SECONDS
    assert limits.of_reboot(hosts["pve2"]) < limits.of_reboot(hosts["pve1"]) + 3600 - reboot.MOVE_SECONDS


def hosts_of(**first: Any) -> str:
    found = {"pve1": {"cluster": "home", **first}, "pve2": {"cluster": "home"}, "alone": {}}
    ssh = {"hostKey": KEY, "agent": True}
    return json.dumps(
        {name: {"address": f"192.0.2.{at}", "ssh": ssh, **one} for at, (name, one) in enumerate(found.items())}
    )


def test_maintenance_is_for_a_node_of_a_cluster() -> None:
    found = parse({"hosts": hosts_of(guestsAtReboot="maintenance")}).hosts
    assert [one.guests_at_reboot for one in found.values()] == ["maintenance", "shutdown", "shutdown"]
    with pytest.raises(HomelabError, match="is for a node of a Proxmox VE cluster"):
        parse({"hosts": hosts_of(cluster=None, guestsAtReboot="maintenance")})


def test_a_plan_says_after_which_node_one_restarts() -> None:
    settings = parse({"hosts": hosts_of()})
    assert [settings.restarts_before(name) for name in settings.hosts] == ["", "pve1", ""]
    want, facts = plan.wanted(desktop(), settings.hosts["alone"]), desktop()
    for decision, said in (("yes", "after pve1, if that one is"), ("no", "not needed")):
        reboot = plan.PlannedReboot(cast("Any", decision), "1", ["a"], [], "")
        text = plan.describe("pve2", facts, settings.hosts["alone"], want, reboot, follows="pve1")
        assert said in text.splitlines()[-1] and ("after pve1" in text) == (decision == "yes")


def test_the_doctor_says_what_a_restart_has_set_and_nobody_has_put_back() -> None:
    away = "noout 0 3\nservices vm:200\nmaintenance pve1"
    notes = host_doctor.diagnose(reading(facts=facts(set_aside=away)), host()).notes
    said = [note.split(": ")[1].split(". ")[0] for note in notes if note.startswith("set for a restart of this node")]
    assert said == [
        "Ceph doesn't replace its disks 0 3 (noout)",
        "HA's maintenance mode is on",
    ]
    assert not [
        note for note in host_doctor.diagnose(reading(facts=facts()), host()).notes if "set for a restart" in note
    ]
