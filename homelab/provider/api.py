"""What the work on resources over the Proxmox VE API has in common."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

from homelab.errors import HomelabError, raise_all
from homelab.host import card_start
from homelab.host.facts import HostFacts
from homelab.properties import same
from homelab.provider.base import GoneError, OutputsT, Work
from homelab.provider.vm_memory import VmMemory
from homelab.remote import guard, scripts, ssh
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.errors import ElsewhereError, NotThereError
from homelab.remote.proxmox.machine import HALTED, Machine, Policy, PowerTarget
from homelab.resources.base import NodeInputs, ShutdownInputs
from homelab.rights import Permissions
from homelab.settings import Host
from homelab.text import tell
from homelab.vm.config import strings
from remote_scripts.layers import vm_starts

# What a refresh has read already in this process, by host and path: several resources look at the same VM. Only `read`
# uses it; a change always reads anew.
_READINGS: dict[tuple[str, str], Any] = {}


NodeT = TypeVar("NodeT", bound=NodeInputs)
# For how long a card that reads as lost after a start is asked again, and how often.
CARD_SECONDS, CARD_POLL_SECONDS = 10.0, 1.0
# How much longer a command of root's is waited for than it may take, in seconds: that the host ends it is what tells.
SPARE_SECONDS = 10
MOVED = "node"  # of a made guest's drift: it is on another node of the cluster


def while_a_reset_lasts() -> Iterator[None]:
    """Once, and again for as long as a reset may last, during which a card reads as one that is lost. The caller
    leaves the loop when the card reads well."""
    deadline = time.monotonic() + CARD_SECONDS
    yield
    while time.monotonic() < deadline:
        time.sleep(CARD_POLL_SECONDS)
        yield


def has_cards(machine: Machine) -> bool:
    """Does the VM's configuration give it any?"""
    return any(key.startswith("hostpci") for key in machine.config())


class ApiWork(Work[NodeT, OutputsT]):
    """What is done with a resource of a node."""

    def api(self, inputs: NodeT) -> Api:
        """The API.

        :raises HomelabError: the host is no longer configured, or can't be logged in to.
        """
        host = self.host(inputs)
        if host.api is None:
            raise HomelabError(
                wanted=f"homelab:hosts.{inputs.host}.api in the stack's configuration",
                found="it is missing",
                why="mappings and VMs are changed through it",
                next="put it back; to give mappings and VMs up, take those out and run `pulumi up` while it is "
                "still there",
            )
        return Api(host, inputs.node, access=lambda: self._access(inputs), root=lambda command: _as_root(host, command))

    def _access(self, inputs: NodeT) -> Permissions | None:
        """Who may what on the node, for advice on a right that is missing; None: it can't be read."""
        try:
            return Permissions.parse(asyncio.run(ssh.read(self.host(inputs), guests=True)).cluster.users)
        except HomelabError:
            return None

    def converge(
        self,
        inputs: NodeT,
        machine: Machine,
        target: PowerTarget,
        keys: list[str],
        how: Policy,
        power: str,
        before: HostFacts | None = None,
    ) -> bool:
        """`Machine.converge`, and a look at the VM's cards if it was started: Proxmox VE says OK of a start whose card
        is lost.

        :param how: as of `Machine.converge`, with `target`, `keys` and `power`.
        :param before: the host as it was; None: it is read where the VM has cards.
        :returns: whether the VM runs.
        :raises HomelabError: as `Machine.converge`, which has taken its change back then; or, after a start, a card is
            lost or the VM is off again; or QEMU has halted it.
        """
        if before is None and power != "stopped" and has_cards(machine):
            before = self._read_log(inputs)
        if before is None:
            return machine.converge(target, keys, how, power)
        kernel_logs = [before.kernel_log]

        def reread_log() -> None:
            # What the kernel says while the VM goes off isn't of the start. If the host can't be read now, the earlier
            # reading counts.
            with suppress(HomelabError):
                kernel_logs.append(self._read_log(inputs).kernel_log)

        machine.before_start = reread_log
        runs = machine.converge(target, keys, how, power)
        if runs and machine.starts and machine.node == inputs.node:
            self._require_cards(inputs, machine, replace(before, kernel_log=kernel_logs[-1]))
        elif runs and machine.state() == HALTED:
            raise machine.not_running_error(HALTED)
        return runs

    def _read_log(self, inputs: NodeT) -> HostFacts:
        return asyncio.run(ssh.read(self.host(inputs), kernel_log=True))

    def _require_cards(self, inputs: NodeT, machine: Machine, before: HostFacts) -> None:
        """Reads the VM's cards after a start, and tells the remarks about them.

        :raises HomelabError: a card is lost, or it can't be told which the VM has, or the VM is off again. Nothing is
            switched off: what the guest does is its owner's.
        """
        for _ in while_a_reset_lasts():
            facts = asyncio.run(ssh.read(self.host(inputs), guests=True, kernel_log=True))
            functions = card_start.functions_of(facts, machine.vmid, machine.node)
            if not functions and has_cards(machine):
                raise _unknown_cards(machine)
            outcome = card_start.outcome_of(before, facts, functions, machine.start_log, machine.label)
            state = machine.state()
            if not outcome.errors or state != "running":
                break
        for text in outcome.explained:
            machine.say(text)
        for text in outcome.remarks:
            machine.say(f"note: {text}")
        if state == "running":
            raise_all([error.retold(found=f"{error.found}; {machine.label} runs") for error in outcome.errors])
        else:
            raise_all([machine.not_running_error(state), *outcome.errors])

    def machine(self, inputs: NodeT, vmid: int, name: str) -> Machine:
        """A VM of the node.

        :param name: in the settings.
        """
        return self._machine_of(self.api(inputs), inputs, vmid, name)

    def _machine_of(self, api: Api, inputs: NodeT, vmid: int, name: str) -> Machine:
        return Machine(
            api,
            vmid,
            name,
            lambda: guard.let_start(self.host(inputs), vmid),
            memory=VmMemory(self.host(inputs), vmid, name, here=api.node == inputs.node),
            log_of_start=lambda node, since: asyncio.run(self._log_of_start(inputs, vmid, node, since)),
        )

    async def _log_of_start(self, inputs: NodeT, vmid: int, node: str, since: int) -> list[str] | None:
        """What a node's host has of the VM's last start; None: it has none, is not in the settings, or doesn't
        answer."""
        host = self.stack.host_at(inputs.host, node)
        if host is None:
            return None
        try:
            async with ssh.connect(host) as session:
                answer = await session.ask("read", "vm_starts", vm_starts.Wanted(vmid=vmid, since=since))
        except HomelabError:
            return None
        return str(answer["log"]).splitlines() if answer["task"] else None

    def machine_now(self, inputs: NodeT, vmid: int, name: str) -> Machine:
        """A VM on whichever node of the cluster it is by now, where what it was given is given back.

        :param name: in the settings.
        """
        machine = self.machine(inputs, vmid, name)
        try:
            machine.config()
        except NotThereError:
            return machine
        except ElsewhereError as error:
            tell(f"{name}: VM {vmid} is on {error.node} now")
            return self._machine_of(self.api(inputs).at(error.node), inputs, vmid, name)
        return machine

    def drift_of_created(
        self,
        inputs: NodeT,
        guest: CreatedGuest,
        mark: str,
        instance: str,
        keys: Iterable[str],
        wanted: Mapping[str, str],
    ) -> list[str] | None:
        """The options in which a guest that was made here differs, for a refresh, each told; None: it has moved, and
        its own probe says where it is.

        :param mark: of the guest (`is_marked`).
        :param instance: of this making of it.
        :param wanted: option -> value.
        :param keys: those that are compared, where they are wanted.
        :raises GoneError: there is none, or another guest has its id by now.
        """
        path, name = guest.path(inputs.node), guest.name
        try:
            config = strings(self.reading(inputs, path, f"to read the configuration of {guest.label}"))
        except NotThereError:
            tell(f"{name}: drift: {guest.label} is gone")
            raise GoneError from None
        except ElsewhereError as error:
            if not self._has_moved_to(inputs, guest, mark, instance, error.node):
                tell(f"{name}: drift: {guest.label} is gone; the guest of that id on {error.node} is another one")
                raise GoneError from None
            if self.stack.roams(name):
                return None
            tell(f"{name}: drift: {error.found}")
            return [MOVED]
        drift = [key for key in keys if key in wanted and not same(key, config.get(key), wanted[key])]
        for key in drift:
            tell(f"{name}: drift: {key} is {config.get(key, 'not there')} instead of {wanted[key]}")
        return drift

    def _has_moved_to(self, inputs: NodeT, guest: CreatedGuest, mark: str, instance: str, node: str) -> bool:
        """Is the guest that was made here on another node, or has another guest its id there?"""
        try:
            wanted = f"to read the configuration of the guest on {node}"
            config = strings(self.reading(inputs, guest.path(node), wanted))
        except (NotThereError, ElsewhereError):  # a guest of the other kind
            return False
        return is_marked(mark, config) and not names_another_instance(mark, instance, config)

    def reading(self, inputs: NodeT, path: str, wanted: str) -> Any:
        """A GET for a refresh: at most one of a path in a run."""
        key = (inputs.host, path)
        if key not in _READINGS:
            _READINGS[key] = self.api(inputs).get(path, wanted)
        return _READINGS[key]


def _as_root(host: Host, command: Sequence[str]) -> tuple[str, int]:
    """The output of a command that root's session on the host carries out, and its exit status.

    :raises UnreachableError: the connection was lost meanwhile.
    """

    async def output() -> str:
        seconds = host.timeouts.api
        async with ssh.connect(host) as session:
            return await session.run("set", scripts.host_command(command, seconds), seconds + SPARE_SECONDS)

    text, _, status = asyncio.run(output()).rstrip("\n").rpartition("\n")
    return text, int(status)


class CreatedGuest(NamedTuple):
    """A guest that this program creates, or another one of its id. `name`: in the settings; `section`: vms or
    containers; `id_key`, `name_key`: the keys of its id and name; `api_kind`: qemu or lxc; `guest_id`: its id."""

    name: str
    label: str
    section: str
    id_key: str
    name_key: str
    api_kind: str
    guest_id: int

    def path(self, node: str) -> str:
        """The API's path of its configuration."""
        return f"nodes/{node}/{self.api_kind}/{self.guest_id}/config"

    @property
    def adopting(self) -> str:
        """How the one that is there is adopted, as advice."""
        kind = self.label.partition(" ")[0]
        return f"leave `create` out of {self.section}.{self.name} to adopt that {kind} as it is"


def created_vm(vmid: int, name: str) -> CreatedGuest:
    """:param name: in the settings."""
    return CreatedGuest(name, f"VM {vmid}", "vms", "vmid", "name", "qemu", vmid)


def created_container(ctid: int, name: str) -> CreatedGuest:
    """:param name: in the settings."""
    return CreatedGuest(name, f"container {ctid}", "containers", "ctid", "hostname", "lxc", ctid)


class _GuestInputs(Protocol):
    """The inputs of a guest that this program created."""

    @property
    def protect(self) -> bool: ...

    @property
    def mark(self) -> str: ...


class _GuestInputsWithNode(_GuestInputs, Protocol):
    """The inputs of a guest that this program created, with its node's name in Proxmox VE."""

    @property
    def node(self) -> str: ...


def is_marked(mark: str, config: dict[str, str]) -> bool:
    """Does the guest's description carry this mark? What only begins so is the mark of another name."""
    return re.search(rf"{re.escape(mark)}(?!\S)", config.get("description", "")) is not None


def _instance_in(mark: str, config: dict[str, str]) -> str:
    """The making of the guest that its description names: 16 hexadecimal digits; empty: none."""
    match = re.search(rf"{re.escape(mark)} ([0-9a-f]{{16}})(?!\S)", config.get("description", ""))
    return match[1] if match else ""


def names_another_instance(mark: str, instance: str, config: dict[str, str]) -> bool:
    """Does the guest's description name another making of it than `instance`?"""
    named_instance = _instance_in(mark, config)
    return bool(instance and named_instance) and named_instance != instance


def marked_anew(mark: str, instance: str, config: dict[str, str]) -> str:
    """The description of a guest that carries the mark, with this making of it named in it; whatever else the user has
    written there stays."""
    text = config["description"].removesuffix("\n")
    return re.sub(rf"{re.escape(mark)}(?: [0-9a-f]{{16}})?(?!\S)", lambda _: f"{mark} {instance}", text, count=1)


def id_in_use(mark: str, guest: CreatedGuest, config: dict[str, str]) -> HomelabError:
    """Why a guest isn't made where there is one of its id.

    :param mark: of the guest that was to be made.
    """
    stack, _, name = mark.rpartition("/")
    if (match := re.search(rf"{re.escape(stack)}/([^\s/]+)", config.get("description", ""))) and match[1] != name:
        return HomelabError(
            wanted=f"{guest.label} ({name}) created",
            found=f"this stack has created {guest.label} as {guest.section}.{match[1]}",
            why="under another name Pulumi would make a new guest, and delete this one with its disks; nothing was "
            "changed",
            next=f"put the name {match[1]} back in the settings; or {guest.adopting}, which a destroy leaves there",
        )
    return HomelabError(
        wanted=f"{guest.label} ({name}) created",
        found=f"there is a {guest.label} already: {config.get(guest.name_key, 'without a name')}"
        + (f", locked ({config['lock']})" if "lock" in config else ""),
        why="it is not this program's, or not finished; nothing was changed",
        next=(
            "if an earlier run of this stack was making it: wait until the task on the node has ended, then run the "
            "same again, which finishes it. Otherwise "
            if config.get("lock") in ("create", "clone")
            else ""
        )
        + f"choose another {guest.id_key}, or {guest.adopting}",
    )


def require_same(
    guest: CreatedGuest,
    inputs: _GuestInputsWithNode,
    before: _GuestInputsWithNode,
    instance: str,
    config: dict[str, str],
) -> None:
    """Where a guest has moved to: is it the one that was made, or has another one its id by now?

    :param config: of the guest of that id on the node that the inputs name.
    :raises HomelabError: it is another one.
    """
    marked = is_marked(inputs.mark, config) or is_marked(before.mark, config)
    if marked and not names_another_instance(inputs.mark, instance, config):
        return
    kind = guest.label.partition(" ")[0]
    raise HomelabError(
        wanted=f"{guest.label} ({guest.name}), which this program made on {before.node}, changed on {inputs.node}, "
        "where it is now",
        found=f"{guest.label} on {inputs.node} is another one: {config.get(guest.name_key, 'without a name')}",
        why="the one that was made is gone, and its id is used again; what isn't this program's is never changed or "
        "removed",
        next=f"choose another {guest.id_key} for {guest.section}.{guest.name}, and run `pulumi up --refresh`: a new "
        f"{kind} is made",
    )


def reason_to_keep(
    inputs: _GuestInputs, instance: str, config: dict[str, str], kind: str, adopted: list[str], *, elsewhere: bool
) -> str | None:
    """Why a guest that was made here isn't deleted with its resource; None: it is.

    :param instance: the making of it that is to be deleted; empty: the state is of before these were told apart.
    :param kind: VM or container.
    :param adopted: the settings that have it without `create`.
    :param elsewhere: it is on another node than the one that it was made on, where a replacement of the resource may
        have found it first.
    """
    if inputs.protect:
        return "it is protected"
    if not is_marked(inputs.mark, config):
        return f"it is not the {kind} that was created here"
    if adopted:
        return f"{adopted[0]} adopts it"
    if names_another_instance(inputs.mark, instance, config):
        # Another resource has taken it over since, such as this one's replacement after the guest has moved.
        return "it is kept by another entry of the state now"
    if elsewhere and not (instance and _instance_in(inputs.mark, config)):
        return (
            "it is on another node now, and its description doesn't tell whether it is this one or one that was "
            "made since"
        )
    return None


def policy(shutdown: ShutdownInputs) -> Policy:
    """How a VM is shut down."""
    return Policy(shutdown.timeout, shutdown.otherwise)


def _unknown_cards(machine: Machine) -> HomelabError:
    return HomelabError(
        wanted=f"the functions of the cards that {machine.label} has been started with",
        found="the host names none, neither among qemu-server's reservations (/run/qemu-server/pci-id-reservations) "
        "nor by the VM's configuration",
        why="so it isn't known whether its cards came through the start",
        next=f"look at both on the host (`qm config {machine.vmid}`), and whether the guest has its card; then run "
        "`pulumi up` again",
    )
