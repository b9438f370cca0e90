"""A guest's cards as one transaction on the host, on the lab's API.

The layer runs in the test's process, and its requests to 127.0.0.1:85 go to the lab's pvedaemon: so a run can be killed
after any of its changes. A container's lines are written as text by Perl, with the lab's few calls of Proxmox VE's modules.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest

from homelab.container.plan import ContainerWish, as_given, judge_container
from homelab.errors import raise_all
from homelab.findings import JudgedGuest
from homelab.remote import ssh
from homelab.vm import plan
from homelab.vm.cards import VmCard, Wish
from lab import Lab, LabError
from lab.api import hooks, lxc
from lab.api.call import unheard
from lab.api.guests import Guest
from lab.api.tasks import Tasks
from lab.control import request
from lab.host.host_python import nodes_below
from lab.host.state import HostState
from remote_scripts.both import container_cards as of_containers
from remote_scripts.both.free_card import Wanted as FreeCard
from remote_scripts.both.guest_cards import Answer, Wanted
from remote_scripts.both.terms import Terms
from remote_scripts.guests import power, starts
from remote_scripts.layers import container_cards, free_card, guest_cards
from remote_scripts.notes import guest_notes, owed
from remote_scripts.notes.container_note import Cards
from remote_scripts.pve import api, guest_tasks
from remote_scripts.pve.guest_kinds import CONTAINER, Kind
from remote_scripts.pve.guest_kinds import VM as VM_KIND
from remote_scripts.tools import state
from remote_scripts.tools.done import Done
from remote_scripts.tools.run import Stand
from remote_scripts.tools.system import System
from tests.agent import api_kit
from tests.lab.killed_kit import KilledError
from tests.lab.stack_kit import host_of, map_card
from tests.unit.hosts import desktop

NODE, VM, SLOT = "pve", 103, "0000:01:00"
CARD: dict[str, Any] = {"gpu": "rtx5090", "mapping": "rtx5090", "slot": SLOT, "take_over": True}
OWN = VmCard(**CARD)
LINES = {"hostpci0": f"{SLOT}.1,pcie=1", "hostpci2": f"{SLOT}.0,pcie=1,x-vga=1,romfile=5090.rom"}
OURS = "hostpci2: mapping=rtx5090,pcie=1,x-vga=1,romfile=5090.rom"
CT = 901
DEVICES, MOUNTS = Cards(minors=(0,)), Cards(method="mount-entry", minors=(0,))
# The changes of a run until the guest goes off: its note, its options, what is owed, its shutdown. A run is killed before a shutdown, and after
# what else it changes; the shutdown's task is noted next.
SHUT_DOWN = 4
# All changes of a run that gives a guest something (a test counts them).
CHANGES = 8


class World:
    """A lab, and a VM of it. `left`: how many changes this run may make yet; `lost`: of a request with this text the answer is lost; `is_lost`: a kill at a shutdown
    comes behind it.
    """

    kind: Kind = VM_KIND
    vmid, scenario, owner = VM, "bound-by-hand", "p/s/sandbox"
    losable: tuple[str, ...] = ("PUT", "status/shutdown", "status/start")
    switches_off: tuple[tuple[str, ...], ...] = (("shutdown",), ("start", "stop"), ("start", "shutdown"))
    unit = "inactive"

    def __init__(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab, self.left, self.lost = lab, 10**6, ""
        self.then: tuple[str, str, Callable[[], object]] | None = None
        self.minted, self.spent, self.is_lost = 0, list[str](), False
        #: What somebody else does at each change, by its number.
        self.at: Callable[[int], object] = lambda _number: None
        self.done = 0
        self.port = urlsplit(lab.api["url"]).port
        self.ticket = self.mint()
        monkeypatch.setattr(api, "exchange", self.exchange)
        monkeypatch.setattr(os, "stat", nodes_below(f"{lab.root}/")[0])
        monkeypatch.setattr(state, "_TRY_SECONDS", 0.05)
        monkeypatch.setattr(power, "STEADY_SECONDS", 0.3)
        for module, name in ((guest_notes, "write"), (owed, "_change")):
            monkeypatch.setattr(module, name, self.counted(getattr(module, name)))

    @classmethod
    def prepare(cls, lab: Lab) -> None:
        """The VM runs with the card, by a line for each function; another one, which is off, has it too."""
        map_card(lab)
        lines = " ".join(f"--{key} {value}" for key, value in LINES.items())
        done = lab.run(
            f"qm stop {VM}; qm set {VM} --hostpci0 {SLOT}; qm snapshot {VM} before; qm set {VM} {lines}; qm start {VM}; "
            f"qm create 104 --name gaming --machine q35 --memory 2048 --hostpci0 {SLOT},pcie=1; qm status {VM}"
        )
        assert "running" in done.stdout, done.stderr

    # -- what a run does, and how it ends ----------------------------------------------------------------------------
    def exchange(self, _system: System, text: bytes) -> bytes:
        method, path = text.decode().split(" ")[:2]
        is_shutdown = path.endswith("/status/shutdown")
        if is_shutdown and not self.is_lost:
            self.count(is_seen=False)
        with socket.create_connection(("127.0.0.1", self.port), 30) as connection:
            connection.sendall(text)
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        if method != "GET" and (not is_shutdown or self.is_lost):
            self.count()
        if self.then and self.then[0] == method and self.then[1] in path:
            act, self.then = self.then[2], None
            act()
        if self.lost and self.lost in f"{method} {path}":
            self.lost = ""
            raise ConnectionResetError("the answer was lost")
        return answer

    def counted(self, act: Callable[..., None]) -> Callable[..., None]:
        def counting(*arguments: Any) -> None:
            act(*arguments)
            self.count()

        return counting

    def count(self, *, is_seen: bool = True) -> None:
        """:param is_seen: whether somebody else may act there: between homelab's last look and its shutdown lie some milliseconds."""
        if is_seen:
            self.at(self.done)
        self.left, self.done = self.left - 1, self.done + 1
        if self.left < 0:
            raise KilledError

    def perl(self, _arguments: Sequence[str], _stdin: bytes) -> Done:
        self.minted += 1
        return Done(0, (self.spent.pop() if self.spent else self.ticket).encode())

    def programs(self) -> dict[str, Stand]:
        return {
            "sync": lambda _arguments, _stdin: 0,
            "perl": self.perl,
            "systemctl": lambda *_: self.unit,
            **{name: partial(self.program, name) for name in ("qm", "pct")},
        }

    def program(self, name: str, arguments: Sequence[str], _stdin: bytes) -> Done:
        done = self.lab.run(f"{name} {' '.join(arguments[:2])}", check=False)
        return Done(done.returncode, done.stdout.encode(), done.stderr.encode())

    def system(self) -> System:
        return System(self.lab.root, programs=self.programs())

    def give(self, *, other: bool = False, owner: str = owner, **more: Any) -> bool:
        """The guest is given its card, or something else with it; whether it runs then."""
        return self.up(OWN, owner=owner, **{**({"display": "none"} if other else {}), **more}).runs

    def destroy(self, vmid: int = VM, owner: str = owner) -> None:
        guest_cards.revert(self.system(), Wanted(vmid=vmid, terms=Terms(owner=owner, shutdown=1)))

    def killed_after(self, number: int, act: Callable[[], object]) -> None:
        self.left = number
        try:
            with pytest.raises(KilledError):
                act()
        finally:
            self.left = 10**6

    def killed_while_off(self) -> None:
        """A run is killed between its shutdown and its start."""
        self.killed_after(SHUT_DOWN, self.give)
        self.wait_off()
        assert not self.runs()

    def until_done(self, act: Callable[[], object]) -> int:
        """Killed after its first change, the next one after its second, and so on."""
        for number in range(40):
            self.left = number
            try:
                act()
            except KilledError:
                continue
            finally:
                self.left = 10**6
            return number
        raise AssertionError

    def debt(self) -> owed.Debt | None:
        return owed.of(self.system(), self.kind, self.vmid)

    # -- of a VM alone -----------------------------------------------------------------------------------------------
    def read(self, vmid: int = VM) -> Answer:
        return guest_cards.read(self.system(), Wanted(vmid=vmid))

    def up(self, *cards: VmCard, vmid: int = VM, owner: str = owner, **more: Any) -> Answer:
        about = {key: more.pop(key) for key in ("display", "machine") if key in more}
        seen = self.read(vmid)
        wish = Wish("sandbox", vmid, list(cards), **about)
        decided = plan.judge_vm(plan.SeenVm(seen.config, seen.base, seen.originals), wish, desktop())
        raise_all(decided.refusals)
        terms = Terms(owner=owner, **{"shutdown": 1, **more})
        wanted = Wanted(vmid=vmid, terms=terms, options=decided.options, digest=seen.digest)
        return guest_cards.apply(self.system(), wanted)

    def set(self, vmid: int = VM, **settings: str | None) -> Answer:
        """As a VM that this program has made is changed."""
        terms, digest = Terms(owner=self.owner, shutdown=1), self.read(vmid).digest
        return guest_cards.apply(self.system(), Wanted(vmid=vmid, terms=terms, settings=settings, digest=digest))

    def free(self, mapping: str, slot: str, *staying: int, **keeps: tuple[str, ...]) -> bool:
        """As a mapping that has other keepers takes its card out of the other VMs; ``keeps``: `vm103` and so on."""
        kept = {name.removeprefix("vm"): mappings for name, mappings in keeps.items()}
        wanted = FreeCard(stack="p/s", card=(mapping, slot), keeps=kept, staying=tuple(map(str, staying)))
        return free_card.apply(self.system(), wanted).changed

    def in_force(self) -> list[str]:
        return [line for line in self.conf().partition("\n[")[0].splitlines() if line.startswith("hostpci")]

    # -- the host ----------------------------------------------------------------------------------------------------
    def command(self, *verbs: str) -> None:
        """The owner's, at a shell."""
        self.lab.run(" && ".join(f"{self.kind.program} {verb} {self.vmid}" for verb in verbs))

    def power_off_inside(self) -> None:
        """Which no task shows. One that goes off meanwhile needs nothing."""
        with suppress(LabError):
            self.lab.wait_guest(self.vmid, timeout=2)
            request(self.lab.state, "poweroff", guest=self.vmid)
        self.wait_off()

    def shut_all_down(self) -> list[str]:
        """The web interface's Bulk Shutdown, to its end; the host goes on. How the guest's own shutdown has ended, if it had one: `OK` or `failed`."""
        before = {task["upid"] for task in self.tasks()}
        self.lab.run(f"pvesh create /nodes/{self.lab.api['node']}/stopall --timeout 1")
        new = [task for task in self.tasks() if task["upid"] not in before and task["type"] == self.kind.stops[0]]
        return ["OK" if task["status"] == "OK" else "failed" for task in new]

    def tasks(self) -> list[dict[str, Any]]:
        """What has switched the guest, the latest first."""
        return guest_tasks.switching(api.NodeApi(self.system()), self.kind, self.vmid)

    def under_ha(self, state: str = "started") -> None:
        """HA has it from now on."""
        HostState(self.lab.state).write(
            "/etc/pve/ha/resources.cfg", f"{self.kind.ha}: {self.vmid}\n\tstate {state}\n\n"
        )

    def becomes_another(self) -> None:
        """Its id, once it is off, is given to another guest."""
        self.lab.run(f"qm set {VM} --smbios1 uuid=11111111-2222-3333-4444-555555555555")

    def mint(self) -> str:
        match = api.TICKET.search(self.lab.run(shlex.join(api.MINT)).stdout)
        assert match
        return match[0]

    def set_clock(self, ahead: int) -> None:
        self.lab.fault("clock-ahead", ahead)
        self.ticket = self.mint()

    def shift_tasks(self, seconds: int) -> None:
        """What its log says of the time before the clock was set."""
        index = self.lab.root / "var/log/pve/tasks/index"
        lines = [line.split(" ", 2) for line in index.read_text().splitlines()]
        shifted = [(upid.split(":"), f"{int(end, 16) + seconds:08X}", status) for upid, end, status in lines]
        for words, _, _ in shifted:
            words[4] = f"{int(words[4], 16) + seconds:08X}"
        index.write_text("".join(f"{':'.join(words)} {end} {status}\n" for words, end, status in shifted))

    def settle(self) -> None:
        """Until no task switches the guest."""
        starts._CLASSES[self.kind.program](self.system(), api.NodeApi(self.system()), self.vmid)

    def wait_off(self) -> None:
        """Until the guest is off, if it is on its way."""
        status = f"{self.kind.program} status {self.vmid}"
        self.lab.run(f"while {status} | grep -q running && [ $((n+=1)) -lt 30 ]; do sleep 0.1; done")

    def goes_down_with_its_host(self, *, by_owner: bool) -> None:
        """A guest that was noted as running is off since; `by_owner`: before the host began to shut its guests down."""
        owed.note_running(self.system())
        debt = self.debt()
        assert debt
        owed.update(self.system(), replace(debt, boot="the one before"))
        if not by_owner:
            tasks = Tasks(HostState(self.lab.state))
            tasks.end(*tasks.begin("stopall", ""))
        self.command("shutdown")

    def switched_by(self, task: str, *, runs: bool) -> None:
        """A task of root's that the lab can't do, such as `qmrestore`, has switched the guest.

        Of one by which it has become another one the test writes the configuration.
        """
        host = HostState(self.lab.state)
        tasks = Tasks(host)
        upid, log = tasks.begin(task, str(self.vmid))
        Guest(host, self.kind.name, self.vmid).set_running(runs)
        tasks.end(upid, log)
        request(self.lab.state, "guests")

    def own_form(self) -> str:
        """Its configuration, in a form that Proxmox VE doesn't write, where something else than Proxmox VE may write it."""
        return self.conf()

    def is_given(self) -> bool:
        """Whether the card is in its configuration, as it was last given."""
        return self.in_force() == [OURS]

    def conf(self, vmid: int | None = None) -> str:
        return (self.lab.root / f"etc/pve/{self.kind.folder}/{vmid or self.vmid}.conf").read_text()

    def notes(self) -> list[str]:
        folder = self.lab.root / "etc/pve/homelab"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def power(self, mark: Any) -> list[str]:
        calls = [call for call in self.lab.api_calls(mark) if call["method"] == "POST" and "/status/" in call["path"]]
        return [call["path"].rpartition("/")[2] for call in calls]

    def runs(self) -> bool:
        return "running" in self.lab.run(f"{self.kind.program} status {self.vmid}").stdout

    def is_as(self, before: str) -> bool:
        """Whether the guest runs with that configuration, and nothing is noted of it."""
        return (self.conf(), self.notes(), self.runs()) == (before, [], True)

    @contextmanager
    def without_pmxcfs(self) -> Iterator[None]:
        """/etc/pve is an empty folder meanwhile."""
        place = self.lab.root / "etc/pve"
        place.rename(place.with_name("pve-away"))
        place.mkdir()
        try:
            yield
        finally:
            place.rmdir()
            place.with_name("pve-away").rename(place)


class Containers(World):
    """A lab, and a container of it. `vanishes`: what is written next is gone again once the container is off."""

    kind = CONTAINER
    vmid, scenario, owner = CT, "phoenix", "p/s/ct"
    losable, switches_off = World.losable[1:], World.switches_off[1:]
    vanishes = False

    @classmethod
    def prepare(cls, lab: Lab) -> None:
        """The container runs, as it does after a boot."""

    def perl(self, arguments: Sequence[str], stdin: bytes) -> Done:
        if arguments[: len(api.MINT) - 1] == api.MINT[1:]:
            return super().perl(arguments, stdin)
        before, done = self.conf(), api_kit.perl(self.lab.root, arguments, stdin)
        if done.status == 0:
            if self.vanishes:
                self.vanishes = False
                self.then = ("POST", "status/shutdown", lambda: self.written(before))
            self.count()
        return done

    def written(self, text: str) -> None:
        (self.lab.root / f"etc/pve/lxc/{CT}.conf").write_text(text)

    def give(self, *, other: bool = False, owner: str = owner, **more: Any) -> bool:
        return self.ct(MOUNTS if other else DEVICES, owner, **more).state == "running"

    def ct(self, cards: Cards = DEVICES, owner: str = owner, **more: Any) -> of_containers.Answer:
        terms = Terms(owner=owner, **{"shutdown": 1, **more})
        return container_cards.apply(self.system(), of_containers.Wanted(ctid=CT, cards=cards, terms=terms))

    def destroy(self, vmid: int = CT, owner: str = owner, **more: Any) -> None:
        wanted = of_containers.Wanted(ctid=vmid, terms=Terms(owner=owner, shutdown=1, **more))
        container_cards.revert(self.system(), wanted)

    def judged(self, cards: Cards | None = None) -> JudgedGuest:
        """:param cards: that it is to have; None: what it was given."""
        facts = ssh.read(host_of(self.lab), guests=True)
        return judge_container(ContainerWish("ai", CT, cards) if cards else as_given("ai", CT, facts), facts)

    def drift(self) -> list[str]:
        return self.judged().steps

    def power_off_inside(self) -> None:
        host = HostState(self.lab.state)
        guest = Guest(host, "lxc", CT)
        hooks.drive(host, lxc.end(guest, guest.config().values, unheard))
        request(self.lab.state, "guests")

    def becomes_another(self) -> None:
        """Proxmox VE gives each network card of a new one an address."""
        conf = re.sub(r",hwaddr=[^,\n]+", "", self.conf()).replace("disk-0", "disk-7")
        self.written(conf.replace("type=veth", "type=veth,hwaddr=BC:24:11:00:00:99"))

    def own_form(self) -> str:
        first, _, rest = self.conf().partition("\n")
        self.written(f"{rest}\n# a comment of its owner's\n{first}\nmp9: /,mp=/host\n")
        return self.conf()

    def is_given(self) -> bool:
        return any("/dev/nvidia0" in line for line in self.lines()) and not self.drift()

    def lines(self) -> list[str]:
        head = self.conf().partition("\n[")[0].splitlines()
        return [line for line in head if re.match(r"dev\d|lxc\.", line)]


@pytest.fixture(scope="module")
def prepared(kind: type[World], labs: Callable[[str], Lab]) -> Iterator[Lab]:
    """:param kind: of each file's own."""
    lab = labs(kind.scenario)
    kind.prepare(lab)
    lab.wait_idle()
    lab.save()
    yield lab
    lab.reset()


@pytest.fixture
def world(kind: type[World], prepared: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The next test has the lab as it was prepared."""
    yield kind(prepared, monkeypatch)
    prepared.restore()
