"""The layer passthrough_test on a folder (passthrough_kit.py)."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from homelab.remote import scripts
from lab.host import archive
from remote_scripts.both.passthrough_test import FOLDER, NAME, Wanted
from remote_scripts.layers import passthrough_test
from remote_scripts.tools.done import Done
from remote_scripts.tools.plain import to_plain
from tests.agent.kit import Host, Refused, bash, command, of_machine, ran
from tests.agent.passthrough_kit import AUDIO, CONFIGURATIONS, CONSOLE, FUNCTIONS, GPU, KERNEL, Qm, stock


@pytest.fixture(autouse=True)
def qm(host: Host) -> Qm:
    """Of a host with both functions on vfio-pci, VM 103 that runs without a card, and a VM that sees all."""
    stock(host)
    made = Qm(host)
    host.programs |= {"qm": made, "ldd": lambda _arguments, _stdin: 1}
    return made


def apply(host: Host, functions: dict[str, str] = FUNCTIONS, **options: Any) -> Any:
    return host.ask("apply", "passthrough_test", Wanted(functions=functions, **{"timeout": 20, **options}))


def refusal(host: Host, functions: dict[str, str] = FUNCTIONS, **options: Any) -> str:
    with pytest.raises(Refused) as refused:
        apply(host, functions, **options)
    text = str(refused.value)
    assert re.fullmatch(r"wanted: .+\nfound:  .+\nwhy:    .+\nnext:   .+", text, re.DOTALL), text
    return text


def assert_nothing_is_left(host: Host) -> None:
    assert sorted(path.name for path in (host.root / CONFIGURATIONS[1:]).iterdir()) == ["103.conf"]
    assert host.read(f"{CONFIGURATIONS}/103.conf") == "name: Sandbox\nmemory: 2048\n"
    assert [path.name for path in (host.root / "run").iterdir()] == ["homelab"]
    assert not host.exists("/var/lib/homelab")


# -- what it answers ---------------------------------------------------------------------------------------------------
def test_it_answers_what_the_vm_saw_and_leaves_nothing(host: Host, qm: Qm) -> None:
    codes = {GPU: "030000", AUDIO: "040300"}
    bars = {GPU: {0: 67108864, 1: 34359738368, 5: 128}, AUDIO: {0: 16384}}
    functions = [
        {"guest": address, "address": address, "id": ids, "class": codes[address]}
        | {"bars": [{"index": index, "size": size} for index, size in bars[address].items()]}
        for address, ids in FUNCTIONS.items()
    ]
    assert apply(host) == {"kernel": KERNEL, "vmid": 104, "functions": functions}
    assert_nothing_is_left(host)
    assert qm.said[-2:] == ["stop 104 --skiplock 1", "destroy 104 --skiplock 1"]


def test_the_vm_gets_each_slot_once_and_its_kernel_by_args(host: Host, qm: Qm) -> None:
    other = {"0000:41:00.0": "10de:2204"}
    host.function("0000:41:00.0", "0x030000", "10de:2204", driver="vfio-pci", resource="0x0 0x0 0x0\n")
    refusal(host, FUNCTIONS | other)
    created = next(line for line in qm.said if line.startswith("create"))
    cards = f"--hostpci0 host={GPU};{AUDIO},pcie=1,rombar=0 --hostpci1 host=0000:41:00.0,pcie=1,rombar=0"
    assert f"{cards} --args" in created
    assert f"-kernel /boot/vmlinuz-{KERNEL} -initrd {FOLDER}/initrd.img -append 'console=ttyS0 panic=-1'" in created
    assert f"-serial file:{FOLDER}/console -no-reboot" in created and "--onboot 0" in created


def test_of_a_slot_that_holds_more_than_the_card_the_vm_gets_the_cards_functions(host: Host, qm: Qm) -> None:
    host.function("0000:01:00.3", "0x0c0330", "1022:15b9", driver="xhci_hcd", resource="0x0 0x0 0x0\n")
    apply(host)
    created = next(line for line in qm.said if line.startswith("create"))
    assert f"--hostpci0 host={GPU};{AUDIO},pcie=1,rombar=0 --args" in created


def test_an_id_that_is_given_is_taken(host: Host) -> None:
    assert apply(host, vmid=9000)["vmid"] == 9000


def test_a_serial_line_with_carriage_returns_and_the_kernels_words_between_is_read(host: Host, qm: Qm) -> None:
    lines = CONSOLE.splitlines()
    qm.console = "\r\n".join([*lines[:3], "[    1.5] pci something", *lines[3:], ""])
    assert apply(host)


def test_cards_with_the_same_ids_are_told_apart_by_their_order(host: Host, qm: Qm) -> None:
    host.function("0000:41:00.0", "0x030000", "10de:2b85", driver="vfio-pci", resource="0x0 0x0 0x0\n")
    more = "homelab-passthrough 0000:02:00.0 10de:2b85 030000\nhomelab-passthrough END 5\n"
    qm.console = CONSOLE.replace("homelab-passthrough END 4\n", more)
    functions = apply(host, FUNCTIONS | {"0000:41:00.0": "10de:2b85"})["functions"]
    assert [(f["address"], f["guest"]) for f in functions] == [
        (GPU, "0000:01:00.0"),
        (AUDIO, "0000:01:00.1"),
        ("0000:41:00.0", "0000:02:00.0"),
    ]


# -- what fails --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("0000:01:00.1 10de:22e8", "0000:01:00.1 10de:1234", f"{AUDIO} (10de:22e8): is not in the VM"),
        ("0000:01:00.1 10de:22e8", "0000:06:12.0 1af4:1000", f"{AUDIO} (10de:22e8): is not in the VM"),
        (" 1:34359738368:0x000000000014220c", "", f"{GPU} (10de:2b85): BAR 1 of 34359738368 bytes has no address in the VM"),
        (" 0:16384:0x0000000000040200", "", f"{AUDIO} (10de:22e8): BAR 0 of 16384 bytes has no address in the VM"),
        (" 0:16384:", " 0:4096:", f"{AUDIO} (10de:22e8): BAR 0 of 16384 bytes has no address in the VM"),
    ],
)  # fmt: skip
def test_what_the_vm_does_not_see_as_the_host_does_is_named(host: Host, qm: Qm, old: str, new: str, found: str) -> None:
    qm.console = CONSOLE.replace(old, new)
    assert f"found:  {found}" in refusal(host)
    assert_nothing_is_left(host)


def test_everything_that_is_missing_is_named_at_once(host: Host, qm: Qm) -> None:
    seen = ("BEGIN", "0000:00:00.0 8086:29c0 060000", "END 1")
    qm.console = "".join(f"homelab-passthrough {line}\n" for line in seen)
    text = refusal(host)
    assert f"{GPU} (10de:2b85): is not in the VM\n{AUDIO} (10de:22e8): is not in the VM" in text


def test_an_io_bar_without_an_address_is_no_failure(host: Host, qm: Qm) -> None:
    qm.console = CONSOLE.replace(" 5:128:0x0000000000040101", "")
    assert apply(host)


@pytest.mark.parametrize(
    ("says", "found"),
    [
        ("[    0.5] Kernel panic - not syncing: VFS\n[    0.6] Rebooting\n", "it ends with:\n[    0.5] Kernel panic - not syncing: VFS"),
        ("", "nothing came on the console"),
        (CONSOLE.replace("END 4", "END 5"), "homelab-passthrough END 5"),  # a line was lost
        (CONSOLE.replace("homelab-passthrough END 4\n", ""), "0000:01:00.1 10de:22e8"),
    ],
)  # fmt: skip
def test_a_vm_that_ends_before_it_has_said_all_fails_with_the_end_of_its_console(
    host: Host, qm: Qm, says: str, found: str
) -> None:
    qm.console = says
    text = refusal(host, timeout=1)
    assert text.startswith("wanted: the list of PCI functions on the test VM's console") and found in text
    assert_nothing_is_left(host)


def test_a_vm_that_never_speaks_is_stopped_when_its_time_is_up(host: Host, qm: Qm) -> None:
    qm.console = None
    assert "within 1 s\nfound:  nothing came on the console" in refusal(host, timeout=1)
    assert_nothing_is_left(host)


def test_a_start_that_fails_is_told_in_the_words_of_qm(host: Host, qm: Qm) -> None:
    qm.fails["start"] = "can't unbind/bind PCI group to VFIO '0000:01:00.0'\n"
    assert "found:  can't unbind/bind PCI group to VFIO '0000:01:00.0'" in refusal(host)
    assert_nothing_is_left(host)


def test_an_id_that_is_taken_is_told_and_its_vm_stays(host: Host, qm: Qm) -> None:
    assert "VM 103 already exists" in refusal(host, vmid=103)
    assert_nothing_is_left(host)
    assert "103" in qm.runs


def test_without_an_id_proxmox_ves_words_are_said_and_no_vm_is_made(host: Host, qm: Qm) -> None:
    host.programs["pvesh"] = lambda _arguments, _stdin: Done(111, b"", b"ipcc_send_rec failed: Connection refused\n")
    assert "wanted: an id for the test VM\nfound:  ipcc_send_rec failed: Connection refused" in refusal(host)
    assert "create" not in qm.verbs and not host.exists(FOLDER)


def test_a_vm_that_cannot_be_removed_is_named_with_the_way_to_do_it(host: Host, qm: Qm) -> None:
    qm.fails["destroy"] = "can't remove VM 104"
    text = refusal(host)
    assert f"found:  VM 104 ({NAME}) is still there: can't remove VM 104" in text
    assert "next:   run `qm stop 104; qm destroy 104` on the host" in text


# -- what it refuses before anything is made -----------------------------------------------------------------------------
def test_a_function_on_another_driver_is_refused(host: Host, qm: Qm) -> None:
    link = host.root / f"sys/bus/pci/devices/{AUDIO}/driver"
    link.unlink()
    link.symlink_to("../../../bus/pci/drivers/snd_hda_intel")
    assert f"wanted: {AUDIO} on vfio-pci\nfound:  its driver is snd_hda_intel" in refusal(host)
    link.unlink()
    assert "found:  its driver is none" in refusal(host)
    assert qm.verbs == []


def test_another_device_at_the_address_is_refused(host: Host, qm: Qm) -> None:
    host.write(f"/sys/bus/pci/devices/{GPU}/device", "0x1111\n")
    assert f"wanted: 10de:2b85 at {GPU}\nfound:  10de:1111" in refusal(host)
    assert "found:  none:none" in refusal(host, {"0000:77:00.0": "10de:2b85"})
    assert qm.verbs == []


def test_a_vm_whose_configuration_cant_be_read_in_the_end_is_said(host: Host, qm: Qm) -> None:
    def spoil() -> None:
        (host.root / f"{CONFIGURATIONS[1:]}/104.conf").unlink()
        (host.root / f"{CONFIGURATIONS[1:]}/104.conf").mkdir()

    qm.after["start"] = spoil
    assert "wanted: to read /etc/pve/qemu-server/104.conf\nfound:  it is no file" in refusal(host)
    assert not host.exists(FOLDER)


def test_what_an_interrupted_test_has_left_is_removed_and_nothing_else(host: Host, qm: Qm) -> None:
    host.write("/etc/pve/qemu-server/900.conf", f"hostpci0: host=0000:01:00\nlock: create\nname: {NAME}\n")
    host.write("/etc/pve/qemu-server/901.conf", f"name: {NAME}-2\n")
    host.write("/etc/pve/qemu-server/902.conf", f"name: other\n[snap]\nname: {NAME}\n")
    qm.runs.add("900")
    host.write(f"{FOLDER}/initrd.img", "half")
    assert apply(host)
    assert qm.said[:2] == ["stop 900 --skiplock 1", "destroy 900 --skiplock 1"]
    assert sorted(path.name for path in (host.root / "etc/pve/qemu-server").iterdir()) == ["103.conf", "901.conf", "902.conf"]  # fmt: skip
    assert not (host.root / FOLDER[1:]).exists()


def test_a_vm_of_that_name_with_a_disk_is_not_ours(host: Host, qm: Qm) -> None:
    host.write("/etc/pve/qemu-server/900.conf", f"name: {NAME}\nscsi0: local:900/disk.qcow2\n")
    assert f"the name {NAME} for the test VM alone\nfound:  VM 900 has it" in refusal(host)
    assert (host.root / "etc/pve/qemu-server/900.conf").exists() and qm.verbs == []


def test_a_kernel_that_is_gone_is_named(host: Host) -> None:
    (host.root / f"boot/vmlinuz-{KERNEL}").unlink()
    assert f"found:  no /boot/vmlinuz-{KERNEL}" in refusal(host)
    assert_nothing_is_left(host)


# -- its initramfs ----------------------------------------------------------------------------------------------------------
def build(host: Host) -> dict[str, archive.Member]:
    passthrough_test._build(host.system())
    return archive.unpack((host.root / f"{FOLDER[1:]}/initrd.img").read_bytes())


@pytest.fixture
def with_libraries(host: Host) -> Host:
    """One that says which libraries this machine's programs have."""
    host.programs |= of_machine("ldd")
    return host


def test_the_initramfs_holds_init_a_shell_mount_and_every_library_that_they_need(
    with_libraries: Host, tmp_path: Path
) -> None:
    members = build(with_libraries)
    assert members["init"].data.decode() == scripts.file("passthrough_init.sh") + "\n"
    for name in ("init", "bin/sh", "bin/mount"):
        assert stat.S_ISREG(members[name].mode) and stat.S_IMODE(members[name].mode) == 0o755
    for folder in ("proc", "sys", "dev", "bin"):
        assert stat.S_ISDIR(members[folder].mode)
    for name in members:
        parent = name.rpartition("/")[0]
        assert not parent or stat.S_ISDIR(members[parent].mode), f"{name} has no folder to lie in"
    if os.geteuid() != 0:
        pytest.skip("to start its programs in it takes root, for chroot")
    archive.extract(members, tmp_path / "guest")
    for words in (["/bin/sh", "-c", "echo started"], ["/bin/mount", "--version"]):
        done = ran("chroot", str(tmp_path / "guest"), *words, **os.environ)
        assert done.returncode == 0, done.stderr


def test_the_same_host_makes_the_same_bytes(with_libraries: Host) -> None:
    assert build(with_libraries) == build(with_libraries)
    first = (with_libraries.root / "run/homelab-passthrough-test/initrd.img").read_bytes()
    build(with_libraries)
    assert (with_libraries.root / "run/homelab-passthrough-test/initrd.img").read_bytes() == first


def test_nobody_else_can_read_the_folder(host: Host) -> None:
    build(host)
    assert stat.S_IMODE((host.root / FOLDER[1:]).stat().st_mode) == 0o700


# -- /init -------------------------------------------------------------------------------------------------------------------
def test_init_lists_every_function_with_the_bars_that_have_an_address_and_switches_off(host: Host) -> None:
    for address, code in ((GPU, "0x030000"), (AUDIO, "0x040300")):
        host.write(f"/sys/bus/pci/devices/{address}/class", f"{code}\n")
    host.write("/proc/sys/kernel/printk", "4\t4\t1\t7\n")
    command(host, "mount", 'echo "$*" >>"$HOMELAB_SYSROOT/mounts"')
    places = {"INIT": scripts.file("passthrough_init.sh"), "HOMELAB_SYSROOT": str(host.root)}
    done = bash(host, 'exec sh -c "$INIT"', **places)
    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if line.strip()] == [
        "homelab-passthrough BEGIN",
        f"homelab-passthrough {GPU} 10de:2b85 030000 0:67108864:0x0000000000040200 1:34359738368:0x000000000014220c"
        " 5:128:0x0000000000040101",
        f"homelab-passthrough {AUDIO} 10de:22e8 040300 0:16384:0x0000000000040200",
        "homelab-passthrough END 2",
    ]
    assert host.read("/mounts") == f"-t proc proc {host.root}/proc\n-t sysfs sysfs {host.root}/sys\n"
    assert (host.read("/proc/sysrq-trigger"), host.read("/proc/sys/kernel/printk")) == ("o\n", "1\n")
    # More than the serial line's buffer comes after the last word, so that a power-off can't cut it.
    assert len(done.stdout.partition("END 2\n")[2]) > 4096


def test_its_request_is_as_states_have_it() -> None:
    """Another one would run the test anew, while a VM may run with the card (GpuCards)."""
    wanted = {"functions": {"0000:01:00.0": "10de:2b85"}, "vmid": None, "timeout": 180, "half": ""}
    assert to_plain(Wanted(functions={"0000:01:00.0": "10de:2b85"})) == wanted
