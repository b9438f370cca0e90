"""The end of a node's turn to restart, as whoever verifies its boot tells it to the cluster."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from homelab.errors import HomelabError
from homelab.host import plan
from homelab.host import work as boot_verification
from homelab.remote import boots, ssh
from homelab.resources import limits
from homelab.settings import Host, parse
from remote_scripts.both import cluster_turn, reboot, start_guests
from tests.unit.hosts import KEY, desktop
from tests.unit.test_handover import host


@pytest.mark.parametrize("restarts_again", [False, True], ids=["it is back", "it is about to restart"])
def test_a_node_that_rolled_back_ends_its_turn_once_it_is_back(
    monkeypatch: pytest.MonkeyPatch, restarts_again: bool
) -> None:
    ended = []

    back = SimpleNamespace(rolled_back="boot x was not confirmed", rolling_back=restarts_again)
    monkeypatch.setattr(boots, "confirm", lambda *_: back)

    def start(_: Host, name: str, own: start_guests.Wanted) -> None:
        assert own == start_guests.Wanted(), "this run starts nothing any more"
        ended.append(f"guests of {name}")

    monkeypatch.setattr(boot_verification, "_end_turn", lambda _, name: ended.append(name))
    monkeypatch.setattr(boot_verification, "_start_guests", start)
    want = cast("plan.Wanted", SimpleNamespace(gpus={}))
    answer = reboot.Answer("yes", "x", turn=True, armed="")
    with pytest.raises(HomelabError, match="returned by itself"):
        boot_verification._verify(cast("Host", None), "pve1", answer, want, start_guests.Wanted(later=(103,)))
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
            return {"started": started, "off": ["VM 7 (c) stays off"]}

    told: list[str] = []
    monkeypatch.setattr(ssh, "Session", lambda *_: Session())
    monkeypatch.setattr(boot_verification, "tell", told.append)
    own = start_guests.Wanted(later=(103,), unwanted=(200, 201))
    boot_verification._start_guests(cast("Host", None), "pve1", own)
    assert told == (
        [
            "pve1: started again what ran before the reboot: VM 105 (a), container 901 (b)",
            "pve1: note: VM 7 (c) stays off",
        ]
        if answers
        else ["pve1: note: it doesn't answer; the host itself starts the guests that ran before the reboot"]
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [({"over": True}, []), ({"over": False}, []), (None, ["pve1: note: it doesn't answer"])],
)
def test_a_cluster_that_cant_be_told_of_the_end_of_a_turn_is_a_note(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | None, said: list[str]
) -> None:
    class Session:
        def ask(self, verb: str, layer: str, _: object, seconds: float) -> dict[str, Any]:
            assert (verb, layer) == ("apply", "cluster_turn") and seconds > cluster_turn.CLUSTER_SECONDS
            if answer is None:
                raise HomelabError(wanted="x", found="it doesn't answer", why="y", next="z")
            return answer

    told: list[str] = []
    monkeypatch.setattr(ssh, "Session", lambda _: Session())
    monkeypatch.setattr(boot_verification, "tell", told.append)
    boot_verification._end_turn(host(), "pve1")
    left = (
        "pve1: note: it couldn't tell its cluster that it is back: no other node restarts until the time of its turn "
        "has passed, or until `rm /etc/pve/homelab/turn`"
    )
    assert told == said + [left] * (answer != {"over": True})


def test_an_up_waits_for_a_restart_as_long_as_its_script_does() -> None:
    """It waits until the cluster can do without the node, for the turn, and to give that back."""
    hosts = parse({"hosts": hosts_of(timeouts={"step": 60})}).hosts
    assert limits.of_reboot(hosts["pve1"]) >= 60 + 3 * reboot.TURN_SECONDS


def hosts_of(**first: Any) -> str:
    found = {"pve1": {"cluster": "home", **first}, "pve2": {"cluster": "home"}, "alone": {}}
    ssh = {"hostKey": KEY, "agent": True}
    return json.dumps(
        {name: {"address": f"192.0.2.{at}", "ssh": ssh, **one} for at, (name, one) in enumerate(found.items())}
    )


def test_a_plan_says_after_which_node_one_restarts() -> None:
    settings = parse({"hosts": hosts_of()})
    assert [host.before for host in settings.hosts.values()] == ["", "pve1", ""]
    want, facts = plan.wanted(desktop(), settings.hosts["alone"]), desktop()
    for decision, said in (("yes", "after pve1, if that one is"), ("no", "not needed")):
        needed = plan.PlannedReboot(cast("Any", decision), "1", (reboot.Reason("a"),))
        text = plan.describe("pve2", facts, settings.hosts["alone"], want, needed, follows="pve1")
        assert said in text.splitlines()[-1] and ("after pve1" in text) == (decision == "yes")
        assert "; after" not in plan.describe("pve2", facts, settings.hosts["alone"], want, needed)
