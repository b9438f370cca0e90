"""Docker and its like in a container (homelab/container/engines.py): refused where the host's AppArmor lets them start nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from homelab.container import plan as container_plan
from homelab.errors import HomelabError
from homelab.host.facts import HostFacts
from homelab.settings import Container
from tests.unit.test_containers import container, shared, want

NESTING = "hostname: ai-lab\nfeatures: keyctl=1,nesting=1\nunprivileged: 1"
BARE = "hostname: ai-lab\nunprivileged: 1"


def facts(lxc: str, conf: str = NESTING, pve: str = "9.1.1") -> HostFacts:
    """A host with container 901 and this version of lxc-pve, empty: it can't be told."""
    found = shared(pve=pve, packages={"lxc-pve": lxc} if lxc else {})
    configs = [replace(one, lines=conf) if one.id == 901 else one for one in found.guests.configs]
    return replace(found, guests=replace(found.guests, configs=configs))


def asked(runtime: str | None = "docker", **changes: Any) -> Container:
    return container(nvidia={"containerToolkit": runtime} if runtime else {}, **changes)


def refusals(where: HostFacts, one: Container) -> list[HomelabError]:
    wanted = want(where)
    found = container_plan.cards(where, wanted, {}, "pve")
    return container_plan.check("ai", one, where, found, wanted)[1]


@pytest.mark.parametrize("runtime", ["docker", "containerd", "k3s"])
def test_an_engine_that_the_host_lets_start_nothing_is_refused(runtime: str) -> None:
    (error,) = refusals(facts("6.0.4-2"), asked(runtime))
    assert (
        error.wanted.startswith(f"containers.ai: {runtime} inside it") and error.found == "lxc-pve 6.0.4-2 on the host"
    )
    assert "ip_unprivileged_port_start" in error.why and "lxc-pve 6.0.5-2 or later" in error.next
    assert "containers.ai.allowOlderLxc: true" in error.next


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (facts("6.0.5-1"), "lxc-pve 6.0.5-1 on the host"),
        (facts("6.0.5-2"), None),
        (facts("6.0.5-3"), None),
        (facts("7.0.0-1"), None),
        (facts("6.0.5-3", f"{BARE}\nfeatures: nesting=On"), None),
        (facts("6.0.5-3", BARE), "container 901 without the feature nesting"),
        (facts("6.0.4-2", BARE), "lxc-pve 6.0.4-2 on the host; container 901 without the feature nesting"),
        (facts("6.0.5-3", "hostname: a\nfeatures: nesting=0"), "container 901 without the feature nesting"),
        (facts("6.0.5-3", f"{BARE}\n[before]\nfeatures: nesting=1"), "container 901 without the feature nesting"),
        (facts(""), "an unknown version of lxc-pve on the host"),
        (facts("6.0.0-1", pve="8.4.14"), "lxc-pve 6.0.0-1 on the host"),
        (facts("6.0.0-2", pve="8.4.16"), None),
        # Somebody has taken AppArmor away from it, or written a profile; a snapshot's counts for nothing.
        (facts("6.0.4-2", f"{NESTING}\nlxc.apparmor.profile: unconfined"), None),
        (
            facts("6.0.5-3", f"{NESTING}\nlxc.apparmor.profile: lxc-container-default-cgns"),
            "container 901 with LXC's profile lxc-container-default-cgns",
        ),
        (facts("6.0.4-2", f"{NESTING}\nlxc.apparmor.profile = generated"), "lxc-pve 6.0.4-2 on the host"),
        (facts("6.0.4-2", f"{NESTING}\n[s]\nlxc.apparmor.profile: unconfined"), "lxc-pve 6.0.4-2 on the host"),
    ],
)
def test_what_of_lxc_pve_and_of_the_container_decides_it(where: HostFacts, found: str | None) -> None:
    assert [error.found for error in refusals(where, asked())] == ([found] if found else [])


def test_the_command_that_adds_nesting_keeps_the_other_features() -> None:
    (error,) = refusals(facts("6.0.5-3", "hostname: a\nfeatures: mount=nfs;cifs,keyctl=1"), asked())
    assert "`pct set 901 --features 'mount=nfs;cifs,keyctl=1,nesting=1'`" in error.next


@pytest.mark.parametrize("one", [asked(None), asked("podman"), asked(allowOlderLxc=True)])
def test_nothing_is_asked_of_a_container_without_such_an_engine(one: Container) -> None:
    assert refusals(facts("6.0.4-2", BARE), one) == []


@pytest.mark.parametrize(("nesting", "refused"), [(True, False), (False, True)])
def test_a_container_that_is_created_has_the_features_of_its_settings(nesting: bool, refused: bool) -> None:
    create = {
        "template": "local:vztmpl/a.tar.zst",
        "disk": {"storage": "local-lvm", "size": 8},
        "features": {"nesting": nesting},
    }
    errors = refusals(facts("6.0.5-3"), asked(ctid=950, create=create))
    assert [error.next.startswith("set containers.ai.create.features.nesting") for error in errors] == [True] * refused
