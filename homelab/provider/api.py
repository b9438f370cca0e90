"""What the work on resources over the Proxmox VE API has in common."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from homelab.errors import HomelabError, raise_all
from homelab.host import card_start
from homelab.host.facts import HostFacts
from homelab.provider import vm_memory
from homelab.provider.base import OutputsT, Work
from homelab.remote import guard, ssh
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.errors import ElsewhereError, NotThereError
from homelab.remote.proxmox.machine import HALTED, Machine, PowerTarget
from homelab.resources.base import NodeInputs
from homelab.shapes import ShutdownInputs
from homelab.text import tell
from remote_scripts.layers import vm_starts

# What a refresh has read already in this process, by host and path: several resources look at the same VM. Only `read`
# uses it; a change always reads anew.
_READINGS: dict[tuple[str, str], Any] = {}


NodeT = TypeVar("NodeT", bound=NodeInputs)
# For how long a card that reads as lost after a start is asked again, and how often.
CARD_SECONDS, CARD_POLL_SECONDS = 10.0, 1.0


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
        """The node's API.

        :raises HomelabError: the host is no longer configured.
        """
        host_at = functools.partial(self.stack.host_at, inputs.host)
        return Api(host_at(inputs.node) or self.host(inputs), inputs.node, host_at=host_at)

    def converge(
        self,
        inputs: NodeT,
        machine: Machine,
        target: PowerTarget,
        keys: list[str],
        shutdown: ShutdownInputs,
        power: str,
        before: HostFacts | None = None,
    ) -> bool:
        """`Machine.converge`, and a look at the VM's cards if it was started: Proxmox VE says OK of a start whose card
        is lost.

        :param shutdown: as of `Machine.converge`, with `target`, `keys` and `power`.
        :param before: the host as it was; None: it is read where the VM has cards.
        :returns: whether the VM runs.
        :raises HomelabError: as `Machine.converge`, which has taken its change back then; or, after a start, a card is
            lost or the VM is off again; or QEMU has halted it.
        """
        if before is None and power != "stopped" and has_cards(machine):
            before = self._read_log(inputs)
        if before is None:
            return machine.converge(target, keys, shutdown, power)
        kernel_logs = [before.kernel_log]

        def reread_log() -> None:
            # What the kernel says while the VM goes off isn't of the start. If the host can't be read now, the earlier
            # reading counts.
            with suppress(HomelabError):
                kernel_logs.append(self._read_log(inputs).kernel_log)

        machine.before_start = reread_log
        runs = machine.converge(target, keys, shutdown, power)
        if runs and machine.starts and machine.node == inputs.node:
            self._require_cards(inputs, machine, replace(before, kernel_log=kernel_logs[-1]))
        elif runs and machine.state() == HALTED:
            raise machine.not_running_error(HALTED)
        return runs

    def _read_log(self, inputs: NodeT) -> HostFacts:
        return ssh.read(self.host(inputs), kernel_log=True)

    def _require_cards(self, inputs: NodeT, machine: Machine, before: HostFacts) -> None:
        """Reads the VM's cards after a start, and tells the remarks about them.

        :raises HomelabError: a card is lost, or it can't be told which the VM has, or the VM is off again, and then has
            its old configuration. Nothing is switched off: what the guest does is its owner's.
        """
        for _ in while_a_reset_lasts():
            facts = ssh.read(self.host(inputs), guests=True, kernel_log=True)
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
            error: HomelabError = machine.not_running_error(state)
            raise_all([machine.taken_back(error) if state == "stopped" else error, *outcome.errors])

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
            memory=vm_memory.VmMemory(self.host(inputs), vmid, name, here=api.node == inputs.node),
            starts_on=lambda node, since: self._starts_on(inputs, vmid, node, since),
        )

    def _starts_on(self, inputs: NodeT, vmid: int, node: str, since: int) -> vm_starts.Answer | None:
        """What a node's host has of the VM's starts since then; None: it is not in the settings, or doesn't answer."""
        host = self.stack.host_at(inputs.host, node)
        if host is None:
            return None
        try:
            return vm_memory.starts(ssh.Session(host), vmid, since)
        except HomelabError:
            return None

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

    def reading(self, inputs: NodeT, path: str, wanted: str) -> Any:
        """A GET for a refresh: at most one of a path in a run."""
        key = (inputs.host, path)
        if key not in _READINGS:
            _READINGS[key] = self.api(inputs).get(path, wanted)
        return _READINGS[key]


def _unknown_cards(machine: Machine) -> HomelabError:
    return HomelabError(
        wanted=f"the functions of the cards that {machine.label} has been started with",
        found="the host names none, neither among qemu-server's reservations (/run/qemu-server/pci-id-reservations) "
        "nor by the VM's configuration",
        why="so it isn't known whether its cards came through the start",
        next=f"look at both on the host (`qm config {machine.vmid}`), and whether the guest has its card; then run "
        "`pulumi up` again",
    )
