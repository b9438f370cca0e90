"""Guests that move to other nodes for the time of a node's restart, and come back. `pvesh` answers as recorded of a real cluster (GET …/migrate)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from homelab.remote import scripts
from tests import sampling
from tests.kept_systems import KeptSystems
from tests.scripts import cut_kit
from tests.scripts.conftest import Folder, empty_folder
from tests.scripts.test_cluster_turn import LOCK, TURN, first_of_three, members, status
from tests.waiting import wait_until

GIB = 2**30
LEFT = "var/lib/homelab/left"
BOOT = "7d4f0d3c-0000-4000-8000-000000000001"
NEXT_BOOT = "7d4f0d3c-0000-4000-8000-000000000002"
CARD = {"local_resources": ["hostpci0"], "mapped-resources": ["hostpci0"], "mapped-resource-info": {"hostpci0": {"name": "gpu"}}}  # fmt: skip
# A guest is its file, on the node that has it; `#on` in it: it runs.
PVE = (
    f"""
{cut_kit.STOP_FUNCTION}
cd "$ROOT/etc/pve/nodes"
"""
    + """
text_of() { TEXT=; [[ ! -e $1 ]] || IFS= read -rd "" TEXT <"$1" || :; }
has() { text_of "$2"; [[ $'\\n'$TEXT == *$'\\n'"$1"* ]]; } # BEGIN FILE - of a line
say() { # FILE... - the first one that is there
  local file
  for file; do
    [[ -e $file ]] || continue
    text_of "$file"
    printf '%s' "$TEXT"
    return
  done
  return 1
}
moved() { # VMID FROM TO - the configuration goes first, with its lock; then the guest goes on; then the lock goes
  has '#on' "$2/qemu-server/$1.conf" || echo "went off" >>"$ROOT/run/asked"
  sed -i '1i lock: migrate' "$2/qemu-server/$1.conf"
  stop point
  [[ ! -e $ROOT/run/fails-$1 && ! -e $ROOT/run/fails-$1-$3 ]] || { sed -i 1d "$2/qemu-server/$1.conf"; echo "ERROR: migration aborted: no route to $3"; exit 255; }
  { cat "$2/qemu-server/$1.conf"; echo "#moved"; echo "#paused"; } >"$3/qemu-server/$1.new"
  rm "$2/qemu-server/$1.conf" && mv "$3/qemu-server/$1.new" "$3/qemu-server/$1.conf"
  stop point
  [[ ! -e $ROOT/run/ends-badly ]] || { echo "ERROR: migration finished with problems"; exit 255; }
  sed -i '/^#paused/d' "$3/qemu-server/$1.conf"
  stop point
  sed -i '/^lock/d; /^#moved/d' "$3/qemu-server/$1.conf"
}
"""
)
QM = (
    PVE
    + """
echo "qm $*" >>"$ROOT/run/asked"
case $1 in
  list)
    echo "      VMID NAME                 STATUS     MEM(MB)    BOOTDISK(GB) PID"
    for file in pve1/qemu-server/*.conf; do
      has '#on' "$file" || continue
      id=${file##*/}; id=${id%.conf}
      echo "       $id vm$id                running    4096              64.00 9$id"
    done ;;
  status) has '#on' "pve1/qemu-server/$2.conf" && echo "status: running" || echo "status: stopped" ;;
  migrate) moved "$2" pve1 "$3" ;;
  unlock) sed -i '/^lock/d; /^#moved/d' "pve1/qemu-server/$2.conf" ;;
  start) [[ $* == *skiplock* ]] || ! has lock "pve1/qemu-server/$2.conf" && echo "#on" >>"pve1/qemu-server/$2.conf" ;;
esac
"""
)
PVESH = (
    PVE
    + """
echo "pvesh $*" >>"$ROOT/run/asked"
node=${2#/nodes/} node=${node%%/*}
[[ ! -e $ROOT/run/down-$node && ! -e $ROOT/run/down ]] || { echo "proxy handler failed" >&2; exit 255; }
case "$1 $2" in
  "get /cluster/resources") say "$ROOT/said/nodes.json" ;;
  get\\ */tasks) say "$ROOT/said/tasks-$node" || echo "[]" ;;
  get\\ */current)
    id=${2%/status/current} id=${id##*/}
    qmp=stopped lock=''; ! has '#on' "$node/qemu-server/$id.conf" || qmp=running
    ! has '#paused' "$node/qemu-server/$id.conf" || qmp=paused
    ! has 'lock: ' "$node/qemu-server/$id.conf" || { lock=$'\\n'$TEXT lock=${lock#*$'\\n'lock: } lock=", \\"lock\\": \\"${lock%%$'\\n'*}\\""; }
    printf '{"status": "%s", "qmpstatus": "%s"%s}' "${qmp/paused/running}" "$qmp" "$lock" ;;
  get\\ */version | get\\ */machines | get\\ */network | get\\ */content) say "$ROOT/said/${2##*/}-$node" "$ROOT/said/${2##*/}" ;;
  create\\ */resume) id=${2%/status/resume}; sed -i '/^#paused/d' "$node/qemu-server/${id##*/}.conf" ;;
  set\\ */config) id=${2%/config}; sed -i '/^lock/d; /^#moved/d' "$node/qemu-server/${id##*/}.conf" ;;
  get\\ */migrate)
    id=${2%/migrate} id=${id##*/}
    has lock "$node/qemu-server/$id.conf" && { echo "VM is locked (backup)" >&2; exit 255; }
    on=0; ! has '#on' "$node/qemu-server/$id.conf" || on=1
    said=$(say "$ROOT/said/migrate-$id-$node" "$ROOT/said/migrate")
    printf '%s' "${said/ON/$on}" ;;
  get\\ */qemu) say "$ROOT/said/qemu.json" ;;
  create\\ */migrate) id=${2%/migrate}; moved "${id##*/}" "$node" "$4" ;;
esac
"""
)


def says(**more: Any) -> str:
    """GET …/migrate of a guest that can move."""
    about = {
        "allowed_nodes": ["pve1", "pve2", "pve3"], "has-dbus-vmstate": 1, "local_disks": [], "local_resources": [], "mapped-resource-info": {},
        "mapped-resources": [], "not_allowed_nodes": {"pve2": {}, "pve3": {}}, "running": "ON",
    }  # fmt: skip
    return json.dumps(about | more).replace('"ON"', "ON")


def nodes(folder: Folder, *guests: dict[str, Any], **left: int) -> None:
    """GET /cluster/resources: these guests, and the memory, in GiB, that each node has left; below 0: it is offline."""
    found = [
        {
            "node": name,
            "status": "online",
            "maxmem": 64 * GIB,
            "mem": (64 - room) * GIB,
            "id": f"node/{name}",
            "type": "node",
        }
        if room >= 0
        else {"node": name, "status": "offline", "id": f"node/{name}", "type": "node"}
        for name, room in {"pve1": 10, **left}.items()
    ]
    folder.write("said/nodes.json", json.dumps([*found, *guests]))


@pytest.fixture
def node(folder: Folder) -> Folder:
    return with_guests(folder)


def with_guests(folder: Folder) -> Folder:
    """pve1 lacks a word on its command line. It has VM 103 with a card, and 105 and 106, which can move; 107 is off; container 901."""
    made = first_of_three(folder)
    for name in ("pve1", "pve2", "pve3"):
        (made.root / f"etc/pve/nodes/{name}/qemu-server").mkdir(parents=True, exist_ok=True)
    (made.root / "etc/pve/qemu-server").symlink_to("local/qemu-server")
    for vmid, text in ((103, "#on\n"), (105, "#on\n"), (106, "#on\n"), (107, "")):
        made.write(f"etc/pve/nodes/pve1/qemu-server/{vmid}.conf", f"memory: 4096\n{text}")
    guests = [
        {"vmid": vmid, "status": "stopped" if vmid == 107 else "running", "maxmem": size * GIB, "name": f"vm{vmid}"}
        | ({} if vmid == 107 else {"running-machine": "pc-i440fx-9.2+pve1" if vmid == 106 else "pc-q35-10.1+pve0"})
        for vmid, size in ((106, 4), (103, 16), (107, 4), (105, 8))
    ]
    made.write("said/qemu.json", json.dumps(guests))
    made.write("said/migrate", says())
    made.write("said/version", json.dumps({"version": "9.1.4", "release": "9.1"}))
    made.write("said/machines", json.dumps([{"id": "q35"}, {"id": "pc-q35-9.2+pve1"}, {"id": "pc-q35-10.1"}]))
    made.write("said/network", json.dumps([{"iface": "vmbr0", "type": "bridge"}]))
    made.write("said/content", json.dumps([{"volid": "local:snippets/hook.sh"}]))
    made.write("said/migrate-103-pve1", says(**CARD))
    nodes(made, pve2=20, pve3=16)
    made.write("proc/cmdline", "quiet\n")
    made.write("etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
    made.write("boot/grub/grub.cfg", "linux /vmlinuz quiet\n")
    for name in cut_kit.LASTING:
        (made.root / name).mkdir(exist_ok=True)
    cut_kit.flushing(made)
    made.command("qm", QM)
    made.command("pvesh", PVESH)
    made.command("pct", 'echo "VMID Status Lock Name"; echo "901 running ai-lab"')
    for name in ("systemctl", "systemd-run", "update-grub"):
        made.command(name, f"echo {name} $* >>$ROOT/run/called")
    return made


# As the API answers, and what isn't an answer.
ANSWERS = [
    '[{"vmid": 103, "name": "über\\u00e9\\n\\"x\\\\", "maxmem":17179869184,"cpu":0.25e-1,"lock":null,"x":{},"y":[]}]', says().replace("ON", "1"),
    '{"up": true, "down" :false, "on": "0"}', "", "{", "[1,]", '{"a"}', '{"a":1,}', "[1] x", "no", "[01]", '"a\nb"',
]  # fmt: skip
LOOKS = "local $/; my $s = decode_json(<STDIN>); sub t { my $v = shift; my $r = ref $v; $r eq 'HASH' ? '{' . join(',', map { \"$_:\" . t($v->{$_}) } sort keys %$v) . '}' : $r eq 'ARRAY' ? '[' . join(',', map { t($_) } @$v) . ']' : defined $v ? \"<$v>\" : 'undef' } binmode STDOUT, ':utf8'; print t($s)"


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_reads_json_on_a_tests_host_reads_what_perls_own_does(folder: Folder, answer: str) -> None:
    here = folder.environment
    of_perl = {name: value for name, value in here.items() if name != "PERL5LIB"}
    ours, perls = (
        subprocess.run(["perl", "-MJSON::PP", "-e", LOOKS], input=answer.encode(), capture_output=True, env=environment)
        for environment in (here, of_perl)
    )
    assert (ours.returncode == 0, ours.stdout) == (perls.returncode == 0, perls.stdout)


def script_of() -> str:
    script = scripts.reboot_host("auto", "amd_iommu=on", [], 600, guests="migrate")
    return script.replace("\nTURN_SECONDS=180\n", "\nTURN_SECONDS=0\n").replace(
        "\nMOVE_SECONDS=1800\n", "\nMOVE_SECONDS=100\n"
    )


def reboot(folder: Folder, verb: str = "apply") -> subprocess.CompletedProcess[str]:
    return folder.run(verb, script_of())


def end_script() -> str:
    return scripts.compose("cluster_turn.sh", LOCK_TIMEOUT="5", OVER_SECONDS="0", RETURN_SECONDS="0", NODE="")


def end(folder: Folder) -> dict[str, Any]:
    done = folder.run("apply", end_script())
    assert done.returncode == 0, done.stdout + done.stderr
    return {**json.loads(done.stdout), "log": done.stderr}


def places(folder: Folder) -> dict[int, str]:
    """Where each guest is, with `off` and `locked` behind that."""
    found = {}
    for path in sorted((folder.root / "etc/pve/nodes").glob("*/qemu-server/*.conf")):
        text = path.read_text()
        found[int(path.stem)] = (
            path.parts[-3]
            + " off" * ("#on" not in text)
            + " paused" * ("#paused" in text)
            + " locked" * ("lock: migrate" in text)
        )
    return found


AT_HOME = {103: "pve1", 105: "pve1", 106: "pve1", 107: "pve1 off"}
AWAY = {103: "pve1", 105: "pve2", 106: "pve3", 107: "pve1 off"}


def is_restarting(folder: Folder) -> bool:
    called = folder.root / "run/called"
    return called.exists() and "systemctl reboot" in called.read_text()


def is_over(folder: Folder) -> None:
    assert not (folder.root / TURN).exists()
    assert not list((folder.root / "etc/systemd/system").rglob("homelab-turn*"))
    assert {one.name for one in (folder.root / "var/lib/homelab").glob("*")} & {"away", "turn", "turn-end"} == set()


def boots(folder: Folder) -> None:
    """The node starts anew: what was on it is off, and Proxmox VE starts it again, but for what is locked."""
    folder.write("proc/sys/kernel/random/boot_id", NEXT_BOOT + "\n")
    for path in (folder.root / "etc/pve/nodes/pve1/qemu-server").glob("*.conf"):
        text = path.read_text()
        path.write_text(re.sub("#on\n|#paused\n", "", text) if "lock: migrate" in text else text)


def test_what_can_move_is_moved_before_a_restart_and_back_afterwards(node: Folder) -> None:
    planned = json.loads(reboot(node, "plan").stdout)
    assert planned["moves"] == "VM 105 (vm105), VM 106 (vm106)" and planned["cluster"] == ""
    assert planned["guests"] == "VM 103 (vm103; stays with hostpci0), container 901 (ai-lab)"
    assert places(node) == AT_HOME
    done = reboot(node)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert (said["turn"], said["moves"], said["guests"]) == ("yes", planned["moves"], planned["guests"])
    assert places(node) == AWAY and is_restarting(
        node
    )  # the larger one to where more memory is left, the next one elsewhere
    assert node.read("var/lib/homelab/away") == f"vm:105 pve2 {BOOT}\nvm:106 pve3 {BOOT}\n"
    boots(node)
    assert end(node)["over"] == "yes"
    assert places(node) == AT_HOME
    is_over(node)


@pytest.mark.parametrize("guests", ["shutdown", "maintenance"])
def test_nothing_else_moves_guests(node: Folder, guests: Any) -> None:
    script = scripts.reboot_host("auto", "amd_iommu=on", [], 600, guests=guests)
    assert node.run("apply", script).returncode == 0
    assert places(node) == AT_HOME and is_restarting(node) and "pvesh" not in node.read("run/asked")


def only_these(folder: Folder, configs: dict[int, str]) -> None:
    """Running VMs of 8 GiB, with these lines in their configuration, instead of the others that could move."""
    for vmid in (105, 106, 107):
        (folder.root / f"etc/pve/nodes/pve1/qemu-server/{vmid}.conf").unlink()
    for vmid, config in configs.items():
        folder.write(f"etc/pve/nodes/pve1/qemu-server/{vmid}.conf", f"{config}\n#on\n")
    running = {"status": "running", "maxmem": 8 * GIB, "running-machine": "pc-q35-10.1+pve0"}
    folder.write("said/qemu.json", json.dumps([{"vmid": vmid, "name": f"vm{vmid}", **running} for vmid in configs]))


#: Of a VM each, what Proxmox VE says of its migration, and what becomes of it: why it stays, or where it goes.
STAYS: list[tuple[dict[str, Any], str]] = [
    ({"local_disks": [{"volid": "local-lvm:vm-105-disk-0"}]}, "stays with local-lvm:vm-105-disk-0"),
    ({"local_disks": [{"volid": "local:iso/a.iso", "cdrom": 1}]}, "stays with local:iso/a.iso"),
    ({"local_resources": ["usb0", "hostpci1"]}, "stays with hostpci1, usb0"),
    (CARD | {"local_resources": []}, "stays with hostpci0"),
    ({"mapped-resources": ["usb0"], "mapped-resource-info": []}, "stays with usb0"),
    ({"allowed_nodes": [], "not_allowed_nodes": {"pve2": {"unavailable_storages": ["nas"]}}}, "finds no other node with 8192 MiB left"),
    ({"mapped-resources": ["hostpci0"], "mapped-resource-info": {"hostpci0": {"name": "vf", "live-migration": 1}}}, ">pve2"),
    ({"allowed_nodes": ["pve3"]}, ">pve3"),
]  # fmt: skip


def test_what_cant_move_is_shut_down_and_why_is_said(node: Folder) -> None:
    """A disk; a CD; devices; a mapped card and a mapped USB device, as before Proxmox VE 9; a storage that no other node has. A card that migrates moves, and what
    one node alone may take."""
    vms = dict(enumerate(STAYS, start=111))
    only_these(node, dict.fromkeys(vms, ""))
    nodes(node, pve2=60, pve3=30)
    for vmid, (about, _) in vms.items():
        node.write(f"said/migrate-{vmid}-pve1", says(**about))
    planned = json.loads(reboot(node, "plan").stdout)
    assert planned["moves"] == "VM 117 (vm117), VM 118 (vm118)"
    for vmid, (_, what) in vms.items():
        assert (f"VM {vmid} (vm{vmid}; {what})" in planned["guests"]) is not what.startswith(">"), vmid
    assert reboot(node).returncode == 0
    found = places(node)
    assert {vmid: found[vmid] for vmid in vms} == {
        vmid: what.partition(">")[2] or "pve1" for vmid, (_, what) in vms.items()
    }


NET = "net0: virtio=BC:24:11:00:00:01,bridge={},firewall=1"
OTHER_MACHINES = [{"id": "pc-q35-10.0+pve1"}, {"id": "pc-q35-9.2"}]
UNSURE = "has Proxmox VE {}, and this node 9.1: Proxmox VE doesn't guarantee the way to the older one"


#: What the one node says that a VM may move to, and a line of its configuration; what that node lacks, and what can't be told of it.
LACKS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "an older QEMU": ({"machines": OTHER_MACHINES}, "", "has QEMU 10.0, and the VM runs on a machine of 10.1", ""),
    "no such bridge": ({"network": [{"iface": "vmbr1"}]}, NET.format("vmbr0"), "doesn't have bridge vmbr0", ""),
    "no bridge": ({"network": []}, NET.format("vmbr0,tag=20,trunks=1;2"), "doesn't have bridge vmbr0", ""),
    "no hookscript": ({"content": []}, "hookscript: local:snippets/hook.sh", "doesn't have local:snippets/hook.sh, its hookscript", ""),
    "an older one with an older QEMU": ({"version": {"version": "8.4.21"}, "machines": OTHER_MACHINES}, "", "has QEMU 10.0, and the VM runs on a machine of 10.1", ""),
    "an older one": ({"version": {"version": "8.4.21"}}, "", "", UNSURE.format("8.4")),
    "a newer one": ({"version": {"version": "10.0.1"}}, "", "", UNSURE.format("10.0")),
    "no machines": ({"machines": []}, "", "", "doesn't say which machines its QEMU knows"),
    "no list of bridges": ({"network": None}, NET.format("vmbr0"), "", "doesn't say whether it has bridge vmbr0"),
    "garbage for one": ({"network": [1, {}]}, NET.format("vmbr0"), "", "doesn't say whether it has bridge vmbr0"),
    "a bridge that nobody lists": ({}, NET.format("vmbr7"), "", "doesn't say whether it has bridge vmbr7"),
    "no list of scripts": ({"content": None}, "hookscript: local:snippets/hook.sh", "", "doesn't say whether it has local:snippets/hook.sh, its hookscript"),
    "a script that nobody lists": ({}, "hookscript: local:snippets/old.sh", "", "doesn't say whether it has local:snippets/old.sh, its hookscript"),
    "garbage for a script": ({}, "hookscript: a]$(touch${IFS}/tmp/x)*:snippets/a", "", "doesn't say whether it has a]$(touch${IFS}/tmp/x)*:snippets/a, its hookscript"),
    "a network of SDN, a newer QEMU": ({"version": {"version": "9.1.11"}, "machines": [{"id": "pc-q35-11.0"}]}, NET.format("vnet1"), "", ""),
    "its hookscript, no bridge": ({}, "hookscript: local:snippets/hook.sh\nnet0: virtio=BC:24:11:00:00:01,link_down=1", "", ""),
    "another bridge in a snapshot": ({}, "net1: model=e1000,bridge=vmbr0,macaddr=BC:24:11:00:00:01\n[old]\nnet0: virtio,bridge=vmbr7", "", ""),
}  # fmt: skip


def test_what_a_node_lacks_for_a_vm_is_foreseen(node: Folder) -> None:
    """Where each of the others lacks something that Proxmox VE wants, a VM is shut down; where that can't be told, it moves all the same, and the doubt is said."""
    vms = {vmid: (f"n{vmid}", *row) for vmid, row in enumerate(LACKS.values(), start=111)}
    only_these(node, {vmid: config for vmid, (_, _, config, _, _) in vms.items()})
    nodes(node, **{name: 40 for name, *_ in vms.values()})
    node.write("said/network", json.dumps([{"iface": "vmbr0", "type": "bridge"}, {"iface": "vnet1", "type": "vnet"}]))
    for vmid, (name, of_it, *_) in vms.items():
        node.write(f"said/migrate-{vmid}-pve1", says(allowed_nodes=[name]))
        for what, answer in of_it.items():
            node.write(f"said/{what}-{name}", json.dumps(answer))
    planned = json.loads(reboot(node, "plan").stdout)
    for case, (vmid, (name, _, _, lacks, doubt)) in zip(LACKS, vms.items(), strict=True):
        if lacks:
            why = f"finds no other node with 8192 MiB left that it could run on; {name} {lacks}"
            assert f"VM {vmid} (vm{vmid}; {why})" in planned["guests"] and str(vmid) not in planned["moves"], case
        else:
            assert f"VM {vmid} (vm{vmid}{f'; to {name}, which ' * bool(doubt)}{doubt})" in planned["moves"], case
            assert str(vmid) not in planned["guests"], case


@pytest.mark.parametrize(
    ("of_pve2", "of_pve3", "goes_to"),
    [
        ({"machines": OTHER_MACHINES}, {"network": []}, "pve1"),
        ({"machines": OTHER_MACHINES}, {"network": None}, "pve3"),
        ({"network": None}, {"machines": OTHER_MACHINES}, "pve2"),
        ({"network": None}, {}, "pve3"),
    ],
    ids=["nobody has it", "doubt before a lack", "the other way round", "none before doubt"],
)
def test_a_vm_goes_where_nothing_is_known_against_it_as_the_preview_says(
    node: Folder, of_pve2: dict[str, Any], of_pve3: dict[str, Any], goes_to: str
) -> None:
    for name, said in (("pve2", of_pve2), ("pve3", of_pve3)):
        for what, answer in said.items():
            node.write(f"said/{what}-{name}", json.dumps(answer))
    node.write("etc/pve/nodes/pve1/qemu-server/105.conf", NET.format("vmbr0") + "\n#on\n")
    planned = json.loads(reboot(node, "plan").stdout)
    done = reboot(node)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["moves"], said["guests"]) == (planned["moves"], planned["guests"])
    assert places(node)[105] == goes_to


@pytest.mark.parametrize("says", sampling.sample(["nothing", "garbage"], 1, "silent"))
def test_a_node_that_doesnt_answer_takes_no_vm_and_nothing_is_shut_down_for_that(node: Folder, says: str) -> None:
    node.write(*(("run/down-pve2", "") if says == "nothing" else ("said/version-pve2", '["9.1.4"]')))
    planned = json.loads(reboot(node, "plan").stdout)
    assert planned["moves"] == "VM 105 (vm105), VM 106 (vm106)" and planned["cluster"] == ""
    asked = [line for line in node.read("run/asked").splitlines() if "/nodes/pve2/" in line]
    assert asked == ["pvesh get /nodes/pve2/version --output-format json"]  # once
    nodes(node, pve2=20, pve3=12)  # no room for both on pve3
    planned = json.loads(reboot(node, "plan").stdout)
    assert (
        "whether VM 106 can move to pve2, which doesn't answer (`pvesh get /nodes/pve2/version`)" in planned["cluster"]
    )
    done = reboot(node)
    assert done.returncode == 1 and "/nodes/pve2/version" in done.stdout
    assert places(node) == AT_HOME and not is_restarting(node)
    (node.root / "run/down-pve2").unlink(missing_ok=True)
    (node.root / "said/version-pve2").unlink(missing_ok=True)
    assert reboot(node).returncode == 0
    assert (places(node)[105], places(node)[106]) == ("pve2", "pve2")


@pytest.mark.parametrize(
    ("left", "moved"),
    [
        ({"pve2": 20, "pve3": 20}, {105: "pve2", 106: "pve3"}),
        ({"pve2": 8, "pve3": 30}, {105: "pve3", 106: "pve3"}),
        ({"pve2": -1, "pve3": 13}, {105: "pve3", 106: "pve3"}),
        ({"pve2": -1, "pve3": 12}, {105: "pve3", 106: "pve1"}),
        ({"pve2": 5, "pve3": 3}, {105: "pve1", 106: "pve2"}),
        ({"pve2": -1, "pve3": -1}, {105: "pve1", 106: "pve1"}),
    ],
    ids=["equals", "one is full", "one is offline", "no room for both", "room for the small one", "nobody"],
)
def test_a_target_is_online_and_has_the_memory(node: Folder, left: dict[str, int], moved: dict[int, str]) -> None:
    nodes(node, **left)
    script = node.write("run/script", script_of())
    done = node.bash(f'source {script}; what_can_move; echo "$MOVING"', parts=())
    assert {vmid: "pve1" for vmid in moved} | {
        int(vmid): name for vmid, name in (entry.split(":") for entry in done.stdout.split())
    } == moved, done.stderr


HA = """
echo "quorum OK"
[[ $1 != crm-command ]] || { [[ $3 == enable ]] && touch "$ROOT/run/mode" || rm -f "$ROOT/run/mode"; }
at=pve1 said=active
[[ ! -e $ROOT/run/mode ]] || at=pve2 said="maintenance mode"
echo "lrm pve1 ($said, watchdog standby, Sat Nov 21 03:29:23 2026)"
cat "$ROOT/said/lrm" 2>/dev/null
! grep -qs "^vm: 200" "$ROOT/etc/pve/ha/resources.cfg" || echo "service vm:200 ($at, started)"
"""


@pytest.mark.parametrize(("room", "fits"), [(20, False), (30, True)])
def test_what_ha_may_bring_to_a_node_isnt_promised_to_others(node: Folder, room: int, fits: bool) -> None:
    node.write("etc/pve/ha/resources.cfg", "vm: 200\n")
    node.command("ha-manager", HA)
    of_ha = {"type": "qemu", "id": "qemu/200", "vmid": 200, "node": "pve1", "status": "running", "maxmem": 12 * GIB}
    nodes(node, of_ha, pve2=room, pve3=-1)
    assert ("VM 105 (vm105; finds no other node" in json.loads(reboot(node, "plan").stdout)["guests"]) is not fits
    # HA takes it there.
    moving = node.read("said/nodes.json")
    nodes(node, of_ha | {"node": "pve2"}, pve2=room - 12, pve3=-1)
    node.write("said/later", node.read("said/nodes.json"))
    node.write("said/nodes.json", moving)
    node.command("ha-manager", f'{HA}\n[[ ! -e $ROOT/run/mode ]] || cp "$ROOT/said/later" "$ROOT/said/nodes.json"')
    assert reboot(node).returncode == 0 and is_restarting(node)
    assert places(node)[105] == ("pve2" if fits else "pve1") and places(node)[106] == "pve2"


@pytest.mark.parametrize("kind", sampling.sample(["qemu", "lxc"], 1, "kind"))
def test_what_runs_on_a_node_may_take_all_that_it_is_configured_with(node: Folder, kind: str) -> None:
    """pve2 was started a minute ago."""
    there = [
        {"type": kind, "id": f"{kind}/{n}", "vmid": n, "node": "pve2", "status": status, "maxmem": 40 * GIB}
        for n, status in ((301, "running"), (302, "stopped"))
    ]
    nodes(node, *there, pve2=60, pve3=26)
    assert reboot(node).returncode == 0 and is_restarting(node)
    assert places(node) == AWAY | {105: "pve3", 106: "pve2"}


def test_a_node_that_somebody_empties_gets_no_guests(node: Folder) -> None:
    node.command("ha-manager", HA)
    node.write("said/lrm", "lrm pve2 (maintenance mode, watchdog standby, Sat Nov 21 03:29:28 2026)\n")
    assert reboot(node).returncode == 0 and is_restarting(node)
    assert places(node) == AT_HOME | {105: "pve3", 106: "pve3"}


def test_a_guest_that_is_paused_stays(node: Folder) -> None:
    edit(node, "said/qemu.json", r'"vmid": 105,', '"vmid": 105, "qmpstatus": "paused",')
    assert "VM 105 (vm105; is paused, and stays)" in json.loads(reboot(node, "plan").stdout)["guests"]
    assert reboot(node).returncode == 0 and places(node)[105] == "pve1"


def test_another_node_takes_a_guest_that_the_first_one_refuses(node: Folder) -> None:
    """Such as for a bridge that it lacks."""
    node.write("run/fails-105-pve2", "")
    done = reboot(node)
    assert done.returncode == 0 and is_restarting(node) and "note: VM 105 hasn't moved to pve2" in done.stderr
    assert places(node) == AT_HOME | {105: "pve3", 106: "pve3"}
    assert node.read("var/lib/homelab/away").count(f"vm:105 pve3 {BOOT}\n") == 1
    boots(node)
    assert end(node)["over"] == "yes" and places(node) == AT_HOME
    is_over(node)


def test_a_backup_that_is_waited_for_keeps_no_guest_here(node: Folder) -> None:
    """While it runs Proxmox VE doesn't say whether the guest can move."""
    edit(node, "etc/pve/nodes/pve1/qemu-server/105.conf", "^", "lock: backup\n")
    refused = reboot(node)
    assert refused.returncode == 1 and places(node)[105] == "pve1" and not is_restarting(node)
    assert "whether VM 105 can move (`pvesh get /nodes/pve1/qemu/105/migrate`): VM is locked" in refused.stdout
    assert "those that moved" not in refused.stdout
    well = node.read("said/status")
    node.write("said/status", status(1, 1, expected=3))
    node.write("said/status-later", well)
    node.command(
        "sleep",
        'sed -i "/^lock: backup/d" "$ROOT/etc/pve/nodes/pve1/qemu-server/105.conf"; cp "$ROOT/said/status-later" "$ROOT/said/status"',
    )
    done = node.run("apply", script_of().replace("\nTURN_SECONDS=0\n", "\nTURN_SECONDS=100\n"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert places(node) == AWAY and json.loads(done.stdout)["moves"] == "VM 105 (vm105), VM 106 (vm106)"


def test_where_older_versions_dont_say_who_may_take_a_running_vm_the_migration_decides(node: Folder) -> None:
    about = json.loads(says(running=1))
    del about["allowed_nodes"], about["not_allowed_nodes"]
    node.write("said/migrate", json.dumps(about))
    assert reboot(node).returncode == 0 and places(node) == AWAY


def test_what_ha_has_is_has(node: Folder) -> None:
    """Of HA's guests HA's maintenance mode is the only mover (tests/scripts/test_maintenance.py), also of those that it keeps stopped or ignores."""
    node.write("etc/pve/ha/resources.cfg", "vm: 105\n\tstate ignored\n\nct: 106\n")
    node.command("ha-manager", 'echo "quorum OK"; echo "service vm:105 (pve1, ignored)"')
    assert reboot(node).returncode == 0
    assert places(node) == AT_HOME | {106: "pve2"}


@pytest.mark.parametrize(("whom", "what"), sampling.paired(["", "-pve1"], ["nothing", "garbage"], "unknown"))
def test_what_isnt_known_moves_nobody_and_keeps_the_node_from_restarting(node: Folder, whom: str, what: str) -> None:
    if what == "nothing":
        node.write(f"run/down{whom}", "")
    elif whom:
        node.write("said/migrate-105-pve1", "{}")
    else:
        node.write("said/nodes.json", "no: quorum")
    assert "Proxmox VE doesn't say" in json.loads(reboot(node, "plan").stdout)["cluster"]
    done = reboot(node)
    assert (
        done.returncode == 1 and "Proxmox VE doesn't say" in done.stdout and "guestsAtReboot: shutdown" in done.stdout
    )
    assert places(node) == AT_HOME and not is_restarting(node)
    is_over(node)


@pytest.mark.parametrize("how", ["fails-106", "ends-badly"])
def test_a_migration_that_fails_keeps_the_node_from_restarting_and_the_others_come_back(node: Folder, how: str) -> None:
    node.write(f"run/{how}", "")
    done = reboot(node)
    assert done.returncode == 1 and not is_restarting(node)
    if how == "fails-106":
        assert (
            "VM 106 hasn't moved to pve3, or not as it should: ERROR: migration aborted: no route to pve3"
            in done.stdout
        )
    else:
        assert (
            "VM 105 hasn't moved to pve2, or not as it should: ERROR: migration finished with problems" in done.stdout
        )
    assert places(node) == AT_HOME
    is_over(node)


def test_a_migration_that_hangs_is_given_up(node: Folder) -> None:
    node.command("qm", f"[[ $1 != migrate ]] || exec tail -f /dev/null\n{QM}")
    # Its half hour is a second, and what it gets to take back what it has begun another one.
    node.command("timeout", '[[ "$1 $2" != "-k 120" ]] || set -- -k 1 1 "${@:4}"; exec /usr/bin/timeout "$@"')
    done = reboot(node)
    assert done.returncode == 1 and "VM 105 hasn't moved to pve2, or not as it should: given up after" in done.stdout
    assert places(node) == AT_HOME and not is_restarting(node)
    is_over(node)


def test_a_guest_that_was_to_move_isnt_shut_down_instead(node: Folder) -> None:
    """Between what was said and the move its last place has gone."""
    node.write("said/later", says(local_resources=["usb0"]))
    node.command(
        "systemctl", 'cp "$ROOT/said/later" "$ROOT/said/migrate-106-pve1"; echo "systemctl $*" >>"$ROOT/run/called"'
    )
    done = reboot(node)
    assert (
        done.returncode == 1
        and "VM 106 was to move to another node, and can't any more: it stays with usb0" in done.stdout
    )
    assert places(node) == AT_HOME and not is_restarting(node)
    is_over(node)


def test_what_the_cluster_loses_while_guests_move_keeps_the_node_from_restarting(node: Folder) -> None:
    node.write("said/status-later", status(1, 1, expected=3))
    node.command("qm", f'{QM}\n[[ $1 != migrate ]] || cp "$ROOT/said/status-later" "$ROOT/said/status"')
    done = reboot(node)
    assert done.returncode == 1 and "without this node the cluster has 1 of 3 votes" in done.stdout
    assert places(node) == AT_HOME and not is_restarting(node)
    is_over(node)


def test_a_node_that_is_alone_in_its_cluster_moves_nobody(node: Folder) -> None:
    members(node, status(1, expected=1))
    nodes(node)
    assert reboot(node).returncode == 0 and places(node) == AT_HOME and is_restarting(node)


def stays_up(folder: Folder) -> None:
    """The restart that was ordered didn't come, within a quarter of an hour."""
    ordered = folder.root / "run/homelab/ordered"
    if ordered.exists():
        boot, since = ordered.read_text().split()
        ordered.write_text(f"{boot} {int(since) - 901}\n")


def test_nobody_ends_a_turn_while_its_restart_is_ordered(moved: Folder) -> None:
    """The node's own timer may wait for the lock meanwhile, of an earlier turn; another stack may verify this boot."""
    assert is_restarting(moved)
    called = moved.read("run/called")
    assert called.index("systemctl stop homelab-turn.service") < called.index("systemctl restart homelab-turn.timer")
    expired = moved.bash(moved.read("var/lib/homelab/turn-end"), "expire", parts=())
    assert expired.returncode == 1 and end(moved)["over"] == "no"
    assert (
        places(moved) == AWAY and moved.read("var/lib/homelab/away").count("vm:") == 2 and (moved.root / TURN).exists()
    )
    stays_up(moved)
    assert end(moved)["over"] == "yes" and places(moved) == AT_HOME
    is_over(moved)


def test_a_restart_that_cant_be_ordered_ends_the_turn_at_once(node: Folder) -> None:
    node.command("systemd-run", "exit 1")
    assert reboot(node).returncode == 1
    assert places(node) == AT_HOME
    is_over(node)


def half_a_minute_later(folder: Folder) -> None:
    note = folder.root / "var/lib/homelab/away"
    if note.exists():
        note.write_text(re.sub(r"^(vm:\d+ \S+ \S+ \d+ \d+) \d+$", r"\1 5", note.read_text(), flags=re.MULTILINE))


@pytest.fixture
def moved(kept_systems: KeptSystems) -> Folder:
    """Its guests are on other nodes, and its restart is ordered."""

    def make(place: Path) -> Folder:
        node = with_guests(empty_folder(place))
        assert reboot(node).returncode == 0
        return node

    node = kept_systems.take("moved", make)
    # It was ordered now, also where it was kept for a while.
    boot, _ = node.read("run/homelab/ordered").split()
    node.write("run/homelab/ordered", f"{boot} {int(time.time())}\n")
    return node


# -- the way back ------------------------------------------------------------------------------------------------------
@pytest.fixture
def away(kept_systems: KeptSystems) -> Folder:
    """Its guests are on other nodes, and it has restarted."""

    def make(place: Path) -> Folder:
        node = with_guests(empty_folder(place))
        assert reboot(node).returncode == 0
        boots(node)
        (node.root / "run/asked").unlink()
        return node

    return kept_systems.take("away", make)


def edit(folder: Folder, path: str, pattern: str, new: str) -> None:
    folder.write(path, re.sub(pattern, new, folder.read(path)))


@pytest.mark.parametrize(
    ("what", "place", "said"),
    [
        ("moved on", "pve3", "VM 105, which was moved to pve2, has moved on to pve3: it stays there"),
        ("shut down", "pve2 off", "VM 105 was shut down on pve2: it stays there"),
        ("removed", None, "VM 105, which was moved to pve2, isn't there any more"),
        ("brought back", "pve1", ""),
        ("got a device", "pve2", "VM 105 stays on pve2, since it has usb0 there"),
        ("may not come", "pve2", "VM 105 stays on pve2: Proxmox VE doesn't allow it on pve1 any more"),
    ],
)
def test_whoever_changed_something_meanwhile_meant_it(away: Folder, what: str, place: str | None, said: str) -> None:
    conf = away.root / "etc/pve/nodes/pve2/qemu-server/105.conf"
    if what in ("moved on", "brought back"):
        conf.rename(away.root / f"etc/pve/nodes/{'pve3' if what == 'moved on' else 'pve1'}/qemu-server/105.conf")
    elif what == "shut down":
        conf.write_text("memory: 4096\n")
    elif what == "removed":
        conf.unlink()
    else:
        more: dict[str, Any] = {"local_resources": ["usb0"]} if what == "got a device" else {"allowed_nodes": ["pve3"]}
        away.write("said/migrate-105-pve2", says(**more))
    done = end(away)
    assert done["over"] == "yes" and said in done["log"]
    assert places(away).get(105) == place and places(away)[106] == "pve1"
    is_over(away)


@pytest.mark.parametrize(
    "what", ["a node that is down", "no quorum", "a guest that is locked", "a cluster that isn't there yet"]
)
def test_what_isnt_known_yet_is_waited_for_and_said(away: Folder, what: str) -> None:
    conf = "etc/pve/nodes/pve2/qemu-server/105.conf"
    if what == "a node that is down":
        away.write("run/down-pve2", "")
    elif what == "no quorum":
        away.write("run/down", "")
    elif what == "a guest that is locked":
        edit(away, conf, "^", "lock: backup\n")
    else:
        (away.root / "etc/pve/nodes").rename(away.root / "etc/pve/none")
    done = end(away)
    assert (
        done["over"] == "no"
        and "; VM 105 is to come back from pve2: there, qm migrate 105 pve1 --online" in done["set"]
    )
    # Each for itself.
    assert ("vm:106" in away.read("var/lib/homelab/away")) is (what in ("no quorum", "a cluster that isn't there yet"))
    if what == "a cluster that isn't there yet":
        (away.root / "etc/pve/none").rename(away.root / "etc/pve/nodes")
    else:
        assert places(away)[105].startswith("pve2")
    for name in ("down-pve2", "down"):
        (away.root / "run" / name).unlink(missing_ok=True)
    if what == "a guest that is locked":
        edit(away, conf, "lock: backup\n", "")
    half_a_minute_later(away)
    assert end(away)["over"] == "yes" and places(away) == AT_HOME
    is_over(away)


def test_a_guest_that_cant_be_brought_back_is_tried_again_for_some_time_and_left(away: Folder) -> None:
    away.write("run/fails-105", "")
    first = end(away)
    assert first["over"] == "no" and places(away) == AT_HOME | {105: "pve2"}
    assert (
        "VM 105 isn't back from pve2 yet: it can't be brought back: ERROR: migration aborted: no route" in first["log"]
    )
    # The node goes on trying, and not only when its timer's time is over.
    assert "systemctl start --no-block homelab-turn.service" in away.read("run/called")
    assert end(away)["over"] == "no"  # not at once
    assert away.read("run/asked").count("pvesh create /nodes/pve2/qemu/105/migrate") == 1
    # However late the second try is, it isn't the last.
    half_a_minute_later(away)
    assert end(away)["over"] == "no" and re.search(r"vm:105 pve2 \S+ 2 0 \d+\n", away.read("var/lib/homelab/away"))
    edit(away, "var/lib/homelab/away", r" 2 0 \d+\n", " 14 0 5\n")
    said = end(away)
    assert (
        said["over"] == "yes"
        and "VM 105, which was moved to pve2, is given up: it can't be brought back: ERROR" in said["log"]
    )
    assert places(away) == AT_HOME | {105: "pve2"}
    is_over(away)
    # It is said to whoever looks, until somebody has seen to it, or nothing of this program is left there.
    told = json.loads("{" + away.sourced("read_host.sh", "set_aside").stdout[1:] + "}")["set_aside"]
    assert told.strip().startswith("left:105 pve2 it can't be brought back: ERROR: migration aborted")
    assert not away.sourced("cluster_turn.sh", "forget_left").returncode and (away.root / LEFT).exists()
    (away.root / "etc/pve/nodes/pve2/qemu-server/105.conf").rename(
        away.root / "etc/pve/nodes/pve3/qemu-server/105.conf"
    )
    assert not away.sourced("cluster_turn.sh", "forget_left").returncode and not (away.root / LEFT).exists()


def test_what_an_earlier_restart_left_isnt_taken_for_what_this_one_does(node: Folder) -> None:
    """Somebody has fetched VM 105 since, and it moves to the same node again; 108 is still where it was left."""
    node.write(LEFT, "105 pve2 it can't be brought back\n108 pve2 it can't be brought back\n")
    node.write("etc/pve/nodes/pve2/qemu-server/108.conf", "#on\n")
    assert reboot(node).returncode == 0 and places(node)[105] == "pve2"
    assert node.read(LEFT) == "108 pve2 it can't be brought back\n"


def test_a_destroy_says_which_guests_are_left_elsewhere_before_it_forgets_them(away: Folder) -> None:
    away.write(LEFT, "105 pve2 it can't be brought back: no route\n106 pve2 the same\nnonsense\n")
    done = away.sourced("cmdline.sh", "give_left_up")
    assert not (away.root / LEFT).exists()
    assert done.returncode == 0 and "VM 106" not in done.stderr  # it is on pve3 by now
    assert "VM 105 is still on pve2, where it was moved for a restart of this node" in done.stderr
    assert "it can't be brought back: no route" in done.stderr and "qm migrate 105 pve1 --online 1" in done.stderr


def test_a_guest_that_is_given_up_after_a_destroy_leaves_no_note(away: Folder) -> None:
    away.write("run/fails-105", "")
    assert end(away)["over"] == "no"
    edit(away, "var/lib/homelab/away", r"(vm:105 pve2 \S+) 1 0 \d+\n", r"\1 14 0 5\nleaving yes\n")
    done = away.run("expire", end_script())  # by the node's own timer
    assert done.returncode == 0, done.stdout
    assert not (away.root / LEFT).exists()
    is_over(away)


def test_a_node_that_is_dead_for_good_isnt_asked_for_ever(away: Folder) -> None:
    away.write("run/down-pve2", "")
    assert end(away)["over"] == "no" and re.search(r"vm:105 pve2 \S+ 0 1 \d+\n", away.read("var/lib/homelab/away"))
    edit(away, "var/lib/homelab/away", r" 0 1 \d+\n", " 0 1439 5\n")
    said = end(away)
    assert (
        said["over"] == "yes"
        and "VM 105, which was moved to pve2, is given up: pve2 doesn't say how it is" in said["log"]
    )
    is_over(away)


@pytest.mark.parametrize("how", ["#moved\n#paused\n", "#moved\n"], ids=["paused", "running"])
def test_a_guest_whose_node_went_off_before_its_lock_was_gone_goes_on_and_comes_back(away: Folder, how: str) -> None:
    """The configuration has moved; the node that it came from lost its power before the guest was let go on, or unlocked."""
    edit(away, "etc/pve/nodes/pve2/qemu-server/105.conf", "^", f"lock: migrate\n{how}")
    done = end(away)
    assert done["over"] == "yes" and "VM 105 goes on on pve2: its migration was cut short" in done["log"]
    assert places(away) == AT_HOME and "went off" not in away.read("run/asked")
    is_over(away)


def task(**more: Any) -> str:
    return json.dumps([{"type": "qmigrate", "id": "105", "starttime": 1, "user": "root@pam"} | more])


@pytest.mark.parametrize(("place", "at_work"), sampling.paired(["pve1", "pve2"], ["pve1", "pve2"], "at work"))
def test_a_guest_that_is_being_migrated_isnt_unlocked(away: Folder, place: str, at_work: str) -> None:
    conf = away.root / "etc/pve/nodes/pve2/qemu-server/105.conf"
    conf.rename(conf := away.root / f"etc/pve/nodes/{place}/qemu-server/105.conf")
    conf.write_text("lock: migrate\nmemory: 4096\n#on\n#moved\n#paused\n")
    away.write(f"said/tasks-{at_work}", task())
    done = end(away)
    assert done["over"] == "no" and places(away)[105] == f"{place} paused locked"
    assert "there, qm unlock 105 && qm resume 105" in done["log"] and f"it is on {place}, and locked" in done["log"]
    half_a_minute_later(away)
    away.write(f"said/tasks-{at_work}", task(endtime=2, status="unexpected status"))
    assert end(away)["over"] == "yes" and places(away) == AT_HOME
    is_over(away)


@pytest.mark.parametrize("boot", [BOOT, NEXT_BOOT], ids=["the same boot", "the next one"])
def test_a_return_that_finishes_with_problems_is_no_end(moved: Folder, boot: str) -> None:
    """Its connection is cut once the configuration has moved: the guest is at home, locked, and waits for somebody who lets it go on."""
    stays_up(moved) if boot == BOOT else boots(moved)
    moved.write("run/ends-badly", "")
    moved.write("said/tasks-pve2", task())
    done = end(moved)
    assert done["over"] == "no" and places(moved)[105] == "pve1 paused locked"
    assert "vm:105" in moved.read("var/lib/homelab/away")
    (moved.root / "run/ends-badly").unlink()
    (moved.root / "said/tasks-pve2").unlink()
    half_a_minute_later(moved)
    assert end(moved)["over"] == "yes" and places(moved) == AT_HOME
    is_over(moved)


def test_a_guest_that_went_off_with_the_node_while_it_moved_is_started_again(moved: Folder) -> None:
    """Its power was lost in the middle of the migration."""
    (moved.root / "etc/pve/nodes/pve2/qemu-server/105.conf").unlink()
    boots(moved)
    moved.write("etc/pve/nodes/pve1/qemu-server/105.conf", "lock: migrate\nmemory: 4096\n")
    done = end(moved)
    assert done["over"] == "yes" and "VM 105 went off with this node" in done["log"]
    assert places(moved) == AT_HOME
    is_over(moved)


def test_a_guest_that_is_started_again_does_not_hold_the_hosts_lock(moved: Folder) -> None:
    """It would for as long as it runs. Another one was asked for its own lock before."""
    (moved.root / "etc/pve/nodes/pve3/qemu-server/106.conf").unlink()
    boots(moved)
    moved.write("etc/pve/nodes/pve1/qemu-server/106.conf", "lock: migrate\nmemory: 4096\n")
    moved.command("qm", f'[[ $1 != start ]] || readlink /proc/$$/fd/* >"$ROOT/run/open"\n{QM}')
    assert end(moved)["over"] == "yes" and places(moved) == AT_HOME
    assert "pvesh create /nodes/pve2/qemu/105/migrate" in moved.read("run/asked")
    opened = moved.read("run/open").splitlines()
    assert "/dev/null" in opened and not [path for path in opened if path.endswith("/run/homelab/lock")]


def test_a_guest_that_somebody_brought_home_and_shut_down_stays_off(away: Folder) -> None:
    (away.root / "etc/pve/nodes/pve2/qemu-server/105.conf").unlink()
    away.write("etc/pve/nodes/pve1/qemu-server/105.conf", "memory: 4096\n")
    assert end(away)["over"] == "yes" and places(away) == AT_HOME | {105: "pve1 off"}
    assert "qm start" not in away.read("run/asked")
    is_over(away)


def test_a_guest_whose_migration_is_under_way_is_waited_for(moved: Folder) -> None:
    """The turn of a run that was killed ends in the same boot."""
    stays_up(moved)
    (moved.root / "etc/pve/nodes/pve2/qemu-server/105.conf").unlink()
    moved.write("etc/pve/nodes/pve1/qemu-server/105.conf", "lock: migrate\nmemory: 4096\n#on\n")
    moved.write("said/tasks-pve1", task())
    assert end(moved)["over"] == "no" and places(moved)[105] == "pve1 locked"
    moved.write("etc/pve/nodes/pve1/qemu-server/105.conf", "memory: 4096\n#on\n")
    half_a_minute_later(moved)
    assert end(moved)["over"] == "yes" and places(moved) == AT_HOME
    is_over(moved)


def test_nobody_ends_the_turn_while_a_migration_of_a_killed_script_is_at_work(node: Folder) -> None:
    os.mkfifo(node.root / "run/go")
    node.command(
        "qm", f'[[ $1 != migrate || $2 != 105 ]] || {{ touch "$ROOT/run/at-work"; read -r _ <"$ROOT/run/go"; }}\n{QM}'
    )
    run = subprocess.Popen(
        ["bash", "-s", "--", "apply"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
        env=node.environment,
    )  # fmt: skip
    assert run.stdin
    run.stdin.write(script_of())
    run.stdin.close()
    wait_until((node.root / "run/at-work").exists)
    run.kill()
    run.wait()
    assert node.read("var/lib/homelab/away") == f"vm:105 pve2 {BOOT}\n"
    hasty = scripts.compose("cluster_turn.sh", LOCK_TIMEOUT="0", OVER_SECONDS="0", RETURN_SECONDS="0", NODE="")
    refused = node.run("apply", hasty)
    assert refused.returncode == 1 and "another run still holds" in refused.stdout and places(node) == AT_HOME
    (node.root / "run/go").write_text("on\n")
    assert (
        end(node)["over"] == "yes" and places(node) == AT_HOME
    )  # it waited until VM 105 had moved, and brought it back
    assert "pvesh create /nodes/pve2/qemu/105/migrate" in node.read("run/asked") and not is_restarting(node)
    is_over(node)


def test_the_next_run_brings_the_rest_away_and_forgets_nobody(node: Folder) -> None:
    """One was killed after its first guest."""
    node.write("etc/pve/nodes/pve2/qemu-server/105.conf", "memory: 4096\n#on\n")
    (node.root / "etc/pve/nodes/pve1/qemu-server/105.conf").unlink()
    node.write("var/lib/homelab/turn", f"boot {BOOT}\n")
    node.write("var/lib/homelab/away", f"vm:105 pve2 {BOOT}\n")
    edit(node, "said/qemu.json", r'\{"vmid": 105[^}]*\}', '{"vmid": 105, "status": "stopped", "maxmem": 0}')
    assert reboot(node).returncode == 0
    assert node.read("var/lib/homelab/away") == f"vm:105 pve2 {BOOT}\nvm:106 pve2 {BOOT}\n"
    boots(node)
    assert end(node)["over"] == "yes" and places(node) == AT_HOME
    is_over(node)


def test_a_reading_has_what_is_still_to_be_put_back(away: Folder) -> None:
    done = away.sourced("read_host.sh", "set_aside")
    assert json.loads("{" + done.stdout[1:] + "}")["set_aside"] == f"vm:105 pve2 {BOOT}\nvm:106 pve3 {BOOT}"


# -- cut short ---------------------------------------------------------------------------------------------------------
def each_ends_well(folder: Folder, cuts: list[cut_kit.Cut], name: str) -> None:
    """From each moment the node's own timer, or the next run, brings every guest back, running."""
    wrong = []
    for cut in sampling.sample(cuts, 3, name):
        cut_kit.restore(folder.root, cut.files)
        shutil.rmtree(
            folder.root / LOCK, ignore_errors=True
        )  # as the cluster does it, two minutes after its maker's death
        folder.write("proc/sys/kernel/random/boot_id", BOOT + "\n")
        if cut.how != "killed":
            boots(folder)
        else:
            go_on(folder)
            stays_up(folder)
        said = [end(folder) for _ in range(2)][-1]
        left = [
            path.name
            for path in (folder.root / "var/lib/homelab").glob("*")
            if path.name in ("away", "turn", "turn-end")
        ]
        if said["over"] != "yes" or places(folder) != AT_HOME or left or (folder.root / TURN).exists():
            wrong.append(f"{cut.number}, {cut.how}: {places(folder)} {left} {said}")
    assert not wrong, "\n".join([f"HOMELAB_SEED={sampling.SEED}", *wrong])


def go_on(folder: Folder) -> None:
    """A migration that the script had started ends by itself: to where it was going."""
    for path in (folder.root / "etc/pve/nodes").glob("*/qemu-server/*.conf"):
        text = path.read_text()
        if "lock: migrate" in text:
            note = re.search(rf"vm:{path.stem} (\S+)", folder.read("var/lib/homelab/away"))
            assert note, "a migration that isn't noted"
            path.write_text(re.sub("lock: migrate\n|#moved\n|#paused\n", "", text))
            to = path.parts[-3] if "#moved" in text else note[1] if path.parts[-3] == "pve1" else "pve1"
            path.rename(folder.root / f"etc/pve/nodes/{to}/qemu-server" / path.name)


def test_a_run_that_is_cut_short_at_any_moment_ends_with_every_guest_at_home(node: Folder, tmp_path: Path) -> None:
    cuts = cut_kit.cuts(node, "apply", script_of(), tmp_path / "output")
    assert len(cuts) > 20 and places(node) == AWAY
    each_ends_well(node, cuts, "away")


def test_a_return_that_is_cut_short_at_any_moment_is_finished_by_the_next(moved: Folder, tmp_path: Path) -> None:
    boots(moved)
    cuts = cut_kit.cuts(moved, "apply", end_script(), tmp_path / "output")
    assert len(cuts) > 10 and places(moved) == AT_HOME
    each_ends_well(moved, cuts, "back")
