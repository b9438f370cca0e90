"""The voices about a host, held to each other: a refresh, a preview, the doctor, show, and the `up` that is to end what they say.

Nothing is stubbed: a simulated host after an `up` (tests/lab/engine_kit.py), on which somebody, a kernel or another run has done something since.
What was done is drawn, each kind also alone. With the real engine: tests/e2e/test_voices.py.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from homelab.cli import doctor, show
from homelab.doctor.whole import Whole
from homelab.findings import Turn
from homelab.show.tree import TreeNode
from lab import Lab
from tests import connections, forked_agent, sampling
from tests.lab.engine_kit import InProcess, Run
from tests.lab.host_kit import rebound
from tests.lab.stack_kit import host_settings, reached
from tests.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:This resource is deprecated:DeprecationWarning")

GRUB, INIT_TOP = "$HOMELAB_ROOT/etc/default/grub.d", "$HOMELAB_ROOT/etc/initramfs-tools/scripts/init-top"
HOME, HA = "$HOMELAB_ROOT/var/lib/homelab", "$HOMELAB_ROOT/etc/pve/ha"
QEMU, LXC = "$HOMELAB_ROOT/etc/pve/qemu-server", "$HOMELAB_ROOT/etc/pve/lxc"
#: How many of the bases are tried in `make test`, and of each how many states: with one thing done, with several; of several in each night.
TRIED, ALONE, TOGETHER, EVERY_NIGHT = 4, 5, 2, 20
ENTRY = "id=10de:2b85,iommugroup=14,node=pve,subsystem-id=1043:89e3"
NO_REBOOT = {"iommu": {"enable": False, "passthrough": False}}
Act = str | Callable[["HostToHear"], object]


def killed(steps: int, first: str) -> Act:
    """Something is done, and the `up` that mends it is killed at one of its steps, the first with 1."""

    def act(tested: HostToHear) -> None:
        tested.lab.run(first, check=False)
        tested.stack.up(killed_after=steps)

    return act


def rebooted(first: str) -> Act:
    """Something is done, then the host restarts."""

    def act(tested: HostToHear) -> None:
        tested.lab.run(first, check=False)
        tested.lab.reboot()

    return act


def edited(**settings: Any) -> Act:
    """The settings, without an `up`: of all hosts or guests of a section, by its name; None takes the section out."""

    def act(tested: HostToHear) -> None:
        for section, values in settings.items():
            if values is None:
                tested.stack.config.pop(section)
            for one in tested.stack.config.get(section, {}).values():
                one.update(values)

    return act


def _another_stack(tested: HostToHear) -> InProcess:
    return InProcess(tested.lab, tested.folder / "other", copy.deepcopy(tested.stack.config), "other")


def of_another_stack(tested: HostToHear) -> None:
    """Who asks is another stack, whose `up` hasn't run."""
    tested.stack = _another_stack(tested)


def by_another_stack(tested: HostToHear) -> None:
    """Another stack with the same host and guests has run its `up`."""
    other = _another_stack(tested)
    os.chdir(other.folder)
    other.up(refresh=False)


def without_state(tested: HostToHear) -> None:
    tested.stack.state.clear()


OF_A_HOST: dict[str, Act] = {
    "its agent gone": f"rm {HOME}/agents/*/agent.pyz",
    "its agents' folder gone": f"rm -r {HOME}/agents",
    "its notes gone": f"rm -r {HOME}",
    "another stack's `up`": by_another_stack,
    "seen by another stack": of_another_stack,
    "the state lost": without_state,
}
_FILES = f"rm {GRUB}/zz-homelab-vfio.cfg {INIT_TOP}/homelab-vfio; update-grub"
_OTHER = "qm create 104 --name Other --machine q35 --bios ovmf --hostpci0 mapping=rtx5090,pcie=1"
_FUNCTIONS = "$HOMELAB_ROOT/sys/bus/pci/devices/0000:01:00.[01]"
OF_A_VM: dict[str, Act] = {
    "a file changed": f"echo '# mine' >>{GRUB}/zz-homelab-iommu.cfg",
    "a file gone": f"rm {INIT_TOP}/homelab-vfio",
    "words gone": f"rm {GRUB}/zz-homelab-vfio.cfg; update-grub",
    "words gone, rebooted": rebooted(f"rm {GRUB}/zz-homelab-vfio.cfg; update-grub"),
    "words gone, rebooted, the VM off": rebooted(f"qm set 103 --onboot 0; qm shutdown 103; {_FILES}"),
    "a menu without words": "sed -i 's/ homelab.vfio=[^ ]*//' $HOMELAB_ROOT/boot/grub/grub.cfg",
    "no initramfs": "rm $HOMELAB_ROOT/boot/initrd.img-6.17*",
    "the mapping gone": "pvesh delete /cluster/mapping/pci/rtx5090",
    "the mapping changed": f"pvesh set /cluster/mapping/pci/rtx5090 --map {ENTRY.replace('=14', '=99')},path=0000:01:00",
    "the mapping of another slot": f"pvesh set /cluster/mapping/pci/rtx5090 --map {ENTRY},path=0000:02:00",
    "the card taken out": "qm shutdown 103; qm set 103 --delete hostpci0",
    "taken out while it runs": "qm set 103 --delete hostpci0",
    "its option changed": "qm shutdown 103; qm set 103 --hostpci0 mapping=rtx5090,pcie=1,x-vga=1",
    "its option an address": "qm shutdown 103; qm set 103 --hostpci0 0000:01:00,pcie=1",
    "an owner's option": "qm shutdown 103; qm set 103 --hostpci1 0000:06:00,pcie=1",
    "an owner's mapping gone": f"qm shutdown 103; echo 'hostpci1: mapping=old' >>{QEMU}/103.conf",
    "machine pc": "qm shutdown 103; qm set 103 --machine pc",
    "the VM off": "qm shutdown 103",
    "started twice, then off": "qm start 103; qm shutdown 103",
    "the VM locked": "qm set 103 --lock backup",
    "off and locked": "qm shutdown 103; qm set 103 --lock backup",
    "taken out, locked": "qm shutdown 103; qm set 103 --delete hostpci0; qm set 103 --lock backup",
    "others' change waits": "qm set 103 --cores 6",
    "the VM removed": "qm stop 103; qm destroy 103",
    "the VM under HA": f"mkdir -p {HA}; echo 'vm: 103' >{HA}/resources.cfg",
    "taken out, under HA": f"qm shutdown 103; qm set 103 --delete hostpci0; mkdir -p {HA}; echo 'vm: 103' >{HA}/resources.cfg",
    "another VM has it": _OTHER,
    "another VM runs with it": f"{_OTHER}; qm shutdown 103; qm start 104",
    "another VM runs with it, taken out": f"{_OTHER}; qm shutdown 103; qm set 103 --delete hostpci0; qm start 104",
    "the card dead": lambda tested: tested.lab.fault("card-dead", "0000:01:00.0"),
    "the card absent": f"rm -rf $(readlink -f {_FUNCTIONS}) {_FUNCTIONS}",
    "the card with nouveau": f"qm shutdown 103; {rebound('0000:01:00.0', 'nouveau')}",
    "killed at 1": killed(1, f"{_FILES}; qm shutdown 103; qm set 103 --delete hostpci0"),
    "killed at 2": killed(2, f"{_FILES}; qm shutdown 103; qm set 103 --delete hostpci0"),
    "killed at 3": killed(3, f"{_FILES}; qm shutdown 103; qm set 103 --delete hostpci0"),
    "killed at the VM": killed(1, "qm shutdown 103; qm set 103 --delete hostpci0"),
    "power edited": edited(vms={"power": "stopped"}),
    "the VM out of the settings": edited(vms=None),
}
OF_CONTAINERS: dict[str, Act] = {
    "a line gone": "pct stop 901; pct set 901 --delete dev0; pct start 901",
    "a line gone, off": "pct stop 901; pct set 901 --delete dev0",
    "all lines gone": f"pct stop 901; sed -i '/^dev/d; /^lxc/d' {LXC}/901.conf; pct start 901",
    "a line's mode changed": f"sed -i s/0666/0600/ {LXC}/901.conf; pct reboot 901",
    "an owner's line": f"echo 'lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir' >>{LXC}/901.conf",
    "the service gone": "rm $HOMELAB_ROOT/etc/systemd/system/homelab-nvidia-nodes.service",
    "the service off": "systemctl disable homelab-nvidia-nodes.service",
    "a program gone": "rm $HOMELAB_ROOT/usr/local/sbin/homelab-card-nodes",
    "the container off": "pct stop 901",
    "the container locked": "pct set 901 --lock backup",
    "a line gone, locked": "pct set 901 --delete dev1; pct set 901 --lock backup",
    "the container removed": "pct stop 901; pct destroy 901",
    "a module gone, off": "pct stop 901; pct stop 950; rmmod nvidia_uvm; rm -f $HOMELAB_ROOT/dev/nvidia-uvm*",
    "the container under HA": f"mkdir -p {HA}; echo 'ct: 901' >{HA}/resources.cfg",
    "its notes of guests gone": f"rm -r {HOME}/ledger",
    "killed at its cards": killed(1, "pct stop 901; pct set 901 --delete dev0"),
    "killed at 1": killed(
        1, "rm $HOMELAB_ROOT/usr/local/sbin/homelab-card-nodes; pct stop 901; pct set 901 --delete dev0"
    ),
    "power edited": edited(containers={"power": "stopped"}),
    "method edited": edited(containers={"method": "mount-entry"}),
}
IN_TURN: dict[str, Act] = {
    "the VM has it": "qm start 103",
    "the VM has it, the timer off": "qm start 103; systemctl disable homelab-handover.timer",
    "the VM has it, a line gone": "qm start 103; pct set 901 --delete dev0",
    "the hook gone": "qm set 103 --delete hookscript",
    "the timer off": "systemctl disable homelab-handover.timer",
    "a program gone": "rm $HOMELAB_ROOT/usr/local/sbin/homelab-handover",
    "a line gone": "pct set 901 --delete dev0",
    "the card taken out": "qm set 103 --delete hostpci0",
    "a module gone": "dkms uninstall nvidia/$(modinfo -F version nvidia) -k $(uname -r)",
    "the container off": "pct stop 901",
    "the container locked": "pct set 901 --lock backup",
    "the VM locked": "qm set 103 --lock backup",
    "the mapping gone": "pvesh delete /cluster/mapping/pci/big",
    "the VM removed": "qm destroy 103",
    "power edited": edited(containers={"power": "stopped"}),
}
TWO_VMS: dict[str, Act] = {
    "its card taken out": "qm shutdown 103; qm set 103 --delete hostpci0",
    "the other's card taken out": "qm set 104 --delete hostpci0",
    "cards exchanged": "qm shutdown 103; qm set 103 --hostpci0 mapping=second,pcie=1; qm set 104 --hostpci0 mapping=first,pcie=1",
    "one has both": "qm set 104 --hostpci1 mapping=first,pcie=1",
    "a mapping gone": "pvesh delete /cluster/mapping/pci/second",
    "words gone": f"rm {GRUB}/zz-homelab-vfio.cfg; update-grub",
    "the other removed": "qm destroy 104",
    "the other locked": "qm set 104 --lock backup",
    "power edited": edited(vms={"power": "stopped"}),
}
MIXED: dict[str, Act] = {
    "the VM off": "qm shutdown 103",
    "its card taken out": "qm shutdown 103; qm set 103 --delete hostpci0",
    "a line gone, with libraries": "pct stop 201; pct set 201 --delete dev0; pct start 201",
    "libraries gone": "pct exec 201 -- bash -c 'rm $HOMELAB_ROOT/usr/lib/x86_64-linux-gnu/libnvidia-ml.so*'",
    "a container off": "pct stop 201",
    "a container locked": "pct set 201 --lock backup",
    "the service off": "systemctl disable homelab-nvidia-nodes.service",
}


def without_libraries(tested: HostToHear) -> None:
    """The driver's libraries in VM 103 are gone; the module is loaded, and the packages are installed."""
    for path in (tested.lab.state / "guests/103/root/usr/lib").rglob("libnvidia-ml.so*"):
        path.unlink()


IN_A_VM: dict[str, Act] = {
    "libraries gone": without_libraries,
    "the VM off": "qm shutdown 103",
    "the VM locked": "qm set 103 --lock backup",
    "the card taken out": "qm shutdown 103; qm set 103 --delete hostpci0",
}


@dataclass(frozen=True)
class Base:
    """A host after an `up`. `host`, `vms`, `containers`: in the settings; `kinds`: what is done since; `first`: what was done before that `up`;
    `settings`: others with which another `up` has run; `until`: the step at which the first `up` was killed, 0: there was none, None: it wasn't;
    `idle`: what lets the host be kept, and `again`: what undoes that."""

    scenario: str
    kinds: dict[str, Act]
    host: dict[str, Any]
    vms: dict[str, Any] = field(default_factory=dict)
    containers: dict[str, Any] = field(default_factory=dict)
    first: str = ""
    settings: dict[str, Act] = field(default_factory=dict)
    until: int | None = None
    idle: str = ""
    again: str = ""


ONE, SANDBOX = {"gpus": {"rtx5090": {"match": "10de:2b85"}}}, {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}
OF_SETTINGS: dict[str, Act] = {
    "to run": edited(vms={"power": "running"}),
    "to be off": edited(vms={"power": "stopped"}),
}
NOT_YET: dict[str, Act] = {
    kind: OF_A_VM[kind]
    for kind in ("the VM off", "off and locked", "another VM has it", "power edited", "the VM under HA")
}
BASES = {
    "a VM": Base("rtx5090", OF_A_HOST | OF_A_VM, ONE, SANDBOX, settings=OF_SETTINGS),
    # Its owner's own files bind the card: the VM's is the only step.
    "bound by hand": Base(
        "bound-by-hand",
        OF_A_HOST | {kind: act for kind, act in OF_A_VM.items() if kind not in ("killed at 2", "killed at 3")},
        ONE,
        SANDBOX,
    ),
    "no `up` yet": Base("rtx5090", NOT_YET, ONE, SANDBOX, until=0),
    "killed at the words": Base("rtx5090", NOT_YET, ONE, SANDBOX, until=5),
    "killed at the mapping": Base("rtx5090", NOT_YET, ONE, SANDBOX, until=8),
    "two VMs": Base(
        "mixed",
        OF_A_HOST | TWO_VMS,
        {
            "gpus": {
                "first": {"match": "10de:2204", "address": "1d:00"},
                "second": {"match": "10de:2204", "address": "1e:00"},
            }
        },
        {"sandbox": {"vmid": 103, "gpus": ["first"]}, "other": {"vmid": 104, "gpus": ["second"]}},
        first="qm create 104 --name Other --machine q35 --bios ovmf; qm start 103",
    ),
    "a container": Base(
        "phoenix",
        OF_A_HOST | OF_CONTAINERS,
        {"gpus": {}, **NO_REBOOT},
        containers={"phoenix": {"ctid": 901, "gpuAssignment": "0,1"}},
        settings={
            "by mounts": edited(containers={"method": "mount-entry"}),
            "to run": edited(containers={"power": "running"}),
        },
    ),
    "in turn": Base(
        "phoenix",
        OF_A_HOST | IN_TURN,
        {"gpus": {"big": {"match": "10de:2b85", "use": "shared"}}, "nvidia": {"driver": "580"}},
        {"sandbox": {"vmid": 103, "gpus": ["big"]}},
        {"phoenix": {"ctid": 901, "gpus": ["big"], "power": "running"}},
        "qm set 103 --onboot 0; qm shutdown 103; pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir,snippets",
        idle="systemctl stop homelab-handover.timer",
        again="systemctl start homelab-handover.timer",
    ),
    "NVIDIA in a VM": Base(
        "bound-by-hand", OF_A_HOST | IN_A_VM, ONE, {"sandbox": {**SANDBOX["sandbox"], "nvidia": {}}}
    ),
    "NVIDIA in containers": Base(
        "mixed",
        OF_A_HOST | MIXED,
        {
            "gpus": {
                "vm": {"match": "10de:2204", "address": "1d:00"},
                "containers": {"match": "10de:2204", "address": "1e:00", "use": "lxc"},
            }
        },
        {"sandbox": {"vmid": 103, "gpus": ["vm"]}},
        {"ollama": {"ctid": 201, "gpus": ["containers"], "nvidia": {}}},
        first="qm start 103",
    ),
}


_NOTHING_GIVEN = "nothing is in the state yet that a refresh could look for"
_EDITED = "a refresh goes by the settings of the last `up`"
_OF_THE_STATE = dict.fromkeys(("seen by another stack", "the state lost"), _NOTHING_GIVEN)
_NOT_YET = _OF_THE_STATE | dict.fromkeys(
    ("no `up` yet", "killed at the words", "killed at the mapping"), _NOTHING_GIVEN
)
_KILLED = dict.fromkeys(
    ("killed at 1", "killed at 2", "killed at 3", "killed at its cards", "killed at the VM"),
    "the run had done what its state doesn't have yet: nothing is left to be done on the host",
)
_OTHER_SETTINGS = dict.fromkeys(("power edited", "method edited", "the VM out of the settings"), _EDITED)
_UNSEEN_WHILE_AWAY = {
    f"{change} + {act}": "who reads no state doesn't know of a change, and no container is compared meanwhile"
    for change in ("the state lost", "power edited")
    for act in IN_TURN
    if act.startswith("the VM has it")
}
_OFF_AND_UNKNOWN = {
    f"{where} + {state}": "who reads no state doesn't know that something is to be installed in a guest that is off"
    for where in ("NVIDIA in a VM + the VM off", "NVIDIA in a VM + the card taken out")
    for state in ("the state lost", "seen by another stack")
}
#: What is otherwise on purpose, by rule: a kind, a base or settings, or several with a plus -> why. (That a mapping is a step of its own: `contradictions`.)
MEANT: dict[str, dict[str, str]] = {
    "the doctor's step is a refresh's": _NOT_YET
    | _OTHER_SETTINGS
    | {
        "the card with nouveau": "who bound it by hand has given that up: the next plan binds it, a refresh has the last"
    },
    "a refresh's step is the doctor's": _OTHER_SETTINGS
    | {
        "a line gone, with libraries": "a refresh compares what is inside with the state, which the doctor doesn't read"
    },
    "a refresh's step is the preview's": _OTHER_SETTINGS,
    "what a person meets is a refresh's": _NOT_YET | {"a line's mode changed": "it is its owner's own line by then"},
    "a step has its sign": _OTHER_SETTINGS,
    "a sign is a step": _OTHER_SETTINGS,
    "a guest's sign is its step": _NOT_YET | _OTHER_SETTINGS,
    "the doctor is well where nothing is to do": _KILLED
    | {
        "the VM out of the settings": "the doctor reads the settings, which have no such VM any more",
        "the state lost": "the doctor reads no state",
    }
    | _UNSEEN_WHILE_AWAY,
    "a preview's steps are a refresh's": _NOT_YET | _OTHER_SETTINGS | _KILLED,
    "what a refresh finds is told": _KILLED,
    "an `up` leaves nothing new for a person": {
        "its notes gone + no initramfs": "the menu is made anew, and its entry is told of in the place of the file"
    },
    "the doctor says what is refused": _UNSEEN_WHILE_AWAY | _OFF_AND_UNKNOWN,
    "show says what is refused": _UNSEEN_WHILE_AWAY | _OFF_AND_UNKNOWN,
}


@dataclass
class Heard:
    """What the voices say. `refresh`: what it tells; `preview`: what comes after it."""

    refresh: list[str]
    preview: Run
    doctor: Whole
    tree: list[TreeNode]

    @property
    def drift(self) -> list[tuple[str, str]]:
        """What a refresh tells, each with what it is of."""
        found = (re.match(r"(\S+): drift(?: \(\w+\))?: (.*)", line, re.DOTALL) for line in self.refresh)
        return [(one[1], one[2]) for one in found if one]

    @property
    def plan(self) -> str:
        return "\n".join(self.preview.told[len(self.refresh) :])

    @property
    def signs(self) -> list[str]:
        return [f"{node.kind} {node.line}" for node in self.tree if node.mark != "stays"]

    @property
    def shown_refusals(self) -> str:
        return " ".join(node.text for node in self.tree if node.text.startswith("`pulumi up` refuses: "))


class HostToHear:
    """A base's host and stack, brought back for each draw."""

    def __init__(self, base: Base, folder: Path) -> None:
        self.base, self.folder = base, folder
        #: What the agent has answered to the voices about the state that is drawn.
        self.answers: forked_agent.Answers | None = None
        self.lab: Lab = Lab.start(base.scenario, state=folder / "lab")
        config: dict[str, Any] = {"hosts": {"pve": {**host_settings(self.lab), **copy.deepcopy(base.host)}}}
        for section, guests in (("vms", base.vms), ("containers", base.containers)):
            if guests:
                config[section] = {name: {"host": "pve", **copy.deepcopy(one)} for name, one in guests.items()}
        for one in config.get("vms", {}).values():
            if "nvidia" in one:
                one.update(reached(self.lab, one["vmid"]))
        self._own = InProcess(self.lab, folder / "stack", config)
        self.stack = self._own

    def begin(self) -> None:
        """The first `up`."""
        if self.base.first:
            self.lab.run(self.base.first)
        for one in self._own.config.get("vms", {}).values():
            if "nvidia" in one:
                self.lab.wait_guest(one["vmid"], 60)
        if self.base.until != 0:
            first = self.stack.up(refresh=False, killed_after=self.base.until)
            assert bool(first.error) is bool(self.base.until), first
        self._keep()

    def _keep(self) -> None:
        if self.base.idle:
            self.lab.run(self.base.idle)
        self.lab.wait_idle()
        wait_until(lambda: not self.lab.timers())  # a killed run has left some
        self.lab.save()
        self._kept = copy.deepcopy((self.stack.state, self.stack.config))

    def settings(self, act: Act) -> None:
        """From here on, another `up` with other settings has run since the first one."""
        self.bring_back()
        assert callable(act)
        act(self)
        done = self.up()
        assert done.error is None, done
        self._keep()

    def bring_back(self) -> None:
        connections.end_all()
        self.lab.restore()
        self.answers = None
        self.stack = self._own
        self.stack.state, self.stack.config = copy.deepcopy(self._kept)
        os.chdir(self.stack.folder)
        if self.base.again:
            self.lab.run(self.base.again)

    def bring_about(self, drawn: Sequence[str]) -> None:
        self.bring_back()
        for kind in drawn:
            act = self.base.kinds[kind]
            self.lab.run(act, check=False) if isinstance(act, str) else act(self)
        self.stack.write()
        os.chdir(self.stack.folder)
        self.lab.wait_idle()
        self.answers = {}

    def up(self) -> Run:
        self.answers = None
        done = self.stack.up()
        self.lab.wait_idle()
        self.answers = {}
        return done

    def heard(self) -> Heard:
        preview = self.stack.preview()
        refresh = preview.told[: preview.told_by_refresh]
        return Heard(refresh, preview, *self.asked())

    def asked(self) -> tuple[Whole, list[TreeNode]]:
        """The doctor's report, and show's tree."""
        file = ["--config-file", str(self.stack.file)]
        told = doctor.everything(doctor.parser().parse_args(["stack", *file]))
        tree = [node for root in show.trees(show.parser().parse_args(file)) for node in root.walk()]
        connections.end_all()
        return told, tree


def contradictions(tested: HostToHear) -> Iterator[tuple[str, str]]:
    """Each with its rule."""
    told = tested.heard()
    refused, steps, well = told.preview.refused, told.preview.steps, told.doctor.well
    of_mappings = [line for name, line in told.drift if "PCI mapping" in line]
    # A mapping is a step of its own: what the doctor says of it is told from the host, and a refresh tells what the state had.
    lines = [line for _, line in told.drift if line not in of_mappings]
    by_turn = {turn: [one for one in told.doctor.findings if one.turn is turn] for turn in Turn}
    ups, refusals = ([one.found for one in by_turn[turn]] for turn in (Turn.UP, Turn.REFUSED))
    if missed := [line for line in lines if not any(line in one for one in [*ups, *refusals])]:
        yield "a refresh's step is the doctor's", f"refresh: {missed}; doctor, up: {ups}, refused: {refusals}"
    rests = [_without(one, lines) for one in ups]
    unknown = [rest for rest in rests if rest]
    if unknown and not of_mappings:
        yield "the doctor's step is a refresh's", f"doctor, up: {unknown}; refresh: {lines}"
    if of_mappings and not unknown and not refusals:
        yield "a refresh's step is the doctor's", f"refresh: {of_mappings}; doctor, up: {ups}"
    if told.preview.drifted and not told.drift:
        yield "what a refresh finds is told", f"refresh: {told.preview.drifted}"
    if not refused and bool(steps) is not bool(told.drift):
        yield "a preview's steps are a refresh's", f"preview: {steps}; refresh: {told.drift}"
    if bool(refused) is not bool(refusals) or not all(one in refused for one in refusals):
        yield "the doctor says what is refused", f"preview: {refused or steps}; doctor: {refusals}"
    if bool(refused) is not bool(told.shown_refusals):
        yield "show says what is refused", f"preview: {refused or steps}; show: {told.shown_refusals}"
    cures = {
        turn: [one.next for one in of_turn if one.next.startswith("`pulumi up")] for turn, of_turn in by_turn.items()
    }
    if refused and any(cures.values()):
        yield "no cure is refused", f"preview: {refused}; doctor: {cures}"
    if cures[Turn.PERSON]:
        yield "what `up` cures is its turn", f"doctor, a person: {cures[Turn.PERSON]}"
    if unsaid := [one.found for one in by_turn[Turn.PERSON] if one.found not in "\n".join(told.refresh)]:
        yield "what a person meets is a refresh's", f"doctor: {unsaid}; refresh: {told.refresh}"
    if well and (steps or refused or told.drift):
        yield "the doctor is well where nothing is to do", f"preview: {refused or steps}; refresh: {told.drift}"
    texts = {bool(told.doctor.findings), not told.doctor.values()["well"], "all is well" not in told.doctor.text()}
    if texts != {not well}:
        yield "the doctor's texts agree", told.doctor.text()
    if refused and told.signs:
        yield "what is refused has no sign", f"preview: {refused}; show: {told.signs}"
    if not refused:
        yield from _of_signs(tested.base, told)
        yield from _of_the_plan(told, lines)
    if not (steps or refused or told.signs or ups):
        return  # an `up` would do nothing
    done = tested.up()
    if refused:
        # At the last step it was refused. A mapping is a step of its own, before the VM's.
        mappings = {f"pve-{gpu}" for gpu in tested.base.host["gpus"]}
        if not done.refused or [one for one in done.steps[:-1] if one[1] not in mappings]:
            yield "an `up` refuses what its preview does", f"preview: {refused}; up: {done.steps}, {done.refused}"
        return
    if done.error:
        yield "an `up` does what its preview says", f"preview: {steps}; up: {done.steps}, {done.error!r}"
    after, tree = tested.asked()
    left = [one.found for one in after.findings if one.turn is not Turn.PERSON]
    signs = [node.line for node in tree if node.mark != "stays"]
    if left or signs:
        yield "an `up` ends it", f"doctor: {left}; show: {signs}"
    met = {one.found for one in told.doctor.findings}
    if come := [one.found for one in after.findings if one.turn is Turn.PERSON and one.found not in met]:
        yield "an `up` leaves nothing new for a person", f"doctor: {come}; up: {done.told}"


def _without(text: str, lines: Sequence[str]) -> str:
    for line in lines:
        text = text.replace(line, "")
    return text.strip("; ")


def _of_signs(base: Base, told: Heard) -> Iterator[tuple[str, str]]:
    if told.signs and not (told.drift or told.preview.steps):
        yield "a sign is a step", f"show: {told.signs}; preview: nothing"
    labels = {name: f"VM {one['vmid']}" for name, one in base.vms.items()}
    labels |= {name: f"container {one['ctid']}" for name, one in base.containers.items()}
    for name, label in labels.items():
        given = [line for of, line in told.drift if of == name and re.match(r"(hostpci|dev)\d+: not there -> ", line)]
        marks = [
            node.line
            for node in told.tree
            if node.kind == "guest" and node.text.startswith(label) and node.mark != "stays"
        ]
        if given and not marks:
            yield "a step has its sign", f"refresh: {given}; show: {told.signs}"
        if marks and told.drift and not any(of == name or "PCI mapping" in line for of, line in told.drift):
            yield "a guest's sign is its step", f"refresh: {told.drift}; show: {marks}"


def _of_the_plan(told: Heard, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Where something would change, the preview shows a plan."""
    if not told.plan:
        return
    for block in re.findall(r"^  (?:VM|container) \d+ .*(?:\n    .*)*", told.plan, re.MULTILINE):
        head, _, rest = block.replace("Datacenter -> ", "").partition("\n")
        if head.startswith("  VM") and ("no change" in head) is (" -> " in rest):
            yield "a preview's head says what its steps do", block
    options = [line for of, line in told.drift if re.match(r"(hostpci|dev)\d+: ", line)]
    if missed := [line for line in options if line not in told.plan]:
        yield "a refresh's step is the preview's", f"refresh: {missed}; preview: {told.plan}"
    drivers = re.findall(r"\[[0-9a-f:]{9}\] (\S+) -> (\S+)$", told.plan, re.MULTILINE)
    is_said = re.search(r"reboot: one, because .* goes to ", told.plan)
    if is_said and drivers and all(before == after for before, after in drivers):
        yield "a preview agrees with itself", told.plan


def _found(tested: HostToHear, drawn: Sequence[str]) -> dict[str, str]:
    tested.bring_about(drawn)
    return dict(contradictions(tested))


def _smallest(tested: HostToHear, drawn: Sequence[str], rule: str) -> Sequence[str]:
    """Of the kinds drawn, those that it takes to break a rule."""
    for kind in drawn:
        fewer = [one for one in drawn if one != kind]
        if rule in _found(tested, fewer):
            return _smallest(tested, fewer, rule)
    return drawn


def _draws(name: str) -> Iterator[tuple[str, list[str]]]:
    """Which settings, and what is done then: nothing, each kind alone, several."""
    base, rng = BASES[name], sampling.drawn(f"voices {name}")
    alone = [("", drawn) for drawn in ([], *([kind] for kind in base.kinds))]
    yield from sampling.sample(alone, ALONE, f"voices {name}")
    kinds, settings = [*base.kinds], ["", *base.settings]
    many = EVERY_NIGHT if sampling.EVERY else TOGETHER
    together = [
        (rng.choice(settings), sorted(rng.sample(kinds, rng.randint(2, 4)), key=kinds.index)) for _ in range(many)
    ]
    yield from sorted(together, key=lambda one: settings.index(one[0]))


@pytest.mark.parametrize("name", sampling.sample([*BASES], TRIED, "voices"))
def test_the_voices_agree(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, is_set, found = BASES[name], "", list[str]()
    tested = HostToHear(base, tmp_path)
    forked_agent.in_place_of_what_is_sent(monkeypatch, tested.lab, known=lambda: tested.answers)
    monkeypatch.chdir(tested.stack.folder)
    try:
        tested.begin()
        for settings, drawn in _draws(name):
            if settings != is_set:
                tested.settings(base.settings[settings])
                is_set = settings
            for rule, said in _found(tested, drawn).items():
                if not any({*key.split(" + ")} <= {name, settings, *drawn} for key in MEANT.get(rule, {})):
                    smallest = _smallest(tested, drawn, rule)
                    found.append(f"{rule}: {', '.join([name, *filter(None, [settings]), *smallest])}\n    {said}")
    finally:
        connections.end_all()
        tested.lab.stop()
    assert not found, f"HOMELAB_SEED={sampling.SEED}\n" + "\n".join(
        sorted(found, key=lambda one: one.count(",", 0, one.index("\n")))
    )
