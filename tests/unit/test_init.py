"""From a reading and answers to settings (`homelab init`): what is decided, without a host."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from typing import Any, cast

import pytest
import yaml

from homelab.errors import HomelabError
from homelab.host.facts import HostFacts
from homelab.init import cards as init_cards
from homelab.init import choices, proposal, stacks, storages
from homelab.init.choices import Choices, Stack, Use
from homelab.init.merge import merged
from homelab.init.present import present
from homelab.init.proposal import existing, propose
from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import SystemFacts
from homelab.remote.proxmox.files import Files
from tests.conftest import PROJECT
from tests.unit import hosts

GUESTS: dict[str, Any] = {
    "running": [103, 901],
    "configs": [
        {"kind": "vm", "id": 103, "lines": "name: Sandbox\nmachine: q35\nmemory: 16384\n"},
        {"kind": "lxc", "id": 901, "lines": "hostname: ai-lab\nunprivileged: 1\n"},
        {"kind": "lxc", "id": 902, "lines": "hostname: old\n"},
    ],
    "mappings": "",
    "reservations": "",
}
CLUSTER = {"node": "pve", "places": "pve/qemu-server/103.conf\nother/lxc/100.conf"}
ACCESS = {"address": "192.168.0.202", "ssh": {"hostKey": hosts.KEY, "privateKeyFile": "~/.ssh/id_ed25519"}}


def host(*more: dict[str, Any], **changes: Any) -> HostFacts:
    return hosts.desktop(*more, **{"guests": GUESTS, "cluster": CLUSTER, **changes})


# -- cards ------------------------------------------------------------------------------------------------------------
def test_cards_have_the_names_that_people_know() -> None:
    found = init_cards.cards(host())
    assert [(card.key, str(card)) for card in found] == [
        ("rtx5090", "RTX 5090 [10de:2b85] at 0000:01:00"),
        ("card", "graphics card [1002:164e] at 0000:0b:00"),
    ]
    assert found[0].settings == {"match": "10de:2b85"}


def test_identical_cards_get_names_and_addresses_of_their_own() -> None:
    found = [card for card in init_cards.cards(host(*hosts.gpu("0000:03:00", 18))) if card.is_nvidia]
    assert [card.key for card in found] == ["rtx5090", "rtx5090-2"]
    assert found[1].settings == {"match": "10de:2b85", "address": "0000:03:00"}


def test_a_virtual_function_is_a_card_of_its_own_for_vms_alone() -> None:
    whole, sound = hosts.gpu("0000:03:00", 18)
    virtual = {**whole, "address": "0000:03:00.4", "physfn": "0000:03:00.0", "group": 19, "driver": ""}
    facts = host({**whole, "vfs": 1}, sound, virtual)
    [_, owner, function, _] = init_cards.cards(facts)
    assert (owner.place, function.place, function.settings) == (
        "0000:03:00",
        "0000:03:00.4",
        {"address": "0000:03:00.4"},
    )
    assert init_cards.possible_uses(facts, owner, hosts.settings()) == {"lxc", "host"}
    assert init_cards.possible_uses(facts, function, hosts.settings()) == {"vm"}
    # Nobody knows which of them all is meant.
    assert choices.suggested(facts, function, "pve") == Use("none")


def test_what_a_person_has_to_accept_is_the_screen_and_nothing_else() -> None:
    [card, screen] = init_cards.cards(host())
    assert init_cards.screen_lost(host(), card, hosts.settings()) is None
    lost = init_cards.screen_lost(host(), screen, hosts.settings())
    assert lost is not None and "boot_vga" in lost.found
    used = host(guests={**GUESTS, "configs": [{"kind": "lxc", "id": 901, "lines": "dev0: /dev/dri/card1\n"}]})
    assert init_cards.screen_lost(used, screen, hosts.settings()) is not None


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("RTX 3060 Lite Hash Rate", "rtx3060-lite-hash-rate"),
        ("A100 80GB PCIe", "a100-80gb-pcie"),
        ("Tesla T4", "tesla-t4"),
        ("UHD Graphics 770", "uhd-graphics-770"),
        ("Matrox Electronics Systems Ltd. G200eR2", "bmc-g200er2"),
        ("Matrox Electronics Systems Ltd. MGA G200e", "bmc-g200e"),
        ("Matrox Electronics Systems Ltd. M9120", "matrox-m9120"),
        ("ASPEED Technology, Inc. ASPEED Graphics Family", "bmc-aspeed"),
        ("", "card"),
        ("3060", "card-3060"),
        ("Größe 1", "gr-e-1"),
        ("x" * 60, "x" * 36),
    ],
)
def test_a_name_for_the_settings_is_one_that_they_take(name: str, key: str) -> None:
    assert init_cards.key_of(name, (), "card") == key
    hosts.settings(gpus={key: {"match": "10de:2b85"}})


def test_a_card_is_shown_with_its_group_its_driver_and_who_uses_it() -> None:
    configs = [{"kind": "lxc", "id": 901, "lines": "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind\n"}]
    facts = host(guests={**GUESTS, "configs": configs}, nvidia_minors={"0000:01:00.0": 0})
    [card, screen] = init_cards.cards(facts)
    assert init_cards.lines(facts, card, "pve") == [
        "0000:01:00.0 graphics card [10de:2b85], driver nouveau",
        "0000:01:00.1 audio device [10de:22e8], driver snd_hda_intel",
        "IOMMU group 16: alone",
        "used by: container 901",
    ]
    [refusal] = init_cards.refused(facts, card, hosts.settings(), "vm")
    assert "containers that use it: 901" in refusal.found
    assert init_cards.refused(facts, card, hosts.settings(), "lxc") == []
    assert "boot_vga" in init_cards.refused(facts, screen, hosts.settings(), "vm")[0].found
    assert init_cards.possible_uses(facts, card, hosts.settings()) == {"lxc", "host"}


def test_nobody_is_asked_about_the_hosts_screen_unless_it_is_used_or_there_is_no_other_card() -> None:
    def left_out(facts: HostFacts, configured: tuple[str, ...] = ()) -> list[str]:
        return [card.place for card in init_cards.not_asked_about(facts, init_cards.cards(facts), "pve", configured)]

    [card, screen] = init_cards.cards(host())
    assert left_out(host()) == [screen.place]
    assert left_out(host(), (screen.place,)) == []
    assert left_out(host(framebuffers={card.place + ".0": ["BOOTFB"]}), (screen.place,)) == [card.place]
    using = [*GUESTS["configs"], {"kind": "vm", "id": 104, "lines": f"name: b\nhostpci0: {screen.place},pcie=1\n"}]
    assert left_out(host(guests={**GUESTS, "configs": using})) == []
    facts = host()
    assert init_cards.not_asked_about(facts, [screen], "pve", ()) == []


# -- choices ----------------------------------------------------------------------------------------------------------
def test_who_has_a_card_is_preselected_else_the_only_guest_that_could() -> None:
    [card, screen] = init_cards.cards(host())
    assert choices.suggested(host(), card, "pve") == Use("vm", (103,))
    assert choices.suggested(host(), screen, "pve") == Use("none")
    drawn_on = host(framebuffers={"0000:01:00.0": ["BOOTFB"]})  # what the firmware doesn't mark
    assert choices.suggested(drawn_on, card, "pve") == Use("none")
    two = [*GUESTS["configs"], {"kind": "vm", "id": 104, "lines": "name: b\nhostpci0: 0000:01:00,pcie=1\n"}]
    assert choices.suggested(host(guests={**GUESTS, "configs": two}), card, "pve") == Use("vm", (104,))
    with_driver = host(nvidia_minors={"0000:01:00.0": 0})
    assert choices.suggested(with_driver, card, "pve") == Use("none")  # two containers: nobody knows which
    named = [{"kind": "lxc", "id": 902, "lines": "dev0: /dev/nvidia0,mode=0666\n"}]
    using = host(nvidia_minors={"0000:01:00.0": 0}, guests={**GUESTS, "configs": named})
    assert choices.suggested(using, card, "pve") == Use("lxc", (902,))


@pytest.mark.parametrize("name", ["rtx5090", "0000:01:00", "01:00", "10de:2b85", "RTX5090"])
def test_a_card_is_named_by_its_name_its_slot_or_its_id(name: str) -> None:
    facts = host()
    card, use = choices.parse_card(f"{name}=vm:103", init_cards.cards(facts), facts)
    assert (card.key, use) == ("rtx5090", Use("vm", (103,)))


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("lxc:901,902", Use("lxc", (901, 902))),
        ("lxc:901,901", Use("lxc", (901,))),
        ("host", Use("host")),
        ("none", Use("none")),
        ("new-vm:110", Use("new-vm", (110,))),
        ("new-vm", Use("new-vm", (101,))),  # another node of the cluster has 100
    ],
)
def test_what_a_card_is_for(text: str, use: Use) -> None:
    assert choices.parse_use(text, host()) == use


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("vm:104", "there are: VM 103 (Sandbox), running"),
        ("vm:901", "container 901 (ai-lab), running"),
        ("lxc:901,103", "VM 103 (Sandbox), running"),
        ("new-vm:103", "VM 103 (Sandbox), running"),
        ("vm:", "vm:"),
        ("", "nothing"),
        ("lxc:901,", "lxc:901,"),
    ],
)
def test_what_a_card_can_not_be_for_is_named(text: str, found: str) -> None:
    with pytest.raises(HomelabError) as error:
        choices.parse_use(text, host())
    assert error.value.found == found


@pytest.mark.parametrize("name", ["rtx4090", "", "10de:22e8"])
def test_a_card_that_is_not_there_is_named_with_those_that_are(name: str) -> None:
    facts = host()
    with pytest.raises(HomelabError, match="rtx5090 \\(RTX 5090"):
        choices.parse_card(f"{name}=host", init_cards.cards(facts), facts)


def test_what_to_write_names_a_card_and_a_guest_that_are_there() -> None:
    """Not the console of a server's board, and no VM of an example."""
    bmc = hosts.device("0000:00:03.0", "102b:0538", "030000", 30, driver="mgag200")
    facts = host(bmc)
    cards = init_cards.cards(facts)
    assert cards[0].id == "102b:0538" and choices.example(cards, facts) == "rtx5090=vm:103"
    nobody = replace(facts, guests=replace(facts.guests, configs=[]))
    with pytest.raises(HomelabError) as error:
        choices.parse_card("big=vm:7", cards, nobody)
    assert error.value.next == "write it as rtx5090=new-vm"


def test_any_setting_can_be_given() -> None:
    assert choices.parse_setting("vms.sandbox.machine=q35", "pve") == {"homelab:vms": {"sandbox": {"machine": "q35"}}}
    assert choices.parse_setting("homelab:hosts.pve.gpus.a.allowConsole=true", "pve") == {
        "homelab:hosts": {"pve": {"gpus": {"a": {"allowConsole": True}}}}
    }
    assert choices.parse_setting('hosts.pve.nvidia.driver="580"', "pve") == {
        "homelab:hosts": {"pve": {"nvidia": {"driver": "580"}}}
    }
    # As a refusal names it, without the host.
    assert choices.parse_setting("gpus.a.address=01:00.0", "pve") == {
        "homelab:hosts": {"pve": {"gpus": {"a": {"address": "01:00.0"}}}}
    }
    assert choices.parse_setting("iommu.allowUnsafeInterrupts=true", "pve")["homelab:hosts"]["pve"]
    date = choices.parse_setting("vms.sandbox.create.options.startdate=2026-11-26", "pve")
    assert 'startdate: "2026-11-26"\n' in merged("", date)
    for wrong in ("vms", "=1", "vms..x=1"):
        with pytest.raises(HomelabError, match="--set"):
            choices.parse_setting(wrong, "pve")


# -- NVIDIA's software --------------------------------------------------------------------------------------------------
def test_the_recommended_driver_comes_first_and_what_can_not_work_is_not_offered() -> None:
    offered = stacks.drivers("host", stacks.of_host(host(), ["10de:2b85"]))
    assert offered[0] == "580"
    assert offered and all(int(branch) >= 570 for branch in offered)  # an RTX 5090 takes 570 or later


def test_only_cudas_that_the_hosts_driver_runs_are_offered_to_a_container() -> None:
    offered = stacks.releases("lxc", stacks.in_container("550.163.01"), None)
    assert offered[0] == "12.4" and "12.8" not in offered
    assert "12.8" in stacks.releases("lxc", stacks.in_container("580.105.08"), None)


# -- the proposal -------------------------------------------------------------------------------------------------------
def proposed(decided: Choices, text: str = "", facts: HostFacts | None = None) -> proposal.Proposal:
    facts = facts or host()
    before = existing(text, "Pulumi.homelab.yaml")
    access: dict[str, Any] = {} if before.values else dict(ACCESS)
    values = choices.settings_of(decided, "pve", access, facts, init_cards.cards(facts), before.values)
    return propose(before, values, "pve", facts, "Pulumi.homelab.yaml")


def config(made: proposal.Proposal) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(made.text)["config"]
    return found


def test_a_card_for_a_vm() -> None:
    made = proposed(Choices({"0000:01:00": Use("vm", (103,))}))
    assert made.refused == []
    found = config(made)
    assert found["homelab:hosts"]["pve"] == {
        **ACCESS,
        "gpus": {"rtx5090": {"match": "10de:2b85", "use": "vm"}},
    }
    assert found["homelab:vms"] == {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    assert found["homelab:containers"] == {}


IDS = "10de:2b85,10de:22e8"
VFIO_CONF = "/etc/modprobe.d/vfio.conf"


def with_driver(driver: str) -> list[dict[str, Any]]:
    """The host's functions, its RTX 5090 with this driver."""
    others = [asdict(one) for one in host().devices if one.slot != "0000:01:00"]
    return [*others, *({**one, "driver": driver} for one in hosts.gpu())]


@pytest.mark.parametrize("driver", ["vfio-pci", "nouveau"])
def test_a_card_that_ids_bind_by_hand_is_proposed_for_containers_with_a_yes(driver: str) -> None:
    """Also where they had no effect so far: the next start may be the first with it."""
    facts = host(devices=with_driver(driver), vfio_ids=IDS, vfio_files={VFIO_CONF: IDS})
    (card, _) = init_cards.cards(facts)
    assert init_cards.possible_uses(facts, card, hosts.settings({})) == {"vm", "lxc", "host"}
    made = proposed(Choices({"0000:01:00": Use("host")}), facts=facts)
    assert made.refused == [] and config(made)["homelab:hosts"]["pve"]["takeOver"] is True
    made = proposed(Choices({"0000:01:00": Use("vm", (103,))}), facts=facts)
    assert made.refused == [] and "takeOver" not in config(made)["homelab:hosts"]["pve"]


def test_what_somebody_set_up_for_cards_is_said_with_what_becomes_of_it() -> None:
    assert present(host(), init_cards.cards(host()), "pve") == []
    mount = "lxc.mount.entry: /dev/nvidia{0} dev/nvidia{0} none bind\n"
    hostpci, script = "hostpci0: 0000:01:00,pcie=1,x-vga=1", "hookscript: local:snippets/gpu.sh"
    configs = [
        {"kind": "vm", "id": 103, "lines": f"name: Sandbox\n{hostpci}\n{script}\n"},
        {"kind": "vm", "id": 104, "lines": "hookscript: local:snippets/homelab-handover.sh\nargs: 0000:01:00.0"},
        {"kind": "lxc", "id": 901, "lines": mount.format(0)},
        {"kind": "lxc", "id": 902, "lines": mount.format(7)},
    ]
    facts = host(
        guests={**GUESTS, "configs": configs},
        nvidia_minors={"0000:01:00.0": 0},
        devices=with_driver("vfio-pci"),
        vfio_files={VFIO_CONF: IDS},
        vfio_mentions=["/etc/initramfs-tools/scripts/init-top/bind.sh"],
        cmdline={
            "running": "",
            "configured": "",
            "generated": "",
            "others": "root=/dev/sda quiet amd_iommu=on iommu=pt video=efifb:off pci=noaer nofb nomodeset "
            "vfio-pci.disable_vga=1 kvm.ignore_msrs=1 amdgpu.gttsize=98304 kvmfr=1 vfio-pci.ids=1022:15e3 "
            "pci-stub.ids=10de:1,10de:2",
        },
        module_lines=[
            "/etc/modprobe.d/vfio.conf: options vfio-pci ids=10de:2b85,10de:22e8 disable_vga=1",
            "/etc/modprobe.d/vfio.conf: softdep nouveau pre: vfio-pci",
            "/etc/modprobe.d/blacklist.conf: blacklist nvidia",
            "/usr/lib/modprobe.d/fbdev-blacklist.conf: blacklist nvidiafb",
            "/etc/modules: vfio",
            "/etc/modules: vfio_pci",
        ],
    )
    systems = {
        number: SystemReading(SystemFacts(), "1", frozenset(steps), (), libraries)
        for number, libraries, steps in (("901", "550.54.14", ()), ("902", "", ()), ("903", "580.95.05", ("driver",)))
    }
    words, lines, file, mention, option, script, past, container, without_card, libraries = present(
        facts, init_cards.cards(facts), "pve", systems
    )
    assert words == (
        "amd_iommu=on iommu=pt video=efifb:off pci=noaer nofb nomodeset vfio-pci.disable_vga=1 kvm.ignore_msrs=1 "
        "amdgpu.gttsize=98304 pci-stub.ids=10de:1,10de:2 on the kernel command line: kept, and not added a second time"
    )
    assert lines == (
        "/etc/modprobe.d/vfio.conf: softdep nouveau pre: vfio-pci; /etc/modprobe.d/blacklist.conf: blacklist nvidia; "
        "/etc/modules: vfio, vfio_pci: kept"
    )
    assert file.startswith(f"{VFIO_CONF}: kept; rtx5090 counts as bound by it")
    assert mention.startswith("/etc/initramfs-tools/scripts/init-top/bind.sh, which names vfio-pci: kept;")
    assert option.startswith(
        "hostpci0: 0000:01:00,pcie=1,x-vga=1 of VM 103: if the VM keeps rtx5090, `pulumi up` takes it over"
    )
    assert script.startswith("hookscript local:snippets/gpu.sh of VM 103: kept, and run as before")
    assert past.startswith(
        "args of VM 104, which gives it rtx5090 past Proxmox VE: kept; a card that is to go to a VM is refused"
    )
    assert container.startswith("lines for rtx5090 of container 901: kept")
    assert without_card.startswith("lines for NVIDIA's device nodes of container 902: kept; no card here has such")
    assert libraries.startswith("NVIDIA's libraries 550.54.14 in container 901: kept, unless")


VMS_BY_HAND = {
    103: "name: Sandbox\nhostpci0: 0000:01:00.0,pcie=1,x-vga=1\nhostpci1: 0000:01:00.1,pcie=1",
    104: "name: gaming\nonboot: 1\nhostpci0: 01:00,pcie=1",
    105: "name: golden\ntemplate: 1\nonboot: 1\nhostpci0: 0000:01:00,pcie=1",
}


def with_card_by_hand(*vms: int, running: tuple[int, ...] = ()) -> HostFacts:
    configs = [{"kind": "vm", "id": number, "lines": VMS_BY_HAND[number]} for number in vms]
    return host(guests={**GUESTS, "configs": configs, "running": running}, devices=with_driver("vfio-pci"))


def test_of_several_vms_that_have_a_card_by_hand_the_one_that_runs_is_meant() -> None:
    facts = with_card_by_hand(103, 104, 105)
    first, second, template = present(facts, init_cards.cards(facts), "pve")
    line = "hostpci0: 0000:01:00.0,pcie=1,x-vga=1, hostpci1: 0000:01:00.1,pcie=1 of VM 103: if the VM keeps rtx5090, "
    assert first.startswith(line)
    assert all(said.endswith("it stays, and only one of them can run with it") for said in (first, second))
    assert template == "hostpci0: 0000:01:00,pcie=1 of the template 105: kept; it never runs, so that it takes no card"
    for running, preset in (((), 104), ((103,), 103), ((104,), 104)):
        facts = with_card_by_hand(103, 104, 105, running=running)
        assert choices.suggested(facts, init_cards.cards(facts)[0], "pve") == Use("vm", (preset,))
    (only,) = present(with_card_by_hand(104), init_cards.cards(facts), "pve")
    assert only.endswith("`pulumi destroy` puts it back as it is")


def test_a_template_takes_no_card_and_keeps_none_from_others() -> None:
    facts = with_card_by_hand(105)
    assert choices.suggested(facts, init_cards.cards(facts)[0], "pve") == Use("none")
    with pytest.raises(HomelabError, match=r"VM 105 \(golden\), a template"):
        choices.parse_use("vm:105", facts)
    facts = host(
        guests={**GUESTS, "configs": [{"kind": "vm", "id": 105, "lines": VMS_BY_HAND[105]}]},
        devices=with_driver("vfio-pci"),
        vfio_ids=IDS,
        vfio_files={VFIO_CONF: IDS},
    )
    assert proposed(Choices({"0000:01:00": Use("host")}), facts=facts).refused == []


RULES, MODULES = "/etc/udev/rules.d/10-vfio.rules", "/etc/initramfs-tools/modules"
DRIVERCTL = "/etc/driverctl.d/pci-0000:01:00.0"


@pytest.mark.parametrize(
    ("driver", "found", "said"),
    [
        ("nouveau", {"vfio_files": {VFIO_CONF: IDS}}, f"{VFIO_CONF}: kept; it names rtx5090 for vfio-pci, without effect"),
        ("", {"vfio_mentions": [RULES]}, f"{RULES}, which names vfio-pci: kept; what it does to cards isn't looked at"),
        ("vfio-pci", {"vfio_mentions": [DRIVERCTL]}, f"{DRIVERCTL}: kept; it keeps rtx5090 for vfio-pci, whatever a word"),
        ("vfio-pci", {"vfio_files": {MODULES: IDS}}, f"{MODULES}: kept; it keeps rtx5090 for vfio-pci, whatever a word"),
    ],
)  # fmt: skip
def test_takeover_is_named_where_a_word_of_homelabs_can_count(driver: str, found: dict[str, Any], said: str) -> None:
    facts = host(devices=with_driver(driver), **found)
    (sentence,) = present(facts, init_cards.cards(facts), "pve")
    assert sentence.startswith(said) and ("takeOver: true" in sentence) is (VFIO_CONF in str(found))


SANDBOX_LINES = "name: Sandbox\nmachine: q35\n"
TAKEN = [{"gpu": "rtx5090", "takeOver": True}]
NOTE = json.dumps(
    {
        "identity": "",
        "record": {"hostpci0": {"ours": "mapping=rtx5090,pcie=1,x-vga=1", "before": "01:00,pcie=1,x-vga=1", "slot": "0000:01:00"}},
    }
)  # fmt: skip
HAND_MADE: dict[str, tuple[str, dict[str, Any], str | None, list[Any]]] = {
    "a raw line": ("hostpci0: 0000:01:00,pcie=1,x-vga=1,romfile=a.rom\n", {}, None, TAKEN),
    "a line for each function": ("hostpci0: 01:00.0,pcie=1\nhostpci1: 01:00.1,pcie=1\n", {}, None, TAKEN),
    "a mapping of its own": ("hostpci0: mapping=gpu0,pcie=1,x-vga=1\n", {}, "gpu0", TAKEN),
    "a mapping as this program would write it": ("hostpci0: mapping=gpu0,pcie=1\n", {}, "gpu0", ["rtx5090"]),
    "a stack that was lost": ("hostpci0: mapping=rtx5090,pcie=1,x-vga=1\n", {"ledger": {"vm/103": NOTE}}, None, TAKEN),
    "another card": ("hostpci0: 0000:05:00,pcie=1\n", {}, None, ["rtx5090"]),
}


def test_a_card_that_a_container_and_a_vm_have_in_turn_takes_a_driver() -> None:
    facts = host(nvidia_minors={"0000:01:00.0": 0})
    use = choices.parse_use("shared:103,901", facts)
    assert (use.of_kind("vm", facts), use.of_kind("lxc", facts)) == ((103,), (901,))
    made = proposed(Choices({"0000:01:00": use}, host_stack=Stack("580")), facts=facts)
    found = config(made)
    assert found["homelab:hosts"]["pve"]["gpus"]["rtx5090"]["use"] == "shared"
    assert found["homelab:hosts"]["pve"]["nvidia"] == {"driver": "580"}
    assert found["homelab:vms"]["sandbox"]["gpus"] == found["homelab:containers"]["ai-lab"]["gpus"] == ["rtx5090"]
    for text in ("shared:103", "shared:901", "shared:103,999"):
        with pytest.raises(HomelabError, match="a VM and at least one container that have the card in turn"):
            choices.parse_use(text, facts)


@pytest.mark.parametrize("case", HAND_MADE)
def test_what_a_vm_has_by_hand_is_proposed_to_be_taken_over(case: str) -> None:
    line, more, mapping, expected = HAND_MADE[case]
    configs = [{"kind": "vm", "id": 103, "lines": SANDBOX_LINES + line}]
    entry = "gpu0\n\tmap id=10de:2b85,iommugroup=14,node=pve,path=0000:01:00,subsystem-id=1043:89e3\n"
    facts = host(guests={**GUESTS, "configs": configs, "mappings": entry if mapping else ""}, **more)
    decided = Choices({"0000:01:00": Use("vm", (103,))})
    made = proposed(decided, facts=facts)
    assert made.refused == []
    assert any("put back as it is on destroy" in said for said in made.remarks) is (":00" in line and expected == TAKEN)
    assert config(made)["homelab:vms"]["sandbox"]["gpus"] == expected
    assert config(made)["homelab:hosts"]["pve"]["gpus"]["rtx5090"].get("mapping") == mapping
    # Settings that have the card without that: the yes is added, and once.
    plain = re.sub(r"\n *takeOver: true", "", made.text)
    assert config(proposed(decided, plain, facts)) == config(made) == config(proposed(decided, made.text, facts))


def test_a_card_for_containers() -> None:
    facts = host(nvidia_minors={"0000:01:00.0": 0}, nvidia={"version": "580.105.08"})
    made = proposed(Choices({"0000:01:00": Use("lxc", (901,))}, guest_stack=Stack(cuda="12.8")), facts=facts)
    assert made.refused == []
    assert config(made)["homelab:containers"] == {
        "ai-lab": {"host": "pve", "ctid": 901, "gpus": ["rtx5090"], "nvidia": {"cuda": "12.8"}}
    }


def test_nothing_is_installed_in_a_container_that_is_off() -> None:
    facts = host(nvidia_minors={"0000:01:00.0": 0}, nvidia={"version": "580.105.08"})
    both = Choices({"0000:01:00": Use("lxc", (901, 902))}, guest_stack=Stack(cuda="12.8"))
    first = proposed(both, facts=facts)
    assert first.refused == []
    assert config(first)["homelab:containers"]["old"] == {"host": "pve", "ctid": 902, "gpus": ["rtx5090"]}
    # Once it runs, a second run adds what is installed in it.
    started = host(
        nvidia_minors={"0000:01:00.0": 0}, nvidia={"version": "580.105.08"}, guests={**GUESTS, "running": [901, 902]}
    )
    second = proposed(both, text=first.text, facts=started)
    assert config(second)["homelab:containers"]["old"]["nvidia"] == {"cuda": "12.8"}


def test_a_new_vm() -> None:
    made = proposed(Choices({"0000:01:00": Use("new-vm", (110,))}, new_vm=choices.ChosenVm("gaming", "local-lvm")))
    assert made.refused == []
    vm = config(made)["homelab:vms"]["gaming"]
    assert vm["vmid"] == 110 and vm["create"]["disk"] == {"storage": "local-lvm", "size": 64}


def test_a_new_vm_from_a_known_image_has_it_downloaded() -> None:
    use = {"0000:01:00": Use("new-vm", (110,))}
    new = choices.ChosenVm("gaming", "local-lvm", image="ubuntu-24.04", into="nas", cloud={"user": "ubuntu"})
    made = proposed(Choices(use, new_vm=new))
    assert made.refused == []
    assert config(made)["homelab:hosts"]["pve"]["downloads"] == {
        "ubuntu-2404": {"image": "ubuntu-24.04", "storage": "nas"}
    }
    assert config(made)["homelab:vms"]["gaming"]["create"]["image"] == "ubuntu-2404"
    # One that the host downloads already is taken as it is.
    again = proposed(Choices(use, new_vm=new), made.text)
    assert again.text.count("image: ubuntu-24.04") == 1


@pytest.mark.parametrize(
    ("content", "there", "known"),
    [
        ("images,iso", [], []),
        ("images,import", [], ["ubuntu-24.04", "ubuntu-22.04", "ubuntu-26.04", "debian-13", "debian-12"]),
        (
            "images,import",
            ["local:import/noble-server-cloudimg-amd64.qcow2"],
            ["ubuntu-22.04", "ubuntu-26.04", "debian-13", "debian-12"],
        ),
    ],
)
def test_known_cloud_images_are_offered_where_a_storage_takes_them_and_has_them_not(
    content: str, there: list[str], known: list[str]
) -> None:
    found = storages.offered(files_of(Node({"local": content}, there)))
    assert found.downloadable == known and storages.user_of("debian-13") == "debian"


def test_what_up_would_refuse_is_refused_with_the_same_words() -> None:
    screen = proposed(Choices({"0000:0b:00": Use("vm", (103,))}))
    assert "boot_vga" in screen.refused[0].found
    i440 = [{"kind": "vm", "id": 103, "lines": "name: Sandbox\nmemory: 16384\n"}]
    made = proposed(Choices({"0000:01:00": Use("vm", (103,))}), facts=host(guests={**GUESTS, "configs": i440}))
    assert "vms.sandbox.machine: q35" in made.refused[0].next
    more = {"homelab:vms": {"sandbox": {"machine": "q35"}}}
    made = proposed(
        Choices({"0000:01:00": Use("vm", (103,))}, more=more), facts=host(guests={**GUESTS, "configs": i440})
    )
    assert made.refused == []


def test_a_second_run_moves_a_card_and_loses_nothing() -> None:
    first = proposed(Choices({"0000:01:00": Use("vm", (103,))})).text
    edited = first.replace("      vmid: 103", "      vmid: 103 # the first one\n      display: none").replace(
        "privateKeyFile: ~/.ssh/id_ed25519", "password: {secure: v1:x}"
    )
    facts = host(nvidia_minors={"0000:01:00.0": 0}, nvidia={"version": "580.105.08"})
    second = proposed(Choices({"0000:01:00": Use("lxc", (901,))}, guest_stack=Stack()), text=edited, facts=facts)
    found = config(second)
    assert found["homelab:vms"]["sandbox"] == {"host": "pve", "vmid": 103, "display": "none", "gpus": []}
    assert found["homelab:containers"]["ai-lab"]["gpus"] == ["rtx5090"]
    assert found["homelab:hosts"]["pve"]["gpus"]["rtx5090"] == {"match": "10de:2b85", "use": "lxc"}
    assert "# the first one" in second.text and "{secure: v1:x}" in second.text


def test_the_example_that_nobody_filled_in_counts_for_nothing_and_any_other_file_does() -> None:
    text = (PROJECT / "Pulumi.homelab.yaml").read_text(encoding="utf-8")
    assert existing(text, "f").example
    filled = text.replace("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFILL+IN+WITH+ssh+keyscan+t+ed25519+ADDRESS0", hosts.KEY)
    assert not existing(filled, "f").example and "hosts" in existing(filled, "f").values
    assert existing("encryptionsalt: v1:x\n", "f").text == "encryptionsalt: v1:x\n"


@pytest.mark.parametrize(
    "text",
    [
        "config: [",
        "config:\n  homelab:hosts: {pve: {}}\n",
        yaml.safe_dump({"config": {"homelab:hosts": {"pve": {**ACCESS, "api": {"token": "homelab@pve!pulumi"}}}}}),
        "config: {}\nhomelab:hosts: {}\n",
    ],
)
def test_a_file_that_the_program_would_not_load_is_not_added_to(text: str) -> None:
    with pytest.raises(HomelabError):
        proposed(Choices({"0000:01:00": Use("vm", (103,))}), text=text)


@pytest.mark.parametrize("config", ["[a]", "text", "3"])
def test_a_config_that_is_no_mapping_is_refused(config: str) -> None:
    with pytest.raises(HomelabError, match="config:"):
        existing(f"config: {config}\n", "Pulumi.homelab.yaml")


# -- what a new VM is made of --------------------------------------------------------------------------------------------
class Node:
    """A node's API: storage -> its content; the volumes on each of them."""

    node = "pve"

    def __init__(self, storages: dict[str, str], there: list[str]) -> None:
        self.storages, self.there = storages, there

    def get(self, path: str, _wanted: str, content: str = "") -> list[dict[str, Any]]:
        if path.endswith("/content"):
            return [{"volid": volume} for volume in self.there if f":{content}/" in volume]
        return [{"storage": name, "content": of, "active": int(name != "off")} for name, of in self.storages.items()]


def files_of(node: Node) -> Files:
    return Files(cast(Any, node), print)


def test_a_new_vm_is_made_of_what_lies_on_active_storages_and_can_be_a_disk() -> None:
    there = ["local:import/b.qcow2", "local:import/a.RAW", "local:import/vm.ova", "local:iso/cd.iso"]
    found = storages.offered(files_of(Node({"local": "iso,import", "disks": "images", "off": "images"}, there)))
    assert found.disks == ["disks"] and found.images == ["local:import/a.RAW", "local:import/b.qcow2"]
    assert found.isos == ["local:iso/cd.iso"] and found.into == "local"


@pytest.mark.parametrize(
    ("image", "user"),
    [
        ("local:import/noble-server-cloudimg-amd64.img", "ubuntu"),
        ("local:import/debian-13-genericcloud-amd64.qcow2", "debian"),
        ("local:import/my.qcow2", ""),
    ],
)
def test_the_user_of_a_cloud_image_is_preselected_where_it_is_known(image: str, user: str) -> None:
    assert storages.user_of(image) == user


# -- the example --------------------------------------------------------------------------------------------------------------
def test_what_pulumi_has_put_into_the_example_goes_into_the_new_file() -> None:
    example = (PROJECT / "Pulumi.homelab.yaml").read_text()
    salt = "encryptionsalt: v1:abc=:v1:def=:ghi==\n"
    before = existing(example + salt, "Pulumi.homelab.yaml")
    assert before.example
    made = propose(before, choices.settings_of(Choices(), "pve", ACCESS, host(), [], {}), "pve", host(), "file")
    assert yaml.safe_load(made.text)["encryptionsalt"] == "v1:abc=:v1:def=:ghi=="
    assert made.text.startswith("# yaml-language-server") and "FILL" not in made.text
    assert existing(example, "Pulumi.homelab.yaml").text == ""
