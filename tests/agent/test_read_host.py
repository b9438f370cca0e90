"""A reading: what the kernel says of cards, cards that are gone, how they are reset and sleep, nodes, boot partitions, guests; whatever bytes a host holds."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from homelab.facts import kernel_log
from homelab.facts.host import HostFacts
from remote_scripts.both.read_host import Wanted
from remote_scripts.notes.owed import UNKNOWN
from remote_scripts.reading import cards
from remote_scripts.tools import run
from remote_scripts.tools.done import TIMED_OUT, Done
from remote_scripts.tools.run import Stand
from remote_scripts.tools.system import System
from tests.agent import api_kit, reading_kit
from tests.agent.kit import Host, command
from tests.agent.reading_kit import host as host
from tests.agent.reading_kit import link, read, says

LOG = """\
[ 1.0] NVRM: loading NVIDIA UNIX Open Kernel Module
[ 2.0] usb 1-1: new device
[ 3.0] vfio-pci 0000:01:00.0: Unable to change power state from D3cold to D0, device inaccessible
"""
ONES = b"\xff" * 64
CARD = "0000:01:00.0"
SIGNS = kernel_log.filter_of_lines()


def test_the_lines_that_matter_are_passed_on_from_the_journal_of_this_boot(host: Host) -> None:
    def journalctl(arguments: Sequence[str], _stdin: bytes) -> Done:
        return Done(0 if {"-k", "-b"} <= {*arguments} else 1, LOG.encode())

    host.programs["journalctl"] = journalctl
    assert read(host, signs=SIGNS).kernel_log.splitlines() == LOG.splitlines()[::2]
    assert read(host).kernel_log == ""


def test_without_a_journal_it_is_what_dmesg_still_has(host: Host) -> None:
    host.programs["dmesg"] = says(LOG)
    assert len(read(host, signs=SIGNS).kernel_log.splitlines()) == 2


def test_of_a_flood_of_lines_head_and_tail_are_passed_on(host: Host) -> None:
    flood = "[{}.0] vfio-pci 0000:01:00.0: not ready {}ms after FLR; giving up\n[{}.0] DMAR: line {}\n"
    host.programs["journalctl"] = says("".join(flood.format(n, n, n, n) for n in range(1, 3001)))
    found = read(host, signs=SIGNS)
    for text, most in ((found.kernel_log, 1000), (found.iommu.kernel_log, 40)):
        lines = text.splitlines()
        assert len(lines) == most + 1 and lines[0].startswith("[1.0]") and lines[-1].startswith("[3000.0]")
        assert "lines are left out here" in lines[most // 2]


# -- guests --------------------------------------------------------------------------------------------------------
def test_somebodys_copy_of_a_configuration_is_no_guest(host: Host) -> None:
    for name in ("103", "103-old", "010", "notes"):
        host.write(f"etc/pve/qemu-server/{name}.conf", "name: Sandbox\n")
    host.write("etc/pve/lxc/901.bak.conf", "hostname: ai-lab\n")
    host.write("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: Unknown\n")
    facts = read(host)
    assert [config.id for config in facts.guests.configs] == [103]
    assert facts.nvidia_minors == {}


def test_a_configuration_that_cant_be_read_hides_no_other_one(host: Host) -> None:
    (host.root / "etc/pve/qemu-server/104.conf").mkdir(parents=True)
    host.write("etc/pve/qemu-server/105.conf", "hostpci0: 0000:01:00.0")
    assert {config.id: config.lines for config in read(host).guests.configs}[105] == "hostpci0: 0000:01:00.0"


ARGS = """\
args: -cpu host,kvm=off -object secret,id=s,data=verySecret -device vfio-pci,host=01:00.0,x-vga=on \
-device '{"driver":"vfio-pci","host":"0000:02:00.0"}' -device vfio-pci,sysfsdev=/sys/bus/pci/devices/0000:03:00.1
"""


def test_what_qemu_is_given_past_proxmox_ve_is_known_and_no_secret_with_it(host: Host) -> None:
    host.write("etc/pve/qemu-server/103.conf", ARGS)
    host.write("etc/pve/qemu-server/104.conf", "args: -cpu host,kvm=off -netdev socket,host=10.0.0.1\n")
    by_id = {config.id: config for config in read(host).guests.configs}
    assert by_id[103].by_args == {"0000:01:00.0", "0000:02:00.0", "0000:03:00.1"}
    assert "verySecret" not in by_id[103].lines and by_id[104].lines == ""


@pytest.mark.parametrize(
    ("device", "addresses"),
    [
        ("host=10000:01:00.0", {"10000:01:00.0"}),  # behind Intel's Volume Management Device
        ("sysfsdev=/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0,x-vga=on", {CARD}),
        ("sysfsdev=/sys/bus/pci/devices/10000:01:00.0", {"10000:01:00.0"}),
        ("sysfsdev=/sys/bus/pci/devices/0000:01:00.0/,x-vga=on", {CARD}),
        ("sysfsdev=/sys/devices/pci0000:00/0000:00:02.0/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", set()),  # a mediated one
    ],
)
def test_however_qemu_is_told_a_function_it_is_known(host: Host, device: str, addresses: set[str]) -> None:
    host.write("etc/pve/qemu-server/103.conf", f"args: -device vfio-pci,{device} -netdev socket,host=10.0.0.1:22.2\n")
    assert read(host).guests.configs[0].by_args == addresses


def test_a_line_in_brackets_that_is_no_section_hides_no_card(host: Host) -> None:
    """As Proxmox VE takes it (parse_vm_config before qemu-server 8.3.7, parse_pct_config)."""
    text = "name: a\n[a note of mine]\nhostpci0: 01:00\n[2]\nargs: -x\n[old]\nhostpci1: 02:00\n"
    host.write("etc/pve/qemu-server/103.conf", text)
    host.write("etc/pve/lxc/901.conf", "[a note of mine]\ndev0: /dev/nvidia0\n[old]\ndev1: /dev/nvidia1\n")
    by_id = {config.id: config for config in read(host).guests.configs}
    assert by_id[103].values == {"name": "a", "hostpci0": "01:00"}
    assert [entry.path for entry in by_id[901].container.entries] == ["/dev/nvidia0"]


def test_no_arguments_of_hooks_are_passed_on(host: Host) -> None:
    hook = "lxc.hook.mount: /usr/share/lxc/hooks/nvidia --token verySecret"
    host.write("etc/pve/lxc/901.conf", f"lxc.hook.start-host: /root/nvidia.sh --token verySecret\n[before]\n{hook}\n")
    assert "verySecret" not in read(host).guests.configs[0].lines


def test_a_containers_note_leaves_its_configuration_on_the_host(host: Host) -> None:
    """It may hold passwords."""
    host.write("/etc/pve/homelab/lxc-901", '{"owner": "p/s/ai", "text": "lxc.environment: DB_PASSWORD=verySecret"}')
    host.write("/etc/pve/homelab/lxc-902", "no note")
    host.write("/etc/pve/homelab/lxc-903", "[1]")
    host.write("/etc/pve/homelab/qemu-103", '{"owner": "p/s/vm"}')
    host.write("/var/lib/homelab/ledger/mapping/pve/gpu", "{}")
    facts = read(host)
    assert facts.ledger == {
        "mapping/pve/gpu": "{}",
        "lxc-901": '{"owner": "p/s/ai", "text": ""}',
        "lxc-902": "{}",
        "lxc-903": "{}",
        "qemu-103": '{"owner": "p/s/vm"}',
    }
    assert "verySecret" not in repr(facts)


def test_guests_that_run_are_told_by_their_ids(host: Host) -> None:
    api_kit.runs(host, {103: "Sandbox", 105: "VM 105"}, {901: "ai-lab"})
    assert read(host).guests.running == {103, 105, 901}


def test_guests_that_are_not_listed_are_not_said_to_be_off(host: Host) -> None:
    api_kit.says_nothing(host)
    found = read(host).guests
    assert found.unlisted == "no ticket of root@pam is made: no quorum!" and not found.running
    del host.programs["qm"]
    assert read(host).guests.unlisted == ""


@pytest.mark.parametrize("section", ["[PENDING]", "[pending] "])
def test_a_card_that_a_vm_gets_at_its_next_start_is_told_and_a_snapshots_is_not(host: Host, section: str) -> None:
    text = f"hostpci0: 01:00\nhookscript: local:snippets/x.pl\nargs: -x\n\n[before]\nhostpci2: 03:00\n\n{section}\ndelete: balloon\nhostpci1: 02:00\n\n[after]\nhostpci3: 04:00\n"
    host.write("/etc/pve/qemu-server/103.conf", text)
    host.write("/etc/pve/qemu-server/104.conf", f"name: idle\n\n{section}\ndelete: hostpci0\n")
    host.write("/etc/pve/qemu-server/105.conf", f"args: -x\n{section}\nhostpci0: 01:00\n")
    told = {one.id: one.lines for one in read(host).guests.configs}
    assert told[103].splitlines() == [
        "hostpci0: 01:00",
        "hookscript: local:snippets/x.pl",
        "[PENDING]",
        "delete: balloon",
        "hostpci1: 02:00",
    ]
    assert (told[104], told[105]) == ("name: idle\n[PENDING]\ndelete: hostpci0", "[PENDING]\nhostpci0: 01:00")


def test_all_that_waits_for_a_vms_next_start_is_named_without_secrets(host: Host) -> None:
    mark = "#Created by Pulumi%3A p/s/dev 0123456789abcdef"
    waits = "cipassword: secret-1\ncores: 4\nargs: -fw_cfg secret-2\nmemory: 4096\ndelete: cpu,!tags\n#secret-3: x\nno option"
    host.write("/etc/pve/qemu-server/103.conf", f"#secret\n{mark}\ncores: 2\n[PENDING]\n{waits}\n[snap]\nsockets: 2\n")
    (config,) = (one for one in read(host).guests.configs if one.id == 103)
    assert sorted(config.waiting) == ["args", "cipassword", "cores", "cpu", "memory", "tags"]
    assert "secret" not in config.lines and config.waiting["memory"] == "4096"
    assert config.described["description"] == "Created by Pulumi: p/s/dev 0123456789abcdef"


def test_of_a_container_the_lines_about_devices_and_disks_are_passed_on_and_no_others(host: Host) -> None:
    lines = [
        "#Created by Pulumi%3A p/s/ai 0123456789abcdef",
        "mp0: local-lvm:vm-901-disk-1,mp=/x",
        "hostname: ai",
        "lxc.mount.entry = /dev dev none bind",
        "lxc.mount.entry: /usr/bin/nvidia-smi usr/bin/nvidia-smi none bind",
        "[pve:pending]",
        "dev0: /dev/nvidia0",
    ]
    others = ["lxc.environment: A=secret", "lxc.mount.entry: //srv/media srv/media cifs password=secret"]
    others.append("#secret")
    host.write("etc/pve/lxc/901.conf", "\n".join([*others, *lines, ""]))
    assert read(host).guests.configs[0].lines.splitlines() == lines


@pytest.mark.parametrize("services", ["", "vm: 103\n\tstate started"])
def test_what_ha_goes_by_is_read_where_it_has_a_service(host: Host, services: str) -> None:
    host.write("/etc/pve/ha/resources.cfg", services)
    host.write("/etc/pve/ha/manager_status", '{"service_status":{}}')
    found = read(host).cluster.ha
    assert (found.resources, found.status) == (services, '{"service_status":{}}' if services else "")


@pytest.mark.parametrize(
    ("said", "quorate"),
    [
        ("Quorate:          Yes\n", True),
        ("Quorate:          No\n", False),
        ("Cannot initialize QUORUM service\n", False),
    ],
)
def test_whether_a_nodes_configuration_can_be_written_is_asked(host: Host, said: str, quorate: bool) -> None:
    """Where corosync is off there is nothing to mend in /etc/pve, which can be read."""
    host.write("etc/pve/corosync.conf", "totem {\n  cluster_name: home\n}\n")
    host.write("etc/pve/nodes/pve2/qemu-server/203.conf", "")
    link(host, "etc/pve/local", "etc/pve/nodes/pve1")
    (host.root / "etc/pve/qemu-server").mkdir()
    host.programs["pvecm"] = says(said, 2)
    found = read(host)
    assert (found.cluster.quorate, found.unreadable) == (quorate, [])
    assert (found.cluster.node, found.cluster.name) == ("pve1", "home")
    assert found.cluster.places == "pve2/qemu-server/203.conf"


def test_what_somebody_has_written_about_cards_drivers_is_read(host: Host) -> None:
    host.write("/etc/modprobe.d/pve-blacklist.conf", "# nvidiafb see bugreport\nblacklist nvidiafb\nblacklist nvidia\n")
    host.write("/etc/modprobe.d/homelab-nvidia.conf", "blacklist nouveau\n")
    host.write("/etc/modprobe.d/zfs.conf", "options zfs zfs_arc_max=1\n")
    others = "blacklist snd_hda_intel\noptions kvm ignore_msrs=1\nblacklist pcspkr\n"
    host.write("/etc/modprobe.d/own.conf", f"# by hand\n  install  nvidia /bin/false\n{others}")
    host.write("/etc/modprobe.d/own.conf.bak", "blacklist nvidia\n")
    host.write("/etc/modprobe.d/off.conf", "alias vfio-pci off\nalias netdev-eth0 e1000\n")
    assert read(host).module_lines == [
        "/etc/modprobe.d/off.conf: alias vfio-pci off",
        "/etc/modprobe.d/own.conf: install nvidia /bin/false",
    ]


def test_guests_that_are_owed_a_start_are_named_but_those_of_a_restart_that_is_yet_to_come(host: Host) -> None:
    host.write("/proc/sys/kernel/random/boot_id", "1\n")
    about = {"program": "qm", "identity": "", "known": []}
    debts = [
        about | {"guest": 103, "name": "VM 103 (a)", "why": "restart", "boot": "1"},
        about | {"guest": 104, "name": "VM 104 (b)", "why": "restart", "boot": "0", "waits": UNKNOWN},
        about | {"guest": 105, "name": "VM 105 (c)", "why": "change", "boot": "1", "waits": "it is locked, backup"},
    ]
    host.write("/var/lib/homelab/owed", json.dumps({"debts": debts}))
    assert [(one.said[:10], one.is_lost) for one in read(host).owed] == [("VM 104 (b)", True), ("VM 105 (c)", False)]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        *((one, f"is on its way to or from VM 103 ({one})") for one in ("DRAINING", "DETACHED", "RETURNING")),
        ("VM", "is with VM 103"),
        *((one, f"is {one} after VM 103") for one in ("STUCK", "DEAD")),
        ("HELD", ""),
    ],
)
def test_where_a_card_that_is_handed_over_is_says_each_state_that_is_noted(host: Host, state: str, words: str) -> None:
    host.write("/proc/sys/kernel/random/boot_id", "1\n")
    note = {"state": state, "vm": "103", "boot": "1", "since": 1700000000}
    host.write("/var/lib/homelab/handover/big.state", json.dumps(note))
    found = read(host)
    said = f"gpus.big {words} since 2023-11-1" if words else ""
    assert found.unreadable == [] and found.handover.away.startswith(said)
    assert bool(found.handover.away) == bool(words)


# -- the host --------------------------------------------------------------------------------------------------------
def test_the_versions_of_what_decides_about_cards_and_containers_are_read(host: Host) -> None:
    host.programs["dpkg-query"] = says("pve-manager installed 9.1.1\nlxc-pve installed 6.0.5-3\nx config-files 1\n")
    found = read(host)
    assert found.packages == {"pve-manager": "9.1.1", "lxc-pve": "6.0.5-3"} and found.pve == "9.1.1"
    host.programs["dpkg-query"] = says("pve-manager half-configured 9.1.1\n")
    assert read(host).pve == "unknown"
    del host.programs["pveversion"]
    assert read(host).pve == ""


@pytest.mark.parametrize(("value", "allowed"), [("Y", True), ("N", False), (None, False)])
def test_that_vfio_may_go_without_interrupt_remapping_is_read(host: Host, value: str | None, allowed: bool) -> None:
    if value:
        host.write("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", f"{value}\n")
    assert read(host).unsafe_interrupts is allowed


def test_what_proxmox_boot_tool_warns_of_is_passed_on(host: Host) -> None:
    host.write("etc/kernel/proxmox-boot-uuids", "AAAA-0001\n")
    warning = "WARN: /dev/disk/by-uuid/AAAA-0002 does not exist"
    host.programs["proxmox-boot-tool"] = says(f"AAAA-0001 is configured with: grub (versions: 6.8)\n{warning}\n")
    assert read(host).boot_warnings == warning


def test_ids_are_found_wherever_somebody_has_set_them(host: Host) -> None:
    host.write(
        "etc/modprobe.d/a.conf",
        "# options vfio-pci ids=1:1\nsoftdep nvidia pre: vfio-pci\n"
        'options vfio_pci disable_vga=1 ids="10de:1,10DE:2"\n'
        "options vfio-pci \\\n  ids=10de:3\noptions vfio-pci-core ids=1:1\nvfio-pci ids=1:1\n",
    )
    host.write("etc/modprobe.d/b.conf", "options vfio-pci disable_idle_d3=1\n  options  vfio-pci ids=10de:4")
    host.write("etc/modprobe.d/b.conf.bak", "options vfio-pci ids=1:1\n")
    host.write("etc/modprobe.d/c.conf", b"options vfio-pci \\\r\nids=10de:5\r\n")
    host.write("etc/initramfs-tools/modules", "# vfio_pci ids=1:1\nvfio\nvfio_pci ids=10de:6\n")
    # Of each name the first folder's file counts (libkmod/libkmod.c, default_config_paths).
    for number, folder in enumerate(("run", "usr/local/lib", "usr/lib"), 7):
        for name in ("a", "d", folder.rpartition("/")[2]):
            host.write(f"{folder}/modprobe.d/{name}.conf", f"options vfio-pci ids=10de:{number}\n")
    host.write("usr/lib/modprobe.d/masked.conf", "options vfio-pci ids=1:1\n")
    (host.root / "etc/modprobe.d/masked.conf").symlink_to("/dev/null")
    host.write("etc/udev/rules.d/10-own.rules", "# vfio-pci\n")
    host.write("etc/udev/rules.d/homelab-x.rules", "# vfio-pci\n")
    found = read(host)
    assert found.vfio_files == {
        "/etc/modprobe.d/a.conf": "10de:1,10DE:2,10de:3",
        "/etc/modprobe.d/b.conf": "10de:4",
        "/etc/modprobe.d/c.conf": "10de:5",
        "/run/modprobe.d/d.conf": "10de:7",
        "/usr/local/lib/modprobe.d/lib.conf": "10de:8",
        "/run/modprobe.d/run.conf": "10de:7",
        "/etc/initramfs-tools/modules": "10de:6",
    }
    assert found.vfio_mentions == ["/etc/udev/rules.d/10-own.rules"]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/udev/rules.d/90-vfio.rules",
        "/etc/driverctl.d/pci-0000:01:00.0",
        "/etc/systemd/system/bind.service",
        "/etc/rc.local",
        "/etc/cron.d/gpu",
        "/var/spool/cron/crontabs/root",
    ],
)
def test_a_file_that_names_vfio_pci_is_mentioned_whatever_it_does(host: Host, path: str) -> None:
    host.write(path, "echo vfio-pci >/sys/bus/pci/devices/0000:01:00.0/driver_override\n")
    found = read(host)
    assert (found.vfio_mentions, found.vfio_files) == ([path], {})


# -- cards -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("code", "config", "is_lost"),
    [
        ("0x030000", ONES, True),
        ("0x030200", ONES, True),
        ("0x040300", ONES, True),
        ("0x120000", ONES, True),
        ("0x030000", b"\x01\x00\xff\xff" + ONES, True),  # it goes on asking to be asked again
        ("0x030000", b"\xde\x10\x85\x2b" + b"\x00" * 60, False),
        ("0x030000", b"\xff\xff\xff\xff\x00\x00\x10\x00\xa1\x00\x00\x03" + b"\x00" * 60, False),  # a virtual function
        ("0x020000", ONES, False),
        ("0x030000", b"", False),
    ],
)
def test_a_card_is_lost_when_its_configuration_space_reads_as_ones(
    host: Host, code: str, config: bytes, is_lost: bool
) -> None:
    host.function(CARD, code, config=config)
    assert read(host).lost == ([CARD] if is_lost else [])
    # Beside others.
    host.function("0000:00:02.0", "0x030000", config=b"\x86\x80" + b"\x00" * 62)
    host.function("0000:02:00.0", "0x030000", config=ONES)
    assert read(host).lost == ([CARD] if is_lost else []) + ["0000:02:00.0"]


def test_a_card_that_answers_nothing_is_lost_and_no_other_one(host: Host) -> None:
    def head(arguments: Sequence[str], _stdin: bytes) -> Done:
        if any("0000:01:00.0" in path for path in arguments):
            return Done(TIMED_OUT, b"")
        return Done(0, b"\xde\x10" + b"\x00" * 14)

    host.programs["head"] = head
    for address in (CARD, "0000:02:00.0"):
        host.function(address, "0x030000", config=ONES)
    assert read(host).lost == [CARD]


def test_of_each_function_of_a_card_its_resets_its_power_and_who_shares_it_are_read(host: Host) -> None:
    power = {"reset_method": "flr bus\n", "d3cold_allowed": "1\n", "power/control": "auto\n"}
    host.function("10000:01:00.0", "0x030000", config=ONES)
    for name, text in power.items():
        host.write(f"sys/bus/pci/devices/10000:01:00.0/{name}", text)
    # No way to reset it.
    host.function("0000:02:00.0", "0x030000", config=ONES, reset_method="", **{"nvidia/current_vgpu_type": "0\n"})
    # Whatever it says, it is text.
    host.function(
        "0000:02:00.1", "0x030200", config=ONES, reset_method='a"\\b\x1b[31m\n', **{"mdev_supported_types/a": ""}
    )
    host.function("0000:03:00.0", "0x010802", config=ONES)
    host.write("sys/bus/pci/devices/0000:04:00.0/vendor", "0x10de\n")  # a function without a class
    states = read(host).card_states
    assert set(states) == {"10000:01:00.0", "0000:02:00.0", "0000:02:00.1"}
    card = states["10000:01:00.0"]
    assert (card.reset_method, card.d3cold_allowed, card.control) == ("flr bus", "1", "auto")
    second, third = states["0000:02:00.0"], states["0000:02:00.1"]
    assert (second.divided, second.reset_method, second.control) == ("vgpu", "", None)
    assert (third.divided, third.reset_method) == ("mdev", 'a"\\b')


def test_a_link_is_read_as_the_kernel_says_it(host: Host) -> None:
    width, speed = {"current_link_width": "8\n", "max_link_width": "16\n"}, "16.0 GT/s PCIe\n"
    host.function(CARD, "0x030000", **width, current_link_speed="2.5 GT/s PCIe\n", max_link_speed=speed)
    host.function("0000:02:00.0", "0x030000")
    found = {one.address: (one.lanes, one.speeds) for one in read(host).devices}
    assert found[CARD] == ((8, 16), ("2.5 GT/s PCIe", "16.0 GT/s PCIe"))
    assert found["0000:02:00.0"] == ((0, 0), ("", ""))


def test_a_function_that_goes_while_it_is_read_is_left_as_it_is(host: Host) -> None:
    host.function(CARD, "0x030000", config=ONES)
    (host.root / f"sys/bus/pci/devices/{CARD}/reset_method").mkdir()  # reading fails, as of a device that is gone
    assert read(host).card_states[CARD].reset_method is None


def test_nvidias_vgpu_driver_is_recognised_by_its_manager(host: Host) -> None:
    assert not read(host).vgpu_manager
    host.write("usr/bin/nvidia-vgpu-mgr", "")
    assert read(host).vgpu_manager


def with_values(host: Host) -> None:
    """As the layer card_values leaves it."""
    ours = {"reset_method": "bus", "d3cold_allowed": "0", "power/control": "on"}
    host.function(CARD, "0x030000")
    for name, had in {"reset_method": "flr bus", "d3cold_allowed": "1", "power/control": "auto"}.items():
        place = f"var/lib/homelab/card-values/{CARD}={name.replace('/', ':')}"
        host.write(place, f"{had}\n{ours[name]}\n")
        host.write(f"sys/bus/pci/devices/{CARD}/{name}", f"{ours[name]}\n")


def test_a_reading_says_what_a_card_gets_back(host: Host) -> None:
    with_values(host)
    had = {"reset_method": "flr bus", "d3cold_allowed": "1", "control": "auto"}
    assert read(host).card_states[CARD].had == had
    # What somebody else has changed since isn't given back.
    host.write(f"sys/bus/pci/devices/{CARD}/reset_method", "flr\n")
    assert read(host).card_states[CARD].had == {"d3cold_allowed": "1", "control": "auto"}


def test_a_value_that_was_changed_is_drift_and_a_card_that_isnt_there_is_none(host: Host) -> None:
    with_values(host)
    assert read(host).lost_values == []
    host.write(f"sys/bus/pci/devices/{CARD}/power/control", "auto\n")
    assert read(host).lost_values == ["power/control of 0000:01:00.0 is auto, not on"]
    for name in ("reset_method", "d3cold_allowed", "power/control"):
        (host.root / f"sys/bus/pci/devices/{CARD}/{name}").unlink()
    assert read(host).lost_values == []


def test_files_and_steps_of_any_layer_are_read_without_a_list_of_layers(host: Host) -> None:
    system = host.system()
    system.files.put("another", "/etc/another.conf", 0o644, b"a\n")
    system.files.put("another", "/etc/lost.conf", 0o644, b"b\n")
    system.files.set_pending("another-step")
    host.write("etc/another.conf", "by hand\n")
    (host.root / "etc/lost.conf").unlink()
    facts = read(host)
    assert [(file.layer, file.path, file.state) for file in facts.managed] == [
        ("another", "/etc/another.conf", "changed"),
        ("another", "/etc/lost.conf", "missing"),
    ]
    assert facts.pending == ["another-step"]


# -- whatever a host holds -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("junk", [
    pytest.param(b"f\xfcr", id="a byte of Latin-1"),
    pytest.param(b"f\xc3", id="a character that was cut"),
    pytest.param(b"\xed\xa0\x80", id="half of a surrogate pair"),
    pytest.param(b"\xc0\xaf \xe0\x80\xaf", id="an overlong slash"),
    pytest.param(b"\xf4\x90\x80\x80 \xf8\x88\x80\x80\x80", id="beyond the last character"),
    pytest.param(b"\x80\xbf\xfe\xff", id="bytes alone"),
    pytest.param(b"a\x01\x07\x08\x0b\x1f\x7fb", id="control characters"),
    pytest.param(b"\xc2\x80\xc2\x9b31m", id="the second row of control characters"),
    pytest.param(b"\x1b[31;1mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://x\x1b\\link", id="an escape sequence"),
    pytest.param(b"x\x1b[", id="half an escape sequence"),
    pytest.param(b"10%\r50%\r100%\r\ndone", id="carriage returns"),
    pytest.param(b"\\ \\\\ \\n \\u0041 \\x \\", id="backslashes"),
    pytest.param(b'"\' "\\"', id="quotes"),
    pytest.param("a\u202eb\u2066c\u200fd\u200be\ufefff".encode(), id="what turns the writing"),
    pytest.param(bytes(range(1, 256)), id="many of them"),
    pytest.param("für 日本 😀 €".encode(), id="good text"),
    pytest.param(b"\ta\n\nb\t\n", id="newlines and tabs"),
])  # fmt: skip
def test_a_host_whose_files_hold_anything_can_be_read(host: Host, junk: bytes) -> None:
    for path in (
        "proc/cmdline", "proc/cpuinfo", "proc/modules", "etc/modprobe.d/mine.conf", "etc/default/grub", "etc/pve/mapping/pci.cfg",
        "etc/pve/qemu-server/103.conf", "etc/pve/lxc/901.conf", "var/lib/homelab/rolled-back", "run/qemu-server/pci-id-reservations",
        "proc/driver/nvidia/version",
    ):  # fmt: skip
        host.write(path, b"name: " + junk + b"\noptions vfio-pci ids=" + junk + b"\n")
    host.function(CARD, "0x030000", config=ONES)
    address = "0000:00:01.0"
    interface = junk.replace(b"/", b"").replace(b"\n", b"").replace(b" ", b"").replace(b"\0", b"")[:15] or b"eth0"
    name = interface.decode("utf-8", "surrogateescape")
    for path, target in (
        (f"sys/bus/pci/devices/{address}", f"sys/devices/pci0000:00/{address}"),
        (f"sys/class/net/{name}", f"sys/devices/pci0000:00/{address}/net/{name}"),
    ):
        (host.root / target).mkdir(parents=True)
        link(host, path, target)
    host.programs |= dict.fromkeys(("dmesg", "lspci", "lsblk", "perl", "dpkg-query"), says(b"a: " + junk + b"\n"))
    facts = read(host, signs=SIGNS)
    assert {one.address: one.behind for one in facts.devices}[address] != "" and facts.boot_id == "1"
    TypeAdapter(HostFacts).dump_json(facts)  # it is text


HANGING = {*reading_kit.SILENT, "qm", "perl", "dpkg-query", "proxmox-boot-tool", "head"}


# On a busy machine a killed program may not have ended when it is given up: it is left to whoever takes this process's children.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_programs_that_hang_hide_nothing_that_is_known_without_them(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in HANGING:
        command(host, name, "trap '' TERM\nwhile :; do sleep 60; done")
    monkeypatch.setenv("PATH", f"{tmp_path}/commands:/usr/bin:/bin")
    host.write("etc/kernel/proxmox-boot-uuids", "AAAA-0001\n")
    for address in (CARD, "0000:01:00.1"):
        host.function(address, "0x030000", config=ONES)
    monkeypatch.setattr(cards, "_CONFIG_SECONDS", 0.2)
    monkeypatch.setattr(run, "_GRACE_SECONDS", 0.05)
    asked = run.Run.ask
    monkeypatch.setattr(
        run.Run,
        "ask",
        lambda self, *words, seconds=0.2, **about: asked(self, *words, seconds=min(seconds, 0.2), **about),
    )
    monkeypatch.setattr(host, "system", lambda: System(host.root))
    began = time.monotonic()
    found: HostFacts = read(host, signs="x")
    assert found.boot_id == "1" and found.devices[0].address == CARD and found.lost == [CARD, "0000:01:00.1"]
    assert found.pve == "unknown" and found.guests.unlisted.startswith("no ticket of root@pam is made")
    assert time.monotonic() - began < 20


def test_what_is_asked_of_a_stock_host_starts_few_programs(host: Host) -> None:
    started: list[str] = []

    def counted(name: str, program: Stand) -> Stand:
        def run_it(arguments: Sequence[str], stdin: bytes) -> Done | int | str | None:
            started.append(name)
            return program(arguments, stdin)

        return run_it

    api_kit.runs(host, {}, {})
    host.programs |= {name: counted(name, program) for name, program in host.programs.items()}
    for address in (CARD, "0000:02:00.0"):
        host.function(address, "0x030000", config=ONES)
    host.ask("read", "read_host", Wanted(guests=True, signs="x"))
    once, twice = ("dmesg", "dpkg-query", "journalctl", "lsblk", "perl"), ("bash", "head", "lspci", "pvedaemon")
    assert sorted(started) == sorted([*once, *twice, *twice])
