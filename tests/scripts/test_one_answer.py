"""Rules that stand in two languages, since both must know them at once: held to each other on the same tables."""

from __future__ import annotations

import json

import pytest

from homelab.container.conf import parse
from homelab.host import gates
from homelab.host.facts import missing_words
from homelab.remote import scripts
from tests.scripts.conftest import Folder, quoted
from tests.unit.hosts import desktop, settings


# -- words of the kernel command line: the scripts write them, a reading's drift names them ---------------------------
@pytest.mark.parametrize(
    "word", ["iommu=pt", "amd_iommu=on", "intel_iommu=on", "quiet", "homelab.vfio=0000:01:00.0=10de:2b85"]
)
@pytest.mark.parametrize(
    "line",
    [
        "", "quiet", "quiet iommu=pt", "iommu=ptx", "xiommu=pt", "iommu=pt,nobypass", "intel_iommu=on,sm_on", "amd_iommu=on,pgtbl_v2 quiet",
        "intel_iommu=off", "quiet,x", "homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8",
        "homelab.vfio=0000:01:00.0=10de:2b85", "  iommu=pt   quiet ", "dyndbg=\"file x iommu=pt \" amd_iommu=on", "IOMMU=PT",
    ],
)  # fmt: skip
def test_scripts_and_readings_agree_on_whether_a_word_is_on_a_command_line(
    folder: Folder, word: str, line: str
) -> None:
    done = folder.bash(f"has_words {quoted(line)} {quoted(word)} && echo yes || echo no; exit 0\n")
    assert done.stdout.strip() == ("no" if missing_words(word, line) else "yes")


# -- a container's configuration: the script changes it, the doctor explains it ---------------------------------------
BIND = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file"
ALLOW = "lxc.cgroup2.devices.allow: c 195:* rwm"
CONFIGURATIONS = {
    "nothing": "arch: amd64",
    "a device": "dev0: /dev/nvidia0",
    "a device with its properties": "dev0: path=/dev/nvidia0,mode=0666",
    "a device, its path last": "dev3: mode=0666,path=/dev/nvidia0",
    "another device": "dev0: /dev/nvidia1",
    "a device that is there twice, the last counts": "dev0: /dev/nvidia0\ndev0: /dev/nvidia1",
    "a device of a snapshot": "[old]\ndev0: /dev/nvidia0",
    "a device of the next start": "[pve:pending]\ndev0: /dev/nvidia0",
    "a device that the next start takes away": "dev0: /dev/nvidia0\n[pve:pending]\ndelete: dev0",
    "a device that goes at once": "dev0: /dev/nvidia0\n[pve:pending]\ndelete: !dev0,mp1",
    "a device that the next start changes": "dev0: /dev/nvidia0\n[pve:pending]\ndev0: /dev/nvidia1",
    "a mount and its rule": f"{BIND}\n{ALLOW}",
    "a mount without a rule": BIND,
    "a rule alone": ALLOW,
    "a mount with an equals sign": f"lxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,create=file 0 0\n{ALLOW}",
    "a mount of a snapshot": f"[old]\n{BIND}\n{ALLOW}",
    "a folder": f"lxc.mount.entry: /dev dev none bind,create=dir\n{ALLOW}",
    "a folder that isn't made": f"lxc.mount.entry: /dev dev none bind\n{ALLOW}",
    "a folder with a slash": f"lxc.mount.entry: /dev/ dev/ none rbind,create=dir\n{ALLOW}",
    "a mount to another place": f"lxc.mount.entry: /dev/nvidia0 dev/nvidia9 none bind,create=file\n{ALLOW}",
    "a mount to an absolute place": f"lxc.mount.entry: /dev/nvidia0 /dev/nvidia0 none bind,create=file\n{ALLOW}",
    "a mount that binds nothing": f"lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none create=file\n{ALLOW}",
    "a mount with too few words": f"lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none\n{ALLOW}",
    "a rule for the one": f"{BIND}\nlxc.cgroup2.devices.allow: c 195:0 rwm",
    "a rule for another": f"{BIND}\nlxc.cgroup2.devices.allow: c 195:1 rwm",
    "a rule for reading": f"{BIND}\nlxc.cgroup2.devices.allow: c 195:* r",
    "a rule without access, which is all": f"{BIND}\nlxc.cgroup2.devices.allow: c 195:*",
    "a rule for disks": f"{BIND}\nlxc.cgroup2.devices.allow: b 195:* rwm",
    "a rule for everything": f"{BIND}\nlxc.cgroup2.devices.allow: a",
    "a rule for everything, in numbers": f"{BIND}\nlxc.cgroup2.devices.allow: a *:* rwm",
    "a rule of the first version": f"{BIND}\nlxc.cgroup.devices.allow: c 195:* rwm",
    "a rule that is taken back": f"{BIND}\n{ALLOW}\nlxc.cgroup2.devices.deny: c 195:* rwm",
    "all rules taken back": f"{BIND}\n{ALLOW}\nlxc.cgroup2.devices.deny: a",
    "all rules taken back, and one given": f"{BIND}\nlxc.cgroup2.devices.deny: a\n{ALLOW}",
    "another rule taken back": f"{BIND}\n{ALLOW}\nlxc.cgroup2.devices.deny: c 226:* rwm",
    "a carriage return": f"{BIND}\r\n{ALLOW}\r\ndev1: /dev/nvidiactl\r",
    "a comment": f"#{BIND}\n#{ALLOW}",
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_script_and_doctor_agree_on_how_a_container_gets_a_node_and_whether_it_may(folder: Folder, name: str) -> None:
    text = f"hostname: box\n{CONFIGURATIONS[name]}\n"
    folder.write("etc/pve/lxc/300.conf", text)
    done = folder.bash(
        "CTID=300\ndeclare -A MAJOR=([/dev/nvidia0]=195) MINOR=([/dev/nvidia0]=0)\nread_conf; find_ours\n"
        'find_provider /dev/nvidia0\nprintf "%s %s\\n" "${PROVIDER%% *}" "$RULE"\n',
        parts=["container/plan"],
    )
    assert done.returncode == 0, done.stderr
    way, _, rule = done.stdout.strip("\n").partition(" ")
    conf = parse(text)
    entry = conf.entry_for("/dev/nvidia0")
    entry = entry if entry and entry.source_of("/dev/nvidia0") == "/dev/nvidia0" else None
    assert way == ("" if entry is None else {"device": "dev", "mount-entry": "mount"}[entry.method])
    allowed = bool(entry and entry.method == "device") or conf.rule_for(195, 0, "rw") is not None
    assert rule == ("yes" if allowed else "no")


# -- does this host's pve-container know dev[n]? Decided by the script; what reads a host passes its answer on ---------
@pytest.mark.parametrize(
    ("version", "known"),
    [("5.0.6", False), ("5.0.7", True), ("5.0.10", True), ("6.0.18", True), ("10.1", True), ("5.0.7~bpo12+1", False), ("", False), ("x", False)],
)  # fmt: skip
def test_an_older_pve_container_and_one_of_no_known_version_get_raw_lines(
    folder: Folder, version: str, known: bool
) -> None:
    folder.command("dpkg-query", f"echo {version}" if version else "exit 1")
    text = 'CTID=300 METHOD=auto\nchoose_method; dev_trouble; json_list "$HOW" "$FOUND"\n'
    how, found = json.loads(folder.bash(text, parts=["container/devices"]).stdout)
    assert (how, bool(found)) == ("device" if known else "mount-entry", not known)
    assert known or (version or "of no known version") in found
    refused = folder.bash("CTID=300 METHOD=device\nchoose_method\n", parts=["container/devices"])
    assert (refused.returncode == 0) is known


# -- what a gate refuses from a reading, before the script would: with the same words ---------------------------------
def message(text: str) -> tuple[str, ...]:
    """The four parts of a message, whoever says it."""
    return tuple(line.partition(":")[2].strip() for line in text.strip().splitlines())


@pytest.mark.parametrize(("free", "fits"), [(0, False), (109, False), (110, True), (1000, True)])
def test_gate_and_script_agree_on_whether_boot_has_room_and_in_their_words(
    folder: Folder, free: int, fits: bool
) -> None:
    mebi = 2**20
    folder.write("usr/share/initramfs-tools/hook-functions", "")
    folder.write("boot/vmlinuz-6.17.2-1-pve", "")
    with folder.write("boot/initrd.img-6.17.2-1-pve", "").open("r+b") as image:
        image.truncate(100 * mebi)
    folder.command("update-initramfs", "exit 0")
    folder.command("df", f"printf 'Filesystem 1-blocks Used Available\\n/dev/x 1 1 {free * mebi} 1%% /boot\\n'")
    done = folder.run("plan", scripts.vfio_initramfs(True))
    refused = gates.room(desktop(boot_free=free * mebi, largest_initramfs=100 * mebi), settings())
    assert (done.returncode == 0, refused == []) == (fits, fits), done.stdout
    assert fits or message(str(refused[0])) == message(done.stdout)


def test_gate_and_script_say_the_same_of_a_boot_loader_that_is_not_known(folder: Folder) -> None:
    (folder.root / "sys/firmware/efi").mkdir(parents=True)
    done = folder.run("plan", scripts.iommu_cmdline("iommu=pt"))
    clues = message(done.stdout)[1]
    (refused,) = gates.tools(desktop(loader="", loader_clues=clues), settings())
    wanted, found, why, following = message(done.stdout)
    assert (found, why, following) == message(str(refused))[1:] and wanted.startswith(refused.wanted)
