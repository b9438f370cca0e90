"""What the verification of a boot says: a boot that was given back, and one that lacks what was wanted, are errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from homelab.host import plan
from homelab.host import work as boot_verification
from homelab.remote import boots, ssh
from homelab.remote.host_session import HostSession
from remote_scripts.both import start_guests
from remote_scripts.both.reboot import Answer
from tests.unit.hosts import desktop, settings

REBOOT = Answer("no", "1", turn=False, armed="1.0")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(HostSession, "hold", lambda session, host: said.append(session.name))
    return said


def verified(monkeypatch: pytest.MonkeyPatch, seen: HostFacts, wanted: HostFacts) -> HostFacts:
    """Verify what is seen after a boot against the plan that was made of `wanted`."""

    monkeypatch.setattr(boots, "confirm", lambda *_: seen)
    host = settings()
    return boot_verification._verify(host, "pve", REBOOT, plan.wanted(wanted, host), start_guests.Wanted())


@pytest.mark.usefixtures("held")
def test_a_boot_that_lacks_what_was_wanted_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HomelabError) as error:
        verified(monkeypatch, desktop(), desktop())
    assert "homelab.vfio=" in error.value.wanted


def test_a_boot_that_was_given_back_is_no_success(monkeypatch: pytest.MonkeyPatch, held: list[str]) -> None:
    """Though nothing that was wanted is lacking: the host says itself that it went back."""
    back = desktop(rolled_back="no address by 21:40")
    nothing = plan.Wanted("", "", {}, [], {})
    monkeypatch.setattr(plan, "wanted", lambda *_: nothing)
    with pytest.raises(HomelabError, match="it has returned by itself to what it was: no address by 21:40") as refused:
        verified(monkeypatch, back, back)
    assert "of an earlier boot, if the one on trial left no journal" in refused.value.next
    assert held == [], "what follows changes nothing on it"
    assert verified(monkeypatch, desktop(), desktop()).boot_id == "1"


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize(
    ("reboot", "old", "starts"), [("yes", "1", ["pve"]), ("no", None, []), ("manual", None, [])], ids=str
)
def test_a_reboot_is_confirmed_by_another_boot_alone_and_what_ran_is_started(
    monkeypatch: pytest.MonkeyPatch, reboot: Literal["yes", "no", "manual"], old: str | None, starts: list[str]
) -> None:
    awaited, started = list[str | None](), list[str]()
    back = desktop(boot_id="2")

    def confirm(_host: object, old_boot_id: str | None, *_: object) -> HostFacts:
        awaited.append(old_boot_id)
        return back

    monkeypatch.setattr(boots, "confirm", confirm)
    monkeypatch.setattr(ssh, "read", lambda _host: back)
    monkeypatch.setattr(boot_verification, "_start_guests", lambda _host, name, _managed: started.append(name))

    def verify(before: str) -> HostFacts:
        answer = replace(REBOOT, reboot=reboot, boot_id=before)
        nothing = plan.Wanted("", "", {}, [], {})
        managed = start_guests.Wanted()
        return boot_verification._verify(settings(), "pve", answer, nothing, managed)

    assert verify("1") is back and (awaited, started) == ([old], starts)
    if reboot == "manual":
        with pytest.raises(HomelabError, match="it has not been since(?s:.*)the next boot is a trial"):
            verify("2")
