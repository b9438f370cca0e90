"""Roads that can be run on Proxmox VE itself, too: `make test-node` (tests/node); else on the lab.

Each begins with a host without guests, makes its own (tests/e2e/roads.py), and ends with every byte as it was. What it needs of a node beside that, its mark
says: `card`, one that can be given away; `render`, one that a container can share; `nvidia`, one of NVIDIA's with its driver; `quorum`, that the node
can be cut off; `power`, that its power can be cut.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from remote_scripts.both import guest_cards, start_guests
from remote_scripts.both.terms import Terms
from remote_scripts.notes import owed
from tests import sampling
from tests.boot_layers import asked_of
from tests.conftest import PROJECT
from tests.e2e.person import PROGRAM
from tests.e2e.roads import CT, NEW_CT, NEW_VM, TEMPLATE, VM, conf, make_guests, rootfs, settle, stop
from tests.engine_stack import HostStack
from tests.host import Host
from tests.waiting import wait_until

On = Callable[[str], HostStack]


def given_back(host: Host, before: list[str]) -> None:
    """Every byte is as it was."""
    other = sorted(set(host.files()) ^ set(before))
    assert not other, "\n".join(other)


def with_card(stack: HostStack, **more: Any) -> str:
    """The host's first card that isn't its screen, in the settings; its address."""
    card = stack.machine.card()
    assert card is not None
    stack.host["gpus"] = {"card": {"address": card[0], "match": card[1], **more}}
    return card[0]


@pytest.mark.node
def test_init_by_ssh_alone_an_up_and_a_destroy_after_which_its_key_is_gone_too(on: On, tmp_path: Path) -> None:
    stack = on("rtx5090")
    host, (settings,) = stack.machine, stack.config["homelab:hosts"].values()
    before = host.files()
    for name in PROGRAM:
        (stack.folder / name).symlink_to(PROJECT / name)
    stack.home = tmp_path / "home"
    stack.home.mkdir()
    environment = {**stack.environment, **host.password}
    identity = [] if host.password else ["--identity", settings["ssh"]["privateKeyFile"]]
    where = f"root@{settings['address']}:{settings['ssh'].get('port', 22)}"
    told = ["--host-key", settings["ssh"]["hostKey"], "--stack", "lab", "--yes", *identity]
    command = [sys.executable, "-m", "homelab", "init", where, *told, "--set", f"timeouts.api={host.slow * 60 + 1}"]
    stack.config = {}
    stack.write_config()
    ran = subprocess.run(command, cwd=stack.folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    stack.config = yaml.safe_load((stack.folder / "Pulumi.lab.yaml").read_text())["config"]
    [own] = stack.config["homelab:hosts"].values()
    own["timeouts"] = settings["timeouts"]
    stack.up()
    assert (stack.up().changed, stack.up("--refresh").changed) == (set(), set())
    gone = stack.destroy_as_left()
    if host.password:
        assert host.files() != before, "its key is there"
        [remove] = set(re.findall(r"this removes it[^`]*`([^`]*)`", " ".join(gone.output.split())))
        host.run(remove)
    given_back(host, before)


@pytest.mark.node
def test_a_vm_and_a_container_are_made_past_wrong_values_mended_after_five_changes_by_hand_and_removed(on: On) -> None:
    stack = on("rtx5090")
    host = stack.machine
    own = shlex.split(make_guests(host).replace("-ID", f"-{NEW_VM}"))
    before, mark = host.files(), host.tasks()
    vm = {"machine": "q35", "bios": "seabios", "cores": 1, "memory": 512, "ostype": "l26", "cpu": "x86-64-v2"}
    vm |= {key.lstrip("-"): value for key, value in zip(own[::2], own[1::2], strict=True)}
    ct = {
        "ostemplate": f"local:vztmpl/{TEMPLATE}",
        "rootfs": rootfs(host),
        "memory": 64,
        "onboot": 0,
        "ostype": "unmanaged",
        "arch": "amd64",
    }
    vms = {"made": {"host": "pve", "vmid": NEW_VM, "power": "running", "create": vm}}
    containers = {"box": {"host": "pve", "ctid": NEW_CT, "gpuAssignment": "none", "power": "running", "create": ct}}
    stack.config |= {"homelab:vms": vms, "homelab:containers": containers}
    # Refused beforehand, in Proxmox VE's own words, all at once.
    wrong = {"net0": "virtio,bridge=nobridge", "scsi0": "nowhere:4", "ide2": "local:iso/none.iso,media=cdrom"}
    vms["made"]["create"] = vm | wrong
    containers["box"]["create"] = ct | {"rootfs": "neverwhere:1", "ostemplate": "local:vztmpl/nothing_1_amd64.tar.gz"}
    refused = stack.preview(ok=False).output
    said = ["'nobridge'", "'nowhere'", "local:iso/none.iso", "'neverwhere'", "local:vztmpl/nothing_1_amd64.tar.gz"]
    assert [one for one in said if one not in refused] == [], refused
    assert (host.tasks(mark), sorted(set(host.files()) ^ set(before))) == ([], [])
    vms["made"]["create"], containers["box"]["create"] = vm, ct
    stack.up()
    settle(host)
    assert host.guests_on() == {NEW_VM, NEW_CT}
    assert (stack.up().changed, stack.up("--refresh").changed) == (set(), set())

    # By hand: an option of each, one that is taken away, a guest that is switched off, and the agent.
    host.run(
        f"qm set {NEW_VM} --cores 2 --delete ostype; pct set {NEW_CT} --onboot 1; pct stop {NEW_CT}; "
        'rm "$HOMELAB_ROOT"/var/lib/homelab/agents/*/agent.pyz'
    )
    mended = stack.up("--refresh")
    named = ["cores is 2 instead of 1", "ostype", "onboot is 1 instead of 0", "this program's agent is missing"]
    assert [one for one in named if one not in mended.output] == [], mended.output
    assert host.guests_on() == {NEW_VM, NEW_CT}
    assert {"cores: 1", "ostype: l26"} <= {*conf(host, NEW_VM).splitlines()} and "onboot: 0" in conf(host, NEW_CT)
    host.run(f"qm stop {NEW_VM}; qm destroy {NEW_VM}; pct stop {NEW_CT}; pct destroy {NEW_CT}")
    assert {"made-vm", "box-ct"} <= stack.up("--refresh").changed
    assert host.guests_on() == {NEW_VM, NEW_CT} and stack.up("--refresh").changed == set()
    settle(host)
    stack.destroy_as_left()
    assert host.guests_on() == set()
    given_back(host, before)


POINTS, ACTED = "/run/homelab-node-tier", "/run/homelab-node-tier-acted"
_RUNS = f"qm status {VM} | grep -q running"


def tasks_of(kind: str, *, more: str = "") -> str:
    """The command that lists the VM's tasks of a type."""
    return f"find $HOMELAB_ROOT/var/log/pve/tasks -name 'UPID:*:{kind}:{VM}:*' {more}"


#: Of the VM's shutdowns the one that began last has ended well.
_WELL = f"""pvesh get /nodes/$(hostname)/tasks --vmid {VM} --source all --typefilter qmshutdown --output-format json | python3 -c '
import json, sys
sys.exit(max(json.load(sys.stdin), key=lambda task: task["pstart"])["status"] != "OK")'"""


def acts(host: Host) -> dict[str, tuple[str, bool]]:
    """What an owner does by a command, which fails where it does nothing, and whether the VM is to run then. He doesn't start it where homelab is about to,
    whose shutdown isn't noted yet. He doesn't switch it off from inside once homelab has started it: nothing tells that from a start that went wrong.
    """
    noted = f"[ -e $HOMELAB_ROOT{owed.OWED} ] && grep -q '\"ours\": *\\[\\]' $HOMELAB_ROOT{owed.OWED}"
    is_started = tasks_of("qmstart", more=f"-newer $HOMELAB_ROOT{POINTS}-begun | grep -q .")
    return {
        "stop": (f"qm stop {VM}", False),
        "shutdown": (f"qm shutdown {VM}", False),
        "start": (f"if {noted}; then false; else qm stop {VM}; qm start {VM}; fi", True),
        "edit": (f"qm set {VM} --description his", True),
        "bulk shutdown": (
            f"pvesh create /nodes/$(hostname)/stopall 2>&1 | grep -q 'Stopping VM {VM}' && {_WELL}",
            False,
        ),
        # A guest that still boots doesn't hear it.
        "off from inside": (
            f"case $ASKED in *status/shutdown*) false ;; esac && {_RUNS} && ! {is_started} && while {_RUNS}; do {host.press(VM)}; sleep 1; done",
            False,
        ),
    }


def change(host: Host, vga: str, at: tuple[str, str, str] | None = None, *, seconds: int = 60) -> str:
    """A change for which the VM is switched off and on; without a value, it is given back what it had. What the layer says."""
    wanted = guest_cards.Wanted(vmid=VM, terms=Terms(owner="p/s/vm", shutdown=seconds * host.slow))
    if vga:
        read = json.loads(asked_of(host, "read", "guest_cards", wanted).splitlines()[-1])
        wanted = replace(wanted, options={"vga": vga}, digest=read["digest"])
    return asked_of(host, "apply" if vga else "revert", "guest_cards", wanted, at or stop())


def up(host: Host, vga: str = "none", at: tuple[str, str, str] | None = None) -> str:
    """The same, until all is done that it has begun."""
    said = change(host, vga, at)
    if re.search(r'"done": ?false', said):  # it was changed meanwhile: the provider reads it again, too
        said += change(host, vga)
    settle(host)
    return said


def changed_once(host: Host) -> int:
    """How many moments a change has at which somebody may act; the VM has it."""
    up(host)
    return int(host.read(POINTS))


def differs(host: Host, vga: str, before: str) -> str:
    """What it has beside a change."""
    lines = conf(host, VM).splitlines()
    return "\n".join(sorted({*lines} ^ {*before.splitlines(), *([f"vga: {vga}"] if vga else [])}))


@pytest.mark.node
@pytest.mark.timeout(7200)
def test_what_a_vms_owner_does_at_drawn_moments_of_a_change_counts_and_a_run_that_was_killed_is_gone_on_with(
    on: On,
) -> None:
    """As tests/lab/test_owners_acts.py, by commands, and at the stop point of an agent that is sent along (tests/e2e/roads.py)."""
    host = on("rtx5090").machine
    make_guests(host, VM)
    before, problems = conf(host, VM), list[str]()

    moments, drawn, choice = changed_once(host), sampling.drawn("an owner's acts on a node"), acts(host)
    assert moments > 10 and "vga: none" in conf(host, VM) and host.guests_on() == {VM}
    for vga, _ in zip(itertools.cycle(("", "none", "std")), range(int(os.environ.get("DRAWS") or 4)), strict=False):
        act, number, killed = drawn.choice([*choice]), drawn.randrange(1, moments + 1), drawn.random() < 0.5
        command, wanted = choice[act]
        host.run(f"touch $HOMELAB_ROOT{POINTS}-begun")
        shutdowns = f"{tasks_of('qmshutdown')} | wc -l"
        said = up(host, vga, stop(number, f"{{ {command}\n}} && {shutdowns} >$HOMELAB_ROOT{ACTED}", killed=killed))
        if killed:
            said += up(host, vga)
        runs, text = VM in host.guests_on(), conf(host, VM)
        what = f"{act} at {number} of {moments}{', killed' if killed else ''}, to vga={vga}"
        at_act, by_now = host.read(ACTED), host.run(shutdowns)
        has_acted = host.succeeds(f"rm $HOMELAB_ROOT{ACTED}")
        # In the moment after homelab's last look at it: its shutdown has found it off.
        is_unseen = act == "off from inside" and at_act != by_now
        if has_acted and not wanted and runs and not is_unseen:
            problems.append(f"{what}: it was started against its owner\n{said}")
        if (wanted or not has_acted) and not runs and not (killed and owed.UNKNOWN in said):
            problems.append(f"{what}: it was left off\n{said}")
        if has_acted and act == "edit":
            if "description: his" not in text and "#his" not in text:
                problems.append(f"{what}: the edit is lost\n{text}")
            host.run(f"qm set {VM} --delete description")
        # What waits for its next start is in force then.
        if not runs or "[PENDING]" in text:
            host.run(f"qm stop {VM}; qm start {VM}")
        settle(host)
        if other := differs(host, vga, before):
            problems.append(f"{what}: the change is lost, or another made\n{other}\n{said}")
    up(host, "")
    assert not problems, "\n".join(problems)
    assert differs(host, "", before) == ""


@pytest.mark.node
@pytest.mark.timeout(7200)
def test_a_vm_that_does_not_follow_its_shutdown_runs_again_if_it_goes_off_in_time_and_stays_off_later(on: On) -> None:
    """As tests/lab/test_owed_draws.py. In time: within shutdown.timeout after the shutdown's end."""
    host, seconds = on("rtx5090").machine, 8
    make_guests(host, VM)
    host.make_deaf(VM)
    host.run(f"qm stop {VM}; qm start {VM}")
    settle(host)
    problems = list[str]()

    def look() -> str:
        """As the host's own timer does."""
        said = asked_of(host, "apply", "start_guests", start_guests.Wanted())
        settle(host)
        return said

    for is_late in (False, True):
        said = change(host, "none", seconds=seconds)
        ended = time.monotonic()
        assert "it is still on" in said and host.guests_on() == {VM}, said
        said += look()
        if is_late:
            time.sleep(max(0.0, ended + seconds * host.slow + 2 - time.monotonic()))
            said += look()
        host.run(f"{host.press(VM)}; while {_RUNS}; do sleep 0.2; done")
        said += look()
        if (VM in host.guests_on()) is is_late:
            problems.append(f"off {'later: it was started' if is_late else 'in time: it was left off'}\n{said}")
            host.run(f"qm start {VM}", check=False)
            settle(host)
    assert not problems, "\n".join(problems)


@pytest.mark.node("power")
@pytest.mark.timeout(7200)
def test_what_is_noted_of_a_change_is_there_after_a_power_cut_at_a_drawn_moment_and_the_change_is_gone_on_with(
    on: On,
) -> None:
    """Each request to Proxmox VE is such a moment: what was written before it was flushed before it."""
    host = on("rtx5090").machine
    make_guests(host, VM)
    before, files, heard = conf(host, VM), host.files(), set[str]()
    noted = "find $HOMELAB_ROOT/var/lib/homelab $HOMELAB_ROOT/etc/systemd/system -type f -exec sha256sum {} +"

    # The agent's own client is told it before.
    cut = f"{{ {noted}; echo all of it; }} >/proc/$PPID/fd/1; sleep 0.3; {host.cut}; sleep 10"

    moments, drawn = changed_once(host), sampling.drawn("power cuts of a node")
    many = 3 + int(os.environ.get("DRAWS") or 0) // 20
    # One of each part, as of the first ones nothing is noted yet.
    numbers = [drawn.randint(1 + moments * part // many, moments * (part + 1) // many) for part in range(many)]
    for vga, number in zip(itertools.cycle(("", "none")), numbers, strict=False):
        boot = host.boot_id()
        said = change(host, vga, stop(number, cut, killed=True))
        host.wait_for_boot(boot)
        found = {*host.run(noted).splitlines()}
        told = re.findall(r"^[0-9a-f]{64} .*$", said, re.M)
        assert "all of it" in said, f"{number} of {moments}: {said}"
        heard |= {*told}
        lost = [one for one in told if one not in found and not ("owed" in one and host.read(owed.NEWS))]
        assert not lost, f"lost at {number} of {moments}: {lost}"
        said = up(host, vga)
        if VM not in host.guests_on():
            host.run(f"qm start {VM}")
            settle(host)
        assert differs(host, vga, before) == "", f"{number} of {moments}: {said}"
    assert heard, "at a first request nothing is noted, at others something"
    up(host, "")
    given_back(host, files)


@pytest.mark.node("quorum")
@pytest.mark.timeout(7200)
def test_without_quorum_nothing_is_changed_and_a_run_that_loses_it_in_its_midst_is_gone_on_with(on: On) -> None:
    stack = on("rtx5090")
    host = stack.machine
    make_guests(host, VM)
    before = host.files()
    create = {"machine": "q35", "cores": 1, "memory": 512, "ostype": "l26"}
    stack.config["homelab:vms"] = {"made": {"host": "pve", "vmid": NEW_VM, "power": "stopped", "create": create}}
    host.run(host.quorum(lost=True))
    try:
        refused = stack.up(ok=False)
    finally:
        host.run(host.quorum(lost=False))
    assert "quorum" in refused.message, refused.output
    assert conf(host, NEW_VM) == ""
    stack.up()
    assert "cores: 1" in conf(host, NEW_VM)
    stack.destroy_as_left()
    given_back(host, before)

    # Lost at a drawn request of a change, for longer than pmxcfs takes to say so, and back before the next run.
    moments = changed_once(host)
    for number in sampling.drawn("quorum on a node").sample(range(1, moments + 1), 3):
        up(host, "")
        back = f"(sleep {15 * host.slow}; {host.quorum(lost=False)}) >/dev/null 2>&1 </dev/null &"
        said = up(host, at=stop(number, f"{host.quorum(lost=True)}; {back}"))
        # Root's keys are in pmxcfs, too: nobody gets in while it restarts.
        wait_until(partial(host.succeeds, host.quorum(lost=False)))
        said += up(host)
        assert "vga: none" in conf(host, VM) and host.guests_on() == {VM}, f"{number} of {moments}: {said}"
    up(host, "")
    assert host.guests_on() == {VM}
    given_back(host, before)


@pytest.mark.node("card")
@pytest.mark.timeout(7200)
def test_from_stock_by_one_boot_on_trial_to_a_card_in_a_vm_mended_after_five_changes_by_hand_and_back(on: On) -> None:
    stack = on("phoenix")
    host, address = stack.machine, with_card(stack)
    make_guests(host, VM, CT)
    stack.config["homelab:vms"] = {"own": {"host": "pve", "vmid": VM, "gpus": ["card"]}}
    before, drivers, boots, boot = host.files(), host.drivers(), host.boots(), host.boot_id()
    stack.up()
    assert boot != host.boot_id() and host.boots() in (boots, boots + 1), "one reboot"
    assert host.guests_on() == {VM, CT}, "both ran before"
    bound = {one: driver for one, driver in host.drivers().items() if driver == "vfio-pci"}
    assert (
        address in bound
        and {one: drivers[one] for one in drivers if one not in bound}.items() <= host.drivers().items()
    )
    assert "hostpci0: mapping=card" in conf(host, VM)
    assert (stack.up().changed, stack.up("--refresh").changed) == (set(), set())

    # By hand: the mapping, the VM's option, the initramfs's script, what GRUB or systemd-boot is given, and the note of the boot.
    configured, boot = host.files(), host.boot_id()
    host.run(
        f'pvesh delete /cluster/mapping/pci/card; qm set {VM} --delete hostpci0; cd "$HOMELAB_ROOT/etc"; '
        "rm initramfs-tools/scripts/init-top/homelab-vfio ../var/lib/homelab/wanted-boot; "
        'for one in default/grub.d/zz-homelab-*.cfg; do [ ! -e "$one" ] || echo "# by hand" >>"$one"; done; '
        '[ ! -e kernel/cmdline ] || sed -i "s/ iommu=pt//" kernel/cmdline'
    )
    mended = stack.up("--refresh")
    assert {"own-cards", "pve-initrd", "pve-cmdline"} <= mended.changed, mended.output
    assert (host.boot_id(), host.guests_on()) == (boot, {VM, CT}), "the running kernel had all of it"
    assert sorted(set(host.files()) ^ set(configured)) == []

    stack.destroy_as_left()
    assert host.guests_on() == {VM, CT}
    given_back(host, before)
    host.reboot()
    assert host.drivers() == drivers


@pytest.mark.node("card", "render")
@pytest.mark.timeout(3600)
def test_a_container_has_a_card_by_an_up_and_not_after_a_destroy(on: On) -> None:
    stack = on("phoenix")
    host = stack.machine
    with_card(stack, use="lxc")
    make_guests(host, CT)
    stack.config["homelab:containers"] = {"box": {"host": "pve", "ctid": CT, "gpus": ["card"]}}
    before, boot = host.files(), host.boot_id()
    stack.up()
    nodes = re.findall(r"/dev/(?:nvidia\d+|dri/\w+)", conf(host, CT))
    assert nodes and host.guests_on() == {CT} and host.boot_id() == boot
    opens = f"pct exec {CT} -- dd if={nodes[0]} of=/dev/null count=0"
    assert host.succeeds(opens) and stack.up("--refresh").changed == set()
    stack.destroy_as_left()
    assert not host.succeeds(opens) and host.guests_on() == {CT}
    given_back(host, before)


@pytest.mark.node("nvidia")
@pytest.mark.timeout(3600)
def test_a_card_in_turn_goes_to_a_vm_and_back_also_where_its_hook_is_killed(on: On) -> None:
    """What of settings and of the host's files comes in between: tests/e2e/test_handover.py."""
    stack = on("phoenix")
    host, address = stack.machine, with_card(stack, use="shared")
    make_guests(host, VM, CT)
    host.run(f"qm stop {VM}")
    settle(host)
    before, drivers = host.files(), host.drivers()
    stack.host["nvidia"] = {"driver": "580", "onDestroy": "purge"}
    stack.config["homelab:vms"] = {"own": {"host": "pve", "vmid": VM, "gpus": ["card"]}}
    stack.config["homelab:containers"] = {"box": {"host": "pve", "ctid": CT, "gpus": ["card"]}}
    stack.up()

    def is_with(guest: int) -> bool:
        driver = "vfio-pci" if guest == VM else drivers[address]
        return host.guests_on() == {guest} and host.drivers()[address] == driver

    assert is_with(CT)
    host.run(f"qm start {VM}")
    assert is_with(VM) and stack.up("--refresh").changed == set()
    host.run(f"qm stop {VM}")
    wait_until(lambda: is_with(CT))
    # What a VM's start asks is killed on its way: the next start takes the card all the same.
    for seconds in (0.3, 1, 2):
        hook = f'"$HOMELAB_ROOT/usr/local/sbin/homelab-handover" hook {VM} pre-start'
        host.run(f"timeout -s KILL {seconds * host.slow} {hook}", check=False)
        host.run(f"qm start {VM}")
        assert is_with(VM)
        host.run(f"qm stop {VM}")
        wait_until(lambda: is_with(CT))
    stack.destroy_as_left()
    assert host.guests_on() == {CT} and host.drivers() == drivers
    given_back(host, before)
