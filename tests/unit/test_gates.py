"""homelab/host/gates.py: what is refused before a host is changed, and the one setting that opens each gate."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, replace
from typing import Any

import pytest
from inline_snapshot import snapshot

from homelab.cards import remarks as card_remarks
from homelab.errors import HomelabError, raise_all
from homelab.facts.host import HostFacts, parse
from homelab.host import gates, holder_gates, plan
from homelab.init.cards import takers
from homelab.remote import agent
from homelab.settings import Host
from tests.rows import rows
from tests.unit.hosts import cmdline, conf, desktop, device, driven, gpu, reasons, settings, vm_note


def test_a_card_alone_in_its_group_passes_every_gate() -> None:
    assert gates.check(desktop(), settings()) == ({"rtx5090": "0000:01:00"}, [])


def test_a_card_that_is_not_there_is_refused_with_those_that_are() -> None:
    here = "RTX 5090 [10de:2b85] at 0000:01:00.0; graphics card [1002:164e] at 0000:0b:00.0"
    assert reasons(desktop(), settings({"gpu": {"match": "10de:2684"}})) == [f"graphics cards here: {here}"]
    assert reasons(desktop(devices=[]), settings()) == ["graphics cards here: no graphics card at all"]


@rows(
    ("pve", "refused"),
    [("8.1.11", True), ("7.4-20", True), ("unknown", True), ("8.2.2", False), ("10.0.1", False), ("", False)],
)
def test_a_proxmox_before_8_2_or_that_doesnt_say_its_version_is_refused(pve: str, refused: bool) -> None:
    errors = gates.check(desktop(pve=pve), settings())[1]
    assert [error.found for error in errors] == [f"Proxmox VE {pve}"] * refused
    assert all("apt full-upgrade" in error.next for error in errors)


def test_a_host_with_an_agent_of_1_0_0_is_refused() -> None:
    agents = {"homelab-old": "0123456789abcdef", "homelab-new": agent.version(), "homelab-half": ""}
    (error,) = gates.check(desktop(agents=agents), settings())[1]
    assert error.found == "its agent in /var/lib/homelab/agents/homelab-old" and "082c80e5" in error.next


def test_two_identical_cards_need_an_address() -> None:
    facts = desktop(*gpu("0000:03:00", 18))
    assert reasons(facts, settings()) == ["2: 0000:01:00, 0000:03:00"]
    chosen = settings({"gpu": {"match": "10de:2b85", "address": "03:00"}})
    assert gates.check(facts, chosen) == ({"gpu": "0000:03:00"}, [])


def test_a_card_under_two_names_is_refused() -> None:
    cards = {"igpu": {"match": "1002:164e", "use": "host"}, "aa": {"match": "10de:2b85"}, "bb": {"address": "01:00"}}
    (error,) = gates.check(desktop(), settings(cards))[1]
    assert error.wanted == "gpus.bb and gpus.aa to be two cards" and error.found == "both are the one in 0000:01:00"


@rows(
    ("chosen", "wanted"),
    [
        ({"address": "02:00"}, "a graphics card at 0000:02:00"),
        ({"match": "144d:a80c"}, "144d:a80c"),
        ({"address": "02:00", "match": "144d:a80c"}, "144d:a80c at 0000:02:00"),
        ({"address": "01:00", "match": "144d:a80c"}, "144d:a80c at 0000:01:00"),
        ({"address": "01:00", "match": "10de:2684"}, "10de:2684 at 0000:01:00"),
    ],
)
def test_an_address_or_id_of_something_else_is_refused(chosen: dict[str, str], wanted: str) -> None:
    (error,) = gates.check(desktop(), settings({"gpu": chosen}))[1]
    assert error.wanted == f"gpus.gpu: a card ({wanted})" and error.found.startswith("graphics cards here: ")
    assert error.next.startswith("correct `match` or `address`")


NVME = device("0000:02:00.0", "144d:a80c", "010802", 16, behind="nvme0n1")


@rows(
    ("other", "said"),
    [
        (NVME, "NVMe disk [144d:a80c] (nvme0n1, / on pve-root)"),
        (device("0000:05:00.0", "10ec:8125", "020000", 16, behind="enp5s0"), "network card [10ec:8125] (enp5s0)"),
        (device("0000:06:00.0", "1022:43f4", "0c0330", 16), "USB controller [1022:43f4]"),
        (device("0000:07:00.0", "1234:5678", "118000", 16), "signal processor [1234:5678]"),
        (device("0000:01:01.0", "10de:2684", "030000", 16), "graphics card [10de:2684]"),
    ],
)
def test_anything_else_in_the_group_is_refused_and_named(other: dict[str, Any], said: str) -> None:
    everything = [one for one in asdict(desktop())["devices"] if one["address"] != other["address"]]
    (found,) = reasons(desktop(devices=[*everything, other]), settings())
    assert found.endswith(said)


def test_bridges_in_the_group_do_no_harm() -> None:
    bridge = device("0000:00:01.0", "1022:14da", "060000", 16), device("0000:00:01.2", "1022:14db", "060400", 16)
    assert reasons(desktop(*bridge), settings()) == []


def test_a_group_member_may_go_along_when_it_is_named() -> None:
    usb = device("0000:06:00.0", "1022:43f4", "0c0330", 16)
    allowed = settings({"gpu": {"match": "10de:2b85", "allowGroupMembers": ["0000:06:00.0"]}})
    assert reasons(desktop(usb), allowed) == []
    assert len(reasons(desktop(usb, device("0000:06:00.1", "1022:43f5", "010601", 16)), allowed)) == 1


def test_before_there_are_groups_the_topology_tells_what_shares_one() -> None:
    def without_groups(*more: dict[str, Any], acs: bool) -> HostFacts:
        port, iommu = device("0000:00:01.0", "8086:1901", "060400", acs=acs), {"tables": ["DMAR"], "groups": 0}
        devices = [port, *gpu(group=None, parent="0000:00:01.0"), *more]
        return desktop(devices=devices, iommu=iommu | {"kernel_log": ""}, cpu_vendor="GenuineIntel")

    behind = device("0000:01:01.0", "144d:a80c", "010802", parent="0000:00:01.0")
    sibling = (
        device("0000:00:01.1", "8086:1905", "060400"),
        device("0000:02:00.0", "144d:a80c", "010802", parent="0000:00:01.1"),
    )
    elsewhere = (
        device("0000:00:1d.0", "8086:a298", "060400"),
        device("0000:04:00.0", "144d:a80c", "010802", parent="0000:00:1d.0"),
    )
    assert reasons(without_groups(*elsewhere, acs=False), settings()) == []
    assert reasons(without_groups(behind, acs=True), settings()) == []
    assert "0000:01:01.0" in reasons(without_groups(behind, acs=False), settings())[0]
    # z370-2080ti-2060: the functions of a root port's slot are not isolated from each other.
    assert "0000:02:00.0" in reasons(without_groups(*sibling, acs=False), settings())[0]


@pytest.mark.parametrize("enable", [None, False])
def test_an_iommu_switched_off_in_the_firmware_is_refused(enable: bool | None) -> None:
    off = {"tables": [], "groups": 0, "kernel_log": "DMAR: IOMMU enabled"}
    host = settings(iommu={"enable": enable})
    (found,) = reasons(desktop(iommu=off), host)
    assert found == "no IVRS table in /sys/firmware/acpi/tables, and no IOMMU group"
    (error,) = gates.iommu(desktop(iommu=off, cpu_vendor="GenuineIntel"), host)
    assert error.found.startswith("no DMAR table") and "switch on Intel VT-d" in error.next
    # The kernel has groups without these tables, too, as with VIRTIO's IOMMU.
    assert not [*gates.iommu(desktop(iommu=off | {"groups": 21}), host)]


def test_a_firmware_that_lets_no_vm_run_stands_against_cards_for_vms_alone() -> None:
    facts = desktop(kernel_log="kvm_amd: SVM disabled (by BIOS) in MSR_VM_CR on CPU 3")
    (error,) = gates.iommu(facts, settings())
    assert "switch SVM on" in error.next
    assert not [*gates.iommu(facts, settings(gpus={"rtx5090": {"match": "10de:2b85", "use": "lxc"}}))]


@rows(
    ("vendor", "word", "refused"),
    [
        ("AuthenticAMD", "amd_iommu=off", True),
        ("AuthenticAMD", "iommu=off", True),
        ("GenuineIntel", "iommu=off", True),
        ("GenuineIntel", "intel_iommu=off", False),  # a later intel_iommu=on wins
        ("GenuineIntel", "intel_iommu=off intel_iommu=on", False),
        ("GenuineIntel", "intel_iommu=on,sm_on intel_iommu=off", True),  # what is there already isn't put there again
        ("GenuineIntel", "amd_iommu=off", False),
        ("AuthenticAMD", "iommu=pt,off", True),
        ("AuthenticAMD", "amd_iommu=fullflush,off", True),
        ("AuthenticAMD", "amd-iommu=off", True),
        ("AuthenticAMD", '"iommu=off"', True),
        ("AuthenticAMD", "iommu=soft", False),
    ],
)
def test_a_word_that_the_kernel_never_takes_back_is_refused(vendor: str, word: str, refused: bool) -> None:
    words = cmdline(word, others=f"quiet {word}", generated=word)
    assert bool(reasons(desktop(cmdline=words, cpu_vendor=vendor), settings())) is refused


def test_the_hosts_console_is_not_taken_unless_accepted() -> None:
    facts = desktop()
    console = settings({"igpu": {"match": "1002:164e"}})
    assert reasons(facts, console) == [
        "the host's screen is 0000:0b:00.0 graphics card [1002:164e], of the card or its IOMMU group (boot_vga)"
    ]
    assert reasons(facts, settings({"igpu": {"match": "1002:164e", "allowConsole": True}})) == []
    # The other boot entry lacks this program's words alone.
    by_hand = [asdict(one) | ({"driver": "vfio-pci"} if one.boot_vga else {}) for one in facts.devices]
    for changes, gives_back in (({}, True), ({"devices": by_hand, "vfio_files": {"/etc/x.conf": "1002:164e"}}, False)):
        (error,) = gates.check(desktop(**changes), console)[1]
        assert ("without GPU passthrough" in error.next) is gives_back


def of_guests(*configs: dict[str, Any], **changes: Any) -> HostFacts:
    """A host whose guests, which are off, have these configurations."""
    return desktop(guests={"running": [], "configs": [*configs]}, **changes)


def users_of(facts: HostFacts, gpus: dict[str, Any] | None = None) -> list[str]:
    """Why the host's settings are refused, without what each user is."""
    return [found.partition(" (")[0] for found in reasons(facts, settings(gpus))]


@rows(
    ("line", "uses"),
    [
        ("dev0: /dev/nvidia0,mode=0666", True),
        ("lxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,optional,create=file", True),
        ("lxc.mount.entry: /dev/nvidia0 dev/nvidia7 none bind,create=file", True),
        ("dev0: mode=0666,path=/dev/nvidia0", True),
        ("[pve:pending]\ndev0: /dev/nvidia0", True),
        ("dev0: /dev/nvidia0\n[pve:pending]\ndelete: dev0", False),
        ("dev0: /dev/nvidia1", False),
        ("dev0: /dev/nvidia01", False),
        ("hostname: nvidia0", False),
    ],
)
def test_a_card_that_containers_use_is_not_taken_from_them(line: str, uses: bool) -> None:
    facts = of_guests(
        conf("lxc", 950, f"unprivileged: 1\n{line}"), nvidia_minors={"0000:01:00.0": 0, "0000:41:00.0": 1}
    )
    assert users_of(facts) == ["containers that use it: 950"] * uses
    assert reasons(facts, settings({"gpu": {"match": "10de:2b85", "allowContainers": [950]}})) == []


DRM = {"0000:01:00.0": {"card": "card0", "render": "renderD128"}}


@rows(
    ("line", "uses"),
    [
        ("dev0: /dev/dri/by-path/pci-0000:0b:00.0-render", True),
        ("lxc.mount.entry: /dev/dri/by-path/pci-0000:0b:00.0-card dev/dri/card0 none bind,optional,create=file", True),
        ("dev0: /dev/dri/by-path/pci-0000:0c:00.0-render", False),
        ("dev0: /dev/dri/renderD129", True),
        ("dev0: /dev/dri/renderD128", False),
    ],
)
def test_a_card_is_known_by_udevs_links_to_its_nodes(line: str, uses: bool) -> None:
    facts = of_guests(conf("lxc", 950, line), drm=DRM | {"0000:0b:00.0": {"card": "card1", "render": "renderD129"}})
    gpus = {"gpu": {"match": "1002:164e", "allowConsole": True}}
    assert users_of(facts, gpus) == ["containers that use it: 950"] * uses


@rows(
    ("line", "uses"),
    [
        ("dev0: /dev/dri/renderD128", True),  # it would not start, or get another card's node
        ("dev0: /dev/dri/by-path/pci-0000:01:00.0-render", True),
        ("lxc.mount.entry: /dev/dri/card0 dev/dri/card0 none bind,create=file", True),
        ("dev0: /dev/dri/renderD129", False),
        ("lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir", False),  # for the other card in it
    ],
)
def test_a_line_that_names_a_node_of_nvidias_card_itself_is_a_use_of_it(line: str, uses: bool) -> None:
    # Under nouveau it has no minor number of NVIDIA's driver.
    for minors in ({"0000:01:00.0": 0}, {}):
        facts = of_guests(conf("lxc", 950, line), nvidia_minors=minors, drm=DRM)
        assert users_of(facts) == ["containers that use it: 950"] * uses


def test_what_a_vm_is_to_get_counts_though_the_same_is_to_go() -> None:
    """PVE::QemuServer::vmconfig_apply_pending: what is to go goes first."""
    facts = of_guests(conf("vm", 104, "hostpci0: 02:00\n[PENDING]\ndelete: hostpci0\nhostpci0: 01:00"))
    assert [user.vmid for user in facts.users_of("0000:01:00")] == [104]
    assert facts.users_of("0000:02:00") == []


@rows(("lines", "onboot"), [("onboot: 1", True), ("onboot: Yes", True), ("onboot: 0", False), ("", False)])
def test_whether_a_vm_starts_with_its_host_is_known_however_somebody_has_written_it(lines: str, onboot: bool) -> None:
    facts = of_guests(conf("vm", 104, f"hostpci0: 01:00\n{lines}"))
    assert [user.onboot for user in facts.users_of("0000:01:00")] == [onboot]


def test_a_template_is_known_however_somebody_has_written_it() -> None:
    facts = of_guests(conf("vm", 104, "hostpci0: 01:00\nonboot: on\ntemplate: True"))
    assert (facts.users_of("0000:01:00"), takers(facts)) == ([], [])


@pytest.mark.parametrize("use", ["vm", "shared"])
@pytest.mark.parametrize("lines", ["args: 01:00.0 0000:0b:00.0", "[PENDING]\nargs: 0000:01:00.0"])
def test_a_card_that_a_vm_has_past_proxmox_ve_is_refused(lines: str, use: str) -> None:
    refused = reasons(of_guests(conf("vm", 104, f"name: Old\n{lines}")), to_be(use, nvidia={"driver": "580"}))
    assert refused == ["VM 104 (Old) has 0000:01:00.0 by its option args (-device vfio-pci)"]


def test_a_node_without_a_quorum_is_left_as_it_is() -> None:
    facts = desktop()
    alone = replace(facts, cluster=replace(facts.cluster, quorate=False, node="pve1"))
    (found,) = gates.check(alone, settings())[1]
    assert "the node pve1" in found.wanted and "no quorum" in found.found and "nothing was changed" in found.why
    assert "`systemctl status corosync`" in found.next and "remove" not in found.next


def test_an_unknown_boot_loader_is_refused() -> None:
    facts = desktop(loader="", loader_clues="LoaderInfo 'not set'")
    assert reasons(facts, settings()) == ["LoaderInfo 'not set'"]
    # Of several closed gates each is said.
    off = replace(facts, iommu=replace(facts.iommu, tables=[], groups=0))
    assert [found.partition(" ")[0] for found in reasons(off, settings())] == ["LoaderInfo", "no"]


def test_guests_that_the_host_doesnt_list_are_not_taken_for_off() -> None:
    facts = desktop(guests={"unlisted": "Connection refused"})
    assert reasons(facts, settings()) == ["Proxmox VE's API on the host gives no answer: Connection refused"]


# -- a card that comes back from a VM ---------------------------------------------------------------------------------
WORD = "homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8"
HAS = "name: Sandbox\nhostpci0: mapping=big,pcie=1"
HAS_IT = "VM 103 (Sandbox) has it (hostpci0: mapping=big,pcie=1)"
MAPPED = "big\n\tmap id=10de:2b85,node=pve,path=0000:01:00\n\tmap id=10de:2b85,node=pve2,path=0000:02:00\n"


def was_for_a_vm(
    lines: str = HAS, running: str = WORD, configured: str = WORD, *, ours: bool = True, **changes: Any
) -> HostFacts:
    """A card that this program's word binds, and VM 103."""
    usual: dict[str, Any] = {
        "devices": driven("vfio-pci"),
        "cmdline": cmdline(f"quiet {running}", f"quiet {configured}", "quiet"),
        "guests": {"running": [], "configs": [conf("vm", 103, lines)], "mappings": MAPPED},
        "cluster": {"node": "pve"},
        "ledger": vm_note(103, HAS, "hostpci0") if ours else {},
    }
    return desktop(**(usual | changes))


def to_be(use: str = "lxc", **changes: Any) -> Host:
    return settings({"big": {"match": "10de:2b85", "use": use}}, **changes)


@pytest.mark.parametrize(("running", "remarks"), [([103], 0), ([], 1)])
def test_a_card_that_a_running_vm_has_by_its_mapping_was_bound_by_nothing_unknown(
    running: list[int], remarks: int
) -> None:
    guests = asdict(was_for_a_vm().guests) | {"running": running}
    facts = was_for_a_vm(running="", configured="", ours=False, guests=guests)
    said = card_remarks.remarks(facts, to_be(), {"big": "0000:01:00"})
    assert len([line for line in said if "not by this program" in line]) == remarks


@pytest.mark.parametrize("use", ["lxc", "host"])
def test_a_card_goes_back_to_the_host_once_no_vm_names_it(use: str) -> None:
    """Two runs: the host restarts before anything is taken out of a VM."""
    (error,) = gates.check(was_for_a_vm(), to_be(use))[1]
    assert f"use: {use}" in error.wanted
    assert error.found.endswith(HAS_IT)
    assert error.next == (
        "first have it in gpus with use: vm, without a container, take it out of the VM's gpus, and run `pulumi up`, which takes out what it gave. "
        "Of a VM that has the card still: shut VM 103 (Sandbox) down, if it runs, and take the card out of it; note that line, which nothing else keeps: "
        "`qm set 103 --delete hostpci0`. After that set what you have set now: a second `pulumi up` restarts the host"
    )
    assert reasons(was_for_a_vm("name: Sandbox"), to_be(use)) == []


@rows(
    ("running", "configured", "closed"),
    [(WORD, WORD, True), (WORD, "", True), ("", WORD, True), ("", "", False), ("homelab.vfio=0000:01:00.0=10de:1", "", False)],
)  # fmt: skip
def test_homelabs_word_of_this_or_the_next_boot_counts(running: str, configured: str, closed: bool) -> None:
    """Without it, the host doesn't restart for the card; a container is refused it by its own plan."""
    assert bool(reasons(was_for_a_vm(running=running, configured=configured), to_be())) is closed


@rows(
    ("lines", "option", "deleted"),
    [
        ("name: g\nhostpci0: 0000:02:00\nhostpci1: 01:00,pcie=1", "hostpci1: 01:00,pcie=1", "hostpci1"),
        ("hostpci0: 01:00.0\nhostpci1: 01:00.1", "hostpci0: 01:00.0, hostpci1: 01:00.1", "hostpci0,hostpci1"),
        ("hostpci0: mapping=big", "hostpci0: mapping=big", "hostpci0"),
        # What it gets at its next start counts, and what it has until then.
        ("hostpci0: 02:00\n[PENDING]\nhostpci0: 01:00", "hostpci0: 01:00", "hostpci0"),
        ("hostpci0: 01:00\n[PENDING]\ndelete: hostpci0", "hostpci0: 01:00", "hostpci0"),
    ],
)
def test_a_card_that_the_user_gave_a_vm_is_taken_out_by_hand(lines: str, option: str, deleted: str) -> None:
    guests = {"running": [103], "configs": [conf("vm", 103, lines)], "mappings": MAPPED}
    (error,) = gates.check(was_for_a_vm(ours=False, guests=guests), to_be())[1]
    assert error.found.endswith(f"has it ({option})")
    assert f"`qm set 103 --delete {deleted}`" in error.next
    assert error.next.endswith("; then run `pulumi up` again"), error.next


def test_a_vm_of_each_kind_is_named_with_what_is_done_about_it() -> None:
    configs = [conf("vm", 103, HAS), conf("vm", 104, "name: gaming\nhostpci0: mapping=big")]
    (error,) = gates.check(was_for_a_vm(guests={"running": [], "configs": configs, "mappings": MAPPED}), to_be())[1]
    assert f"{HAS_IT}; VM 104 (gaming) has it (hostpci0: mapping=big)" in error.found
    assert error.next.index("takes out what it gave") < error.next.index("103 --delete")
    assert error.next.index("takes out what it gave") < error.next.index("104 --delete")


@pytest.mark.parametrize(("runs", "closed"), [([103], True), ([], False)])
def test_a_vm_has_the_card_as_long_as_it_runs_with_it(runs: list[int], closed: bool) -> None:
    """What Proxmox VE noted for a VM that was killed says nothing: there would be nothing to shut down, and nothing to take out."""
    noted = {"running": runs, "reservations": "0000:01:00.0 103 pid:4711\n"}
    guests = asdict(was_for_a_vm("name: Sandbox").guests) | noted
    found = [one.found for one in gates.check(was_for_a_vm(guests=guests), to_be())[1]]
    assert [one.endswith("VM 103 (Sandbox) has it (it runs with it)") for one in found] == [True] * closed


def test_a_mapping_that_is_another_card_here_is_no_reason() -> None:
    """The card is the mapping's on another node of the cluster."""
    elsewhere = asdict(was_for_a_vm().guests) | {"mappings": MAPPED.replace("node=pve,", "node=pve3,")}
    assert reasons(was_for_a_vm(guests=elsewhere), to_be()) == []


@rows(
    ("host", "facts", "closed"),
    [
        ({"nvidia": {"driver": "580"}}, {}, True),
        ({}, {"nvidia": {"version": "580.105.08"}}, True),
        # Of a host's only card: the driver isn't loaded as long as the VM has it.
        ({}, {"nvidia": {"installed": True, "trouble": ["the driver is installed and not loaded", ""]}}, True),
        # No driver that a restart would give it to: the VM has it until the run's end.
        ({}, {}, False),
        ({"nvidia": {"driver": "580"}}, {"lines": "name: Sandbox"}, False),
        ({"nvidia": {"driver": "580"}}, {"running": "", "configured": ""}, False),
    ],
)
def test_a_card_that_leaves_the_settings_for_nvidias_driver_leaves_its_vm_first(
    host: dict[str, Any], facts: dict[str, Any], closed: bool
) -> None:
    reading = was_for_a_vm(**facts)
    if not closed:
        assert plan.wanted(reading, settings({}, **host)).functions == {}
        return
    with pytest.raises(HomelabError) as error:
        raise_all(gates.check(reading, settings({}, **host))[1])
    assert error.value.next.startswith("first have it in gpus with use: vm, without a container, take it out of")
    assert "RTX 5090 [10de:2b85] at 0000:01:00" in error.value.wanted
    # What a name of the settings stands for, and isn't found, is no card that leaves them.
    with pytest.raises(HomelabError) as error:
        raise_all(gates.check(reading, settings({"big": {"match": "10de:2684"}}, **host))[1])
    assert "no card of gpus is it" not in str(error.value) and "graphics cards here" in str(error.value)


def test_a_card_that_is_still_in_the_settings_or_not_nvidias_doesnt_leave_its_vm_first() -> None:
    host = settings({"big": {"match": "10de:2b85"}}, nvidia={"driver": "580"})
    assert not [*holder_gates.left_with_vm(was_for_a_vm(), host, {"big": "0000:01:00"}, ["0000:01:00"])]
    ids = ("1002:744c", "030000"), ("1002:ab30", "040300")
    amd = [device(f"0000:01:00.{number}", *one, 16, driver="vfio-pci") for number, one in enumerate(ids)]
    word = "homelab.vfio=0000:01:00.0=1002:744c,0000:01:00.1=1002:ab30"
    facts = was_for_a_vm(running=word, configured=word, devices=amd)
    assert [user.vmid for user in facts.users_of("0000:01:00")] == [103]
    assert not [*holder_gates.left_with_vm(facts, settings({}, nvidia={"driver": "580"}), {}, ["0000:01:00"])]


@rows(
    ("onboot", "hooked", "use", "closed"),
    [
        ("1", [], "shared", True),
        ("1", [104], "shared", True),
        # It has the hookscript before the host restarts, which looks whether the card is free.
        ("1", [103], "shared", False),
        ("0", [], "shared", False),
        ("1", [], "vm", False),
    ],
)
def test_a_vm_started_at_boot_has_the_hookscript_before_the_handover(
    onboot: str, hooked: list[int], use: str, closed: bool
) -> None:
    host = to_be(use, nvidia={"driver": "580"})
    facts, cards = was_for_a_vm(f"{HAS}\nonboot: {onboot}"), {"big": "0000:01:00"}
    found = holder_gates.without_hook(facts, host, cards, {"big": hooked})
    assert [one.found.endswith(HAS_IT) for one in found] == [True] * closed
    never = was_for_a_vm(f"{HAS}\nonboot: {onboot}", running="", configured="")
    assert not [*holder_gates.without_hook(never, host, cards, {"big": hooked})]


def test_a_template_starts_never() -> None:
    assert reasons(was_for_a_vm("template: 1\nhostpci0: mapping=big", ours=False), to_be()) == []
    host = to_be("shared", nvidia={"driver": "580"})
    for line, found in (("template: 0", 1), ("template: 1", 0)):
        facts = was_for_a_vm(f"{HAS}\nonboot: 1\n{line}")
        assert len([*holder_gates.without_hook(facts, host, {"big": "0000:01:00"}, {})]) == found


@pytest.mark.parametrize(("state", "closed"), [("started", True), ("stopped", False), ("ignored", False)])
def test_ha_starts_a_vm_with_the_host_whatever_its_onboot(state: str, closed: bool) -> None:
    host = to_be("shared", nvidia={"driver": "580"})
    under = {"node": "pve", "ha": {"resources": f"vm: 103\n\tstate {state}\n"}}
    found = holder_gates.without_hook(was_for_a_vm(cluster=under), host, {"big": "0000:01:00"}, {})
    assert [one.found.endswith(HAS_IT) for one in found] == [True] * closed


@pytest.mark.parametrize("word", [WORD, "homelab.vfio=0000:01:00.1=10de:22e8"])
def test_a_card_that_somebody_elses_ids_bind_too_does_not_come_back_with_our_word(word: str) -> None:
    """takeOver binds it by our word as well; of a card that is half bound by hand, our word has the rest."""
    facts = was_for_a_vm(running=word, configured=word, vfio_files={"/etc/modprobe.d/vfio.conf": "10de:2b85"})
    error = gates.check(facts, to_be())[1][0]
    assert error.found == "0000:01:00.0 on vfio-pci, by /etc/modprobe.d/vfio.conf"
    assert "the host's driver would not get the card" in error.why and "take 10de:2b85 out there" in error.next
    # One that leaves the settings stays on vfio-pci, and its VM loses it at the run's end as without a driver.
    assert plan.wanted(facts, settings({}, nvidia={"driver": "580"})).functions == {}


def test_only_what_names_the_card_is_said_to_bind_it() -> None:
    files = {FILE: IDS, "/etc/modprobe.d/other.conf": "1022:15e3"}
    (found,) = reasons(bound_by_ids(vfio_files=files), to_be())
    assert found.endswith(f"on vfio-pci, by {FILE}")


def test_a_card_that_driverctl_binds_too_does_not_come_back_with_our_word() -> None:
    found = ["/etc/driverctl.d/pci-0000:01:00.0", "/etc/driverctl.d/pci-0000:09:00.0"]
    error = gates.check(was_for_a_vm(vfio_mentions=found), to_be())[1][0]
    assert error.found == "0000:01:00.0 on vfio-pci, by /etc/driverctl.d/pci-0000:01:00.0"
    assert error.next == (
        "`driverctl --noprobe unset-override 0000:01:00.0` while no VM runs with it, reboot, and run `pulumi up` again; or set gpus.big.use: vm"
    )
    assert plan.wanted(was_for_a_vm(vfio_mentions=found), settings({}, nvidia={"driver": "580"})).functions == {}
    # Another function of it may be bound by its id.
    by_id: dict[str, Any] = {"vfio_files": {"/etc/modprobe.d/vfio.conf": "10de:22e8"}}
    error = gates.check(was_for_a_vm(vfio_mentions=found, **by_id), to_be())[1][0]
    assert error.found == (
        "0000:01:00.0, 0000:01:00.1 on vfio-pci, by /etc/modprobe.d/vfio.conf, /etc/driverctl.d/pci-0000:01:00.0"
    )
    assert error.next.startswith(
        "take 10de:22e8 out there, `update-grub`, `update-initramfs -u -k all`, "
        "`driverctl --noprobe unset-override 0000:01:00.0` while no VM runs with it, reboot"
    )


def test_a_word_with_ids_that_is_gone_from_the_next_boot_keeps_no_card() -> None:
    """Who has set takeOver takes it away, and the card comes back with this run's restart."""
    facts = was_for_a_vm(running=f"vfio-pci.ids=10de:2b85,10de:22e8 {WORD}")
    with pytest.raises(HomelabError, match=r"VM 103 \(Sandbox\) has it"):
        raise_all(gates.check(facts, settings({}, nvidia={"driver": "580"}))[1])
    lines = dataclasses.asdict(facts.cmdline) | {"others": "quiet vfio-pci.ids=10de:2b85,10de:22e8"}
    assert plan.wanted(was_for_a_vm(cmdline=lines), settings({}, nvidia={"driver": "580"})).functions == {}


# -- what can't be read ------------------------------------------------------------------------------------------
UNREADABLE = "/etc/pve/lxc/901.conf: it is no file"


@pytest.mark.parametrize("use", ["vm", "host", "lxc"])
def test_a_file_that_cant_be_read_closes_the_gate_for_each_card(use: str) -> None:
    error = next(one for one in gates.check(desktop(unreadable=[UNREADABLE]), to_be(use))[1] if one.found == UNREADABLE)
    assert "could look free" in error.why and "pve-cluster" in error.next


def test_after_the_reboot_it_is_no_proof_either() -> None:
    host = settings()
    wanted = plan.wanted(desktop(), host)
    assert [one.found for one in plan.verify(desktop(unreadable=[UNREADABLE]), host, wanted)][0] == UNREADABLE


@pytest.mark.parametrize(
    ("driver", "minors", "closed"),
    [("nvidia", {}, True), ("nvidia", {"0000:02:00.0": 0}, False), ("nouveau", {}, False)],
)
def test_a_card_whose_number_the_driver_doesnt_tell_may_be_any(
    driver: str, minors: dict[str, int], closed: bool
) -> None:
    guests = {"running": [901], "configs": [conf("lxc", 901, "dev0: /dev/nvidia0")]}
    facts = desktop(devices=driven(driver, "0000:01:00.0"), nvidia_minors=minors, guests=guests)
    errors = [*gates.containers(facts, "rtx5090", settings().gpus["rtx5090"], "0000:01:00")]
    assert bool(errors) is closed


# -- a card that ids bind by hand, and that stays with the host -----------------------------------------------------------
IDS = "10de:2b85,10de:22e8"
FILE = "/etc/modprobe.d/vfio.conf"


def bound_by_ids(
    *more: dict[str, Any], ids: str = IDS, file: str = FILE, words: str = "quiet", **changes: Any
) -> HostFacts:
    """By a file of somebody's, and words of somebody's; ``more``: other devices."""
    lines = cmdline(f"ro {words}", words)
    usual = {"vfio_files": {file: ids} if ids else {}, "cmdline": lines, "devices": [*driven("vfio-pci"), *more]}
    return desktop(**(usual | changes))


SOUND = device("0000:0c:00.0", "1022:15e3", "040300", 21, driver="vfio-pci")
UNBOUND = device("0000:0c:00.0", "1022:15e3", "040300", 21, driver="snd_hda_intel")
TWIN = {**gpu("0000:03:00", 18)[0], "driver": "vfio-pci"}


@rows(("case", "facts", "word"), [
    ("by a file", bound_by_ids(), "vfio-pci.ids="),
    ("by words", bound_by_ids(ids="", words=f"quiet vfio-pci.ids={IDS}"), "vfio-pci.ids="),
    ("with a device that stays there", bound_by_ids(SOUND, ids=f"1022:15E3,{IDS}"), "vfio-pci.ids=1022:15e3"),
    ("by words, with a device that stays there",
        bound_by_ids(SOUND, ids="", words=f"quiet vfio-pci.ids=1022:15e3,{IDS}"),
        "vfio-pci.ids=1022:15e3",
    ),
    ("by words, with one that they had no effect on",
        bound_by_ids(UNBOUND, ids="", words=f"quiet vfio-pci.ids=1022:15e3,{IDS}"),
        "vfio-pci.ids=",
    ),
    ("with another card, which can be plugged in",
        bound_by_ids(device("0000:03:00.0", "10de:2684", "030000", 18, driver="vfio-pci", removable=True), ids=f"{IDS},10de:2684"),
        "vfio-pci.ids=10de:2684",
    ),
    ("where it can be plugged in itself", bound_by_ids(devices=[{**one, "driver": "vfio-pci", "removable": True} for one in gpu()]), "vfio-pci.ids="),
    ("with one that isn't there", bound_by_ids(ids=f"{IDS},10de:2803"), "vfio-pci.ids=10de:2803"),
    ("with one that the ids had no effect on", bound_by_ids(UNBOUND, ids=f"1022:15e3,{IDS}"), "vfio-pci.ids="),
    ("with every card of NVIDIA's", bound_by_ids(ids=f"10de:ffffffff:ffffffff:ffffffff:00030000:ffff00ff,{IDS}"), "vfio-pci.ids="),
])  # fmt: skip
def test_a_word_takes_a_card_that_stays_from_the_ids_of_others(case: str, facts: HostFacts, word: str) -> None:
    (error,) = gates.check(facts, to_be())[1]
    assert error.next.startswith("set takeOver: true for the host")
    assert "driverctl" not in error.next and "`update-grub`, `update-initramfs -u -k all`, " in error.next
    assert card_remarks.remarks(facts, to_be(), {"big": "0000:01:00"}) == []
    want = plan.wanted(facts, to_be(takeOver=True))
    assert (want.vfio_words, want.functions) == (word, {})
    assert any(
        "counts instead, until `pulumi destroy`" in said
        for said in card_remarks.remarks(facts, to_be(takeOver=True), {"big": "0000:01:00"})
    )
    # The same once it has been started with, and nothing for a card that a VM gets.
    assert plan.wanted(started_with(facts, word, at01="nvidia"), to_be(takeOver=True)).vfio_words == word
    assert "vfio-pci.ids" not in plan.wanted(facts, to_be("vm", takeOver=True)).vfio_words


NOT_TAKEN_BACK: dict[str, tuple[HostFacts, str]] = {
    "driverctl": (bound_by_ids(vfio_mentions=["/etc/driverctl.d/pci-0000:01:00.0"]), "driverctl puts it there"),
    "options of initramfs-tools": (bound_by_ids(file="/etc/initramfs-tools/modules"), "come later than any word"),
    "another card of the same ids, which can be plugged in": (bound_by_ids({**TWIN, "removable": True}), "give 0000:03:00.0 to vfio-pci"),
    "a word that hasn't helped": (
        bound_by_ids(cmdline=cmdline("ro quiet vfio-pci.ids=", "quiet vfio-pci.ids=", "quiet")),
        "hasn't helped",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_TAKEN_BACK)
def test_what_a_word_cannot_take_back_is_refused_with_the_way_by_hand(case: str) -> None:
    facts, said = NOT_TAKEN_BACK[case]
    host = settings({"big": {"match": "10de:2b85", "address": "01:00", "use": "lxc"}}, takeOver=True)
    (error,) = gates.check(facts, host)[1]
    assert said in error.found and "takeOver" not in error.next and "reboot, and run `pulumi up` again" in error.next


def test_nothing_more_is_said_of_a_card_that_is_refused_or_that_homelab_binds() -> None:
    slots = {"big": "0000:01:00"}
    for facts in (bound_by_ids(), was_for_a_vm(), desktop()):
        remarks = [
            remark for host in (to_be(), to_be(takeOver=True)) for remark in card_remarks.remarks(facts, host, slots)
        ]
        assert [remark for remark in remarks if "counts instead" not in remark] == []
    for facts, _ in NOT_TAKEN_BACK.values():
        remarks = card_remarks.remarks(facts, to_be(), slots)
        assert "without effect so far" not in "".join(remarks) and "counts instead" not in "".join(remarks)


DRIVERCTL = "/etc/driverctl.d/pci-0000:01:00.0"


@rows(
    ("case", "found", "said"),
    [
        ("a file", {"vfio_files": {FILE: IDS}}, "takeOver: true for the host keeps it with the host"),
        ("driverctl", {"vfio_mentions": [DRIVERCTL]}, "take that out there"),
        (
            "both",
            {"vfio_files": {FILE: IDS}, "vfio_mentions": [DRIVERCTL]},
            "take that out there",
        ),
    ],
)
@rows("driver", ["nvidia", "nouveau"])
def test_what_names_a_card_that_stays_without_effect_so_far_is_said(
    case: str, found: dict[str, Any], said: str, driver: str
) -> None:
    facts = desktop(devices=[{**one, "driver": driver} for one in gpu()], **found)
    for host, sentences in ((to_be(), 1), (to_be("vm"), 0), (to_be(takeOver=True), "driverctl" in str(found))):
        slots, errors = gates.check(facts, host)
        remarks = [
            one for one in card_remarks.remarks(facts, host, slots) if "for vfio-pci, without effect so far" in one
        ]
        assert (errors, len(remarks)) == ([], sentences) and all(one.endswith(said) for one in remarks)


@rows(
    ("found", "refused"),
    [
        ({"module_lines": ["/etc/modprobe.d/nvidia-blacklist.conf: install nvidia /bin/false"]}, True),
        ({"module_lines": ["/etc/modprobe.d/b.conf: alias nvidia off"]}, True),
        ({"module_lines": ["/etc/modprobe.d/b.conf: alias nouveau off"]}, False),
        ({"module_lines": ["/etc/modprobe.d/b.conf: blacklist nvidia"]}, False),  # loaded by its name
        ({"module_lines": ["/etc/modprobe.d/b.conf: install nvidia_drm /bin/false"]}, False),
        ({"module_lines": ["/etc/modprobe.d/b.conf: install nvidia modprobe -i nvidia-current $CMDLINE_OPTS"]}, False),
        ({"words": "quiet module_blacklist=nouveau,nvidia"}, True),
        ({"words": "quiet module_blacklist=nvidiafb modprobe.blacklist=nvidia"}, False),
    ],
)
def test_a_driver_that_can_never_be_loaded_is_not_installed(found: dict[str, Any], refused: bool) -> None:
    facts = bound_by_ids(ids="", **found)
    errors = gates.loadable(facts, settings({}, nvidia={"driver": "580"}))
    assert [error.next.startswith("take nvidia out there") for error in errors] == [True] * refused
    assert not [*gates.loadable(facts, settings({}))]


@rows(
    ("found", "refused"),
    [
        ({"module_lines": ["/etc/modprobe.d/b.conf: install vfio-pci /bin/false"]}, True),
        ({"module_lines": ["/usr/lib/modprobe.d/b.conf: alias vfio_iommu_type1 off"]}, True),
        ({"module_lines": ["/etc/modprobe.d/b.conf: blacklist vfio-pci"]}, False),  # loaded by its name
        ({"module_lines": ["/etc/modprobe.d/b.conf: install vfio-pci modprobe -i vfio-pci"]}, False),
        ({"words": "quiet module_blacklist=nouveau,vfio_pci"}, True),
        ({"words": "quiet module_blacklist=vfio_platform"}, False),
    ],
)
def test_a_card_isnt_given_to_a_module_that_can_never_be_loaded(found: dict[str, Any], refused: bool) -> None:
    facts = bound_by_ids(ids="", **found)
    errors = gates.check(facts, settings())[1]
    assert [error.next.startswith("take vfio out there") for error in errors] == [True] * refused
    assert not [*gates.loadable(facts, settings({"gpu": {"match": "10de:2b85", "use": "host"}}))]


def test_a_word_against_the_driver_counts_until_the_next_boot() -> None:
    facts = bound_by_ids(ids="", cmdline=cmdline("ro quiet module_blacklist=nvidia", "quiet"))
    (error,) = gates.loadable(facts, settings({}, nvidia={"driver": "580"}))
    assert error.found == "module_blacklist=nvidia on the kernel command line"
    assert "`update-grub`, and a reboot" in error.next


def started_with(facts: HostFacts, word: str, **drivers: str) -> HostFacts:
    """``drivers``: by the device's slot, without its domain's and bus's colons."""
    lines = dataclasses.asdict(facts.cmdline)
    lines |= {"running": f"{lines['running']} {word}", "configured": f"{lines['configured']} {word}"}
    devices = [asdict(one) for one in facts.devices]
    devices = [one | {"driver": drivers.get("at" + one["address"][5:7], one["driver"])} for one in devices]
    return parse(asdict(facts) | {"cmdline": lines, "devices": devices})


def test_a_card_left_to_the_ids_is_released_by_the_next_word() -> None:
    other = device("0000:03:00.0", "10de:2684", "030000", 18, driver="vfio-pci")
    facts = bound_by_ids(other, ids=f"{IDS},10de:2684")
    cards = {"big": {"match": "10de:2b85", "use": "lxc"}, "other": {"match": "10de:2684"}}
    word = plan.wanted(facts, settings(cards, takeOver=True)).vfio_words
    assert word == "homelab.vfio=0000:03:00.0=10de:2684 vfio-pci.ids=10de:2684"
    started = started_with(facts, word, at01="nvidia")
    assert plan.wanted(started, settings(cards, takeOver=True)).vfio_words == word
    cards["other"]["use"] = "host"
    assert plan.wanted(started, settings(cards, takeOver=True)).vfio_words == "vfio-pci.ids="
    # It has had its turn then.
    (error,) = gates.check(started_with(facts, "vfio-pci.ids=", at01="nvidia"), settings(cards, takeOver=True))[1]
    assert "0000:03:00.0 on vfio-pci" in error.found and "hasn't helped" in error.found


def test_a_card_that_was_taken_back_is_not_lost_again_without_the_yes() -> None:
    started = started_with(bound_by_ids(), "vfio-pci.ids=", at01="nvidia")
    (error,) = gates.check(started, to_be())[1]
    assert f"on vfio-pci from the next start on, by {FILE}" in error.found and "set takeOver: true" in error.next
    half = [
        one | ({"driver": "vfio-pci"} if one["address"] == "0000:01:00.0" else {}) for one in asdict(started)["devices"]
    ]
    half_returned = parse(asdict(started) | {"devices": half})
    assert reasons(half_returned, to_be())[0].startswith("0000:01:00.0, 0000:01:00.1 on vfio-pci")
    # With it, the other half stays with the host's driver at the next start, too.
    assert reasons(half_returned, to_be(takeOver=True))[0].startswith(f"0000:01:00.0 on vfio-pci, by {FILE}; ")
    assert reasons(started_with(bound_by_ids(ids=""), "vfio-pci.ids=", at01="nvidia"), to_be()) == []
    assert reasons(started, to_be("vm")) == reasons(started, to_be(takeOver=True)) == []
    # The next word releases what homelab binds itself, and what its running word names.
    for word in (f"{WORD} vfio-pci.ids=", f"vfio-pci.ids={IDS}"):
        assert reasons(started_with(bound_by_ids(), word), to_be(takeOver=True)) == []


def test_a_vm_that_runs_with_another_device_changes_no_word() -> None:
    facts = bound_by_ids(UNBOUND, ids=f"1022:15e3,{IDS}")
    started = started_with(facts, "vfio-pci.ids=", at01="nvidia", at0c="vfio-pci")
    assert plan.wanted(started, to_be(takeOver=True)).vfio_words == "vfio-pci.ids="


def test_of_two_cards_with_the_same_ids_one_stays_and_one_is_bound() -> None:
    two = {
        "big": {"match": "10de:2b85", "address": "01:00", "use": "lxc"},
        "other": {"match": "10de:2b85", "address": "03:00"},
    }
    (error,) = gates.check(bound_by_ids({**TWIN, "removable": True}), settings(two, takeOver=True))[1]
    assert "give 0000:03:00.0 to vfio-pci, which can be plugged in later" in error.found
    want = plan.wanted(bound_by_ids(TWIN), settings(two, takeOver=True))
    assert want.vfio_words.split()[-1] == "vfio-pci.ids=" and "homelab.vfio=0000:03:00.0=10de:2b85" in want.vfio_words


def test_a_twin_that_no_card_of_the_settings_is_stays_where_the_same_ids_have_put_it() -> None:
    """A word names it by its address, as long as the other one is taken from the ids."""
    host = settings({"big": {"match": "10de:2b85", "address": "01:00", "use": "lxc"}}, takeOver=True)
    facts, word = bound_by_ids(TWIN), "homelab.vfio=0000:03:00.0=10de:2b85 vfio-pci.ids="
    want = plan.wanted(facts, host)
    assert (want.vfio_words, want.functions) == (word, {})
    (remark,) = (said for said in card_remarks.remarks(facts, host, {"big": "0000:01:00"}) if "counts instead" in said)
    assert remark == snapshot(
        "gpus.big: 0000:01:00.0, 0000:01:00.1 is on vfio-pci by /etc/modprobe.d/vfio.conf: from the next start on vfio-pci.ids= on the kernel command line counts instead, until `pulumi destroy`; nothing else is changed there; 0000:03:00.0, which the same ids name, stays on vfio-pci by homelab.vfio="
    )
    started = started_with(facts, word, at01="nvidia")
    assert plan.wanted(started, host).vfio_words == word
    assert card_remarks.remarks(started, host, {"big": "0000:01:00"}) == []
    # One that the ids have had no effect on isn't bound now.
    assert plan.wanted(bound_by_ids({**TWIN, "driver": "nouveau"}), host).vfio_words == "vfio-pci.ids="
    # The settings name the card no more, or the file names none: no word is left.
    assert plan.wanted(started, settings({}, takeOver=True)).vfio_words == ""
    assert plan.wanted(started_with(bound_by_ids(TWIN, ids=""), word, at01="nvidia"), host).vfio_words == ""


def test_a_vm_that_has_a_card_by_hand_loses_it_before_ids_do() -> None:
    guests = {"running": [], "configs": [conf("vm", 103, "name: Sandbox\nhostpci0: 0000:01:00,pcie=1,x-vga=1")]}
    (error,) = gates.check(bound_by_ids(guests=guests, cluster={"node": "pve"}), to_be(takeOver=True))[1]
    assert "hostpci0: 0000:01:00,pcie=1,x-vga=1" in error.found and "note that line" in error.next
