"""Intel's and AMD's cards for containers: what a container gets of them, and what stands against it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from homelab.container import makers, other_makers
from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from homelab.host import plan
from homelab.settings import Container
from homelab.show.cards import of_outputs
from tests.rows import rows
from tests.unit.hosts import cmdline, conf, desktop, device, settings, told
from tests.unit.test_containers import DRIVER

AMD, INTEL = "0000:0b:00.0", "0000:00:02.0"
IGPU = device(INTEL, "8086:a780", "030000", 3, driver="i915")
GPUS = {
    "radeon": {"match": "1002:164e", "use": "lxc"},
    "uhd": {"match": "8086:a780", "use": "lxc"},
    "big": {"match": "10de:2b85", "use": "lxc"},
}
DRM = {
    AMD: {"card": "card1", "render": "renderD129", "kfd": True},
    INTEL: {"card": "card0", "render": "renderD128", "kfd": False},
}
BOX = conf("lxc", 901, "hostname: box")
GUESTS = {"running": [], "configs": [BOX]}


def host(**changes: Any) -> HostFacts:
    return desktop(*changes.pop("more", [IGPU]), **({"drm": DRM, "guests": GUESTS} | changes))


def container(*gpus: str, **changes: Any) -> Container:
    return Container.model_validate({"host": "pve", "ctid": 901, "gpus": list(gpus)} | changes)


def got(facts: HostFacts, one: Container, **more: Any) -> dict[str, list[str]]:
    want = plan.wanted(facts, settings(GPUS))
    found, errors = other_makers.shared("media", one, facts, want.gpus, **more)
    if errors:
        raise errors[0]
    return {name: card["nodes"] for name, card in found.items()}


@rows(
    ("gpus", "nodes", "wanted"),
    [
        (["uhd"], "render", {"uhd": ["/dev/dri/renderD128"]}),
        (["uhd"], "all", {"uhd": ["/dev/dri/renderD128", "/dev/dri/card0"]}),
        (["radeon"], "render", {"radeon": ["/dev/dri/renderD129", "/dev/kfd"]}),
        (["radeon", "uhd"], "render", {"uhd": ["/dev/dri/renderD128"], "radeon": ["/dev/dri/renderD129", "/dev/kfd"]}),
        (["big"], "all", {}),
    ],
)
def test_a_card_is_its_node_for_computing_unless_more_is_asked_for(
    gpus: list[str], nodes: str, wanted: dict[str, list[str]]
) -> None:
    assert got(host(), container(*gpus, nodes=nodes)) == wanted


def test_the_scripts_are_told_addresses_and_no_numbers() -> None:
    want = plan.wanted(host(), settings(GPUS))
    found, _ = other_makers.shared("media", container("radeon", "uhd"), host(), want.gpus)
    assert makers.words(found) == f"{INTEL}=render {AMD}=render,kfd"


OFF = {address: about for address, about in DRM.items() if address != AMD}
AWAY = device(AMD, "1002:164e", "030000", 20)
ON_VFIO = device(AMD, "1002:164e", "030000", 20, driver="vfio-pci")
NO_DRIVER = [*[one for one in asdict(desktop())["devices"] if one["address"] != AMD], AWAY]


@rows(
    ("changes", "found", "next_"),
    [
        ({"drm": {**OFF, AMD: {"card": "card1"}}}, "is on amdgpu; its nodes: /dev/dri/card1", "another card"),
        ({"drm": OFF, "devices": NO_DRIVER}, "0000:0b:00.0 is on no driver; its nodes: none", "keeps its driver off"),
        (
            {"guests": {"running": [], "configs": [BOX, conf("vm", 103, "name: g\nhostpci0: 0b:00")]}},
            "given to VM 103 (g)",
            "hostpci",
        ),
        ({"drm": OFF, "devices": [*NO_DRIVER[:-1], ON_VFIO]}, "is on vfio-pci", "another card"),
    ],
)  # fmt: skip
def test_what_stands_against_it_is_said_with_what_to_do(changes: dict[str, Any], found: str, next_: str) -> None:
    with pytest.raises(HomelabError) as caught:
        got(host(**changes), container("radeon"))
    assert found in caught.value.found and next_ in caught.value.next


def test_a_virtual_function_is_free_where_a_vm_has_another_one() -> None:
    function = device("0000:00:02.1", "8086:a780", "030000", 4, driver="i915", physfn=INTEL)
    other = device("0000:00:02.2", "8086:a780", "030000", 5, driver="i915", physfn=INTEL)
    drm = {**DRM, "0000:00:02.1": {"render": "renderD130"}}
    guests = {"running": [], "configs": [conf("vm", 103, "name: g\nhostpci0: 00:02.2")]}
    facts = host(more=[IGPU, function, other], drm=drm, guests=guests)
    assert other_makers.unserved("x", facts, "0000:00:02.1") is None
    refused = other_makers.unserved("x", facts, "0000:00:02.2")
    assert refused is not None and "VM 103" in refused.found


def test_the_hosts_screen_is_no_reason_to_refuse_it() -> None:
    assert next(one for one in host().devices if one.address == AMD).boot_vga
    assert got(host(), container("radeon"))


def test_a_card_that_the_next_boot_returns_is_refused_only_afterwards() -> None:
    words = f"quiet homelab.vfio={AMD}=1002:164e"
    facts = host(devices=[*NO_DRIVER[:-1], ON_VFIO], drm=OFF, cmdline=cmdline(words))
    assert got(facts, container("radeon"), after_boot=True) == {"radeon": []}
    with pytest.raises(HomelabError, match="vfio-pci"):
        got(facts, container("radeon"))


def planned(facts: HostFacts, *gpus: str, **changes: Any) -> tuple[str, list[HomelabError]]:
    wanted = {"media": container(*gpus, **changes)}
    return told(facts, settings(GPUS), {}, wanted)


def test_a_container_on_another_node_is_refused_with_its_place() -> None:
    places = {"node": "pve", "name": "home", "places": "far/lxc/901.conf"}
    (error,) = planned(host(cluster=places, guests={"running": []}), "radeon")[1]
    assert error.found == "container 901 is on the node far, not on pve" and "pct migrate 901 pve" in error.next


def test_such_a_card_needs_nothing_of_nvidias() -> None:
    facts = host(nvidia={**DRIVER, "version": "", "trouble": ["no module nvidia", "install it"]})
    text, errors = planned(facts, "radeon", "uhd")
    assert errors == []
    assert "box), off: /dev/dri/renderD129, /dev/kfd of graphics card [1002:164e] at 0000:0b:00" in text
    assert "/dev/dri/renderD128 of" in text and "nvidia" not in text
    assert "no module nvidia" in planned(facts, "radeon", "big")[1][0].found


def test_cards_of_both_makers_in_one_container() -> None:
    facts = host(nvidia=DRIVER, nvidia_minors={"0000:01:00.0": 0})
    text, errors = planned(facts, "big", "radeon")
    assert errors == []
    assert "off: /dev/nvidia0, nvidiactl, nvidia-uvm; /dev/dri/renderD129, /dev/kfd of" in text


@pytest.mark.parametrize("given", [{"gpuAssignment": "none"}, {"gpus": []}])
def test_a_container_without_a_card_takes_no_module_of_nvidias(given: dict[str, Any]) -> None:
    without = Container.model_validate({"host": "pve", "ctid": 901, **given})
    assert not makers.any_nvidia([without], {})
    assert makers.any_nvidia([without, without.model_copy(update={"gpu_assignment": "all", "gpus": None})], {})


@rows(
    ("gpus", "nvidia"), [(["radeon"], False), (["big"], True), (["big", "radeon"], True), (["somewhere"], True), ([], True)]
)  # fmt: skip
def test_whether_a_program_has_a_part_for_nvidia_follows_from_the_settings(gpus: list[str], nvidia: bool) -> None:
    known = settings(GPUS | {"somewhere": {"address": "0000:0b:00", "use": "lxc"}}).gpus
    assert makers.may_have_nvidia(container(*gpus), known) == nvidia


def test_who_names_a_card_by_its_address_gets_what_is_there() -> None:
    gpus = {"somewhere": {"address": "0000:0b:00", "use": "lxc"}}
    want = plan.wanted(host(), settings(gpus))
    assert makers.other_cards(container("somewhere"), want.gpus)
    assert not makers.any_nvidia([container("somewhere")], want.gpus)


@pytest.mark.parametrize(
    "line", ["dev0: /dev/dri/renderD129,gid=104", "lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir"]
)
def test_a_container_that_has_the_cards_node_is_known(line: str) -> None:
    facts = host(guests={"running": [], "configs": [conf("lxc", 901, f"hostname: box\n{line}")]})
    assert [one.id for one in facts.containers_with("0000:0b:00")] == [901]


def test_the_picture_of_a_stacks_outputs_has_it_by_its_name() -> None:
    function = {"address": AMD, "id": "1002:164e", "driver": "amdgpu"}
    other = {"address": INTEL, "id": "8086:a780", "driver": "i915"}
    outputs = {
        "hosts": {"pve": {"gpus": {
            "radeon": {"name": "", "slot": "0000:0b:00", "use": "lxc", "functions": [function]},
            "uhd": {"name": "", "slot": "0000:00:02", "use": "lxc", "functions": [other]},
        }}},
        "containers": {"media": {"host": "pve", "ctid": 901, "name": "box", "gpus": [], "cards": {"radeon": []}}},
    }  # fmt: skip
    shown = {card.place: [guest.id for guest in card.guests] for card in of_outputs(outputs, "pve")}
    assert shown == {"0000:0b:00": [901], "0000:00:02": []}


def test_a_service_that_is_gone_is_drift() -> None:
    file = {"layer": "cards", "path": "/usr/local/sbin/homelab-card-nodes", "state": "missing"}
    want = plan.wanted(host(), settings(GPUS))
    assert plan.drift(host(), want)["cards"] == []
    assert plan.drift(host(managed=[file]), want)["cards"] == [
        "/usr/local/sbin/homelab-card-nodes is gone",
        "homelab-card-nodes.service is not enabled",
    ]
