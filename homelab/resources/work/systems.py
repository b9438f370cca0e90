"""How a system is reached that NVIDIA's stack is installed on: the host, a VM, a container through its host."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

from homelab.errors import HomelabError, LoginRefusedError, UnreachableError
from homelab.nvidia.resource import SystemInputs
from homelab.reading import systems
from homelab.remote import boots, host_session, ssh
from homelab.resources.work.base import OutputsT, Work
from homelab.settings import Container, Host, Nvidia, Vm
from homelab.text import tell
from remote_scripts.both.read_system import Answer as SystemReading
from remote_scripts.both.read_system import Wanted

SystemT = TypeVar("SystemT", bound=SystemInputs)

# Between two tries to reach a guest that starts. Nothing on this side tells when it is there.
RETRY_SECONDS = 1.0
# For how long a guest that refuses the login is tried again, if it isn't known to restart: while a system starts or
# goes down, PAM lets in nobody but root (pam_nologin).
NO_LOGIN_SECONDS = 30.0


#: What a layer of a system's agent answers, as `Session.ask`, in the time that one thing may take there.
Ask = Callable[..., dict[str, Any]]


class SystemWork(Work[SystemT, OutputsT]):
    """What is done with a resource of a system that NVIDIA's stack is installed on."""

    def reached(self, inputs: SystemT) -> Host:
        """The SSH settings by which the system's layers are asked.

        :raises HomelabError: the configuration no longer has it.
        """
        if inputs.target != "vm":
            return self.host(inputs)
        vm = self.find_guest(inputs)
        if not isinstance(vm, Vm) or vm.ssh is None:
            raise _missing(inputs, "ssh")
        return self.host(inputs).model_copy(update={"ssh": vm.ssh, "address": inputs.address})

    def is_held_meanwhile(self, inputs: SystemT) -> bool:
        """For what is inside a VM, which may run with a card that it has in turn, only where this run has held the host
        already."""
        return inputs.target != "vm" or host_session.of(inputs.host).guard is not None

    def wanted_stack(self, inputs: SystemT) -> Nvidia | None:
        """The system's NVIDIA stack in the settings; None: they have none any more."""
        if inputs.target == "host":
            return self.host(inputs).nvidia
        guest = self.find_guest(inputs)
        return guest.nvidia if guest else None

    def needed_stack(self, inputs: SystemT) -> Nvidia:
        """The same.

        :raises HomelabError: they have none any more.
        """
        if stack := self.wanted_stack(inputs):
            return stack
        raise _missing(inputs, "nvidia")

    def find_guest(self, inputs: SystemT) -> Vm | Container | None:
        """The guest in the settings; None: of a host, or they don't have it any more."""
        name = inputs.system_name.rpartition(".")[2]
        return (self.stack.vms if inputs.target == "vm" else self.stack.containers)(inputs.host).get(name)

    def asking(self, inputs: SystemT, seconds: float = 0) -> Ask:
        """What asks the system: a VM itself, a container through its host.

        :param seconds: how long one thing may take there; 0: as of `Session.run`.
        """
        return functools.partial(ssh.Session(self.reached(inputs)).ask, seconds=seconds, ctid=inputs.ctid or 0)

    def read_system(self, inputs: SystemT) -> SystemReading:
        """One reading.

        :raises HomelabError: as `Session.ask`.
        """
        return _read(self.asking(inputs), inputs)

    def read_system_in_time(
        self,
        inputs: SystemT,
        seconds: float,
        old_boot: str = "",
        then: Callable[[Ask, SystemReading], None] | None = None,
    ) -> SystemReading:
        """The first reading, of another boot than `old_boot`.

        A VM on its way up or down may not answer, break a connection, refuse the login, or end the agent: it is tried
        again.

        :param then: done with what was read; where the connection is lost meanwhile, both are done again.
        :raises HomelabError: there is none in that time; or the login is refused for longer than a start takes, or
            `then` fails. A host and its containers are not waited for.
        """

        started, is_told, was_read = time.monotonic(), False, bool(old_boot)
        # was_read: it could be read before, so it restarts. refusal: since when the login is refused, and the error.
        refusal: tuple[float, HomelabError] | None = None
        while True:
            system = None
            try:
                ask = self.asking(inputs)
                system, was_read = _read(ask, inputs), True
                if system.boot_id != old_boot:
                    if then is not None:
                        then(ask, system)
                    return system
                refusal, last = None, "it has not gone down"
            except HomelabError as error:
                is_lost = isinstance(error, UnreachableError)
                passes = is_lost or (system is None and (was_read or isinstance(error, LoginRefusedError)))
                if inputs.target != "vm" or not passes:
                    raise
                since = refusal[0] if refusal else time.monotonic()
                refusal, last = None if is_lost else (since, error), error.found
            now = time.monotonic()
            if refusal and (now - started > seconds or (not was_read and now - refusal[0] > NO_LOGIN_SECONDS)):
                raise refusal[1]
            if now - started > seconds:
                raise _never_there(inputs, last, seconds, restarted=bool(old_boot))
            if not is_told and system is None:
                is_told = True
                tell(
                    f"{inputs.system_name}: waiting until it can be read at {inputs.address}, for {seconds:.0f} s "
                    f"at most: {last}"
                )
            time.sleep(boots.REFUSED_SECONDS if refusal else RETRY_SECONDS)


def _read(ask: Ask, inputs: SystemInputs) -> SystemReading:
    passed, staying = tuple(inputs.passed), tuple(inputs.staying or ())
    # What was for a VM so far, and isn't any more, is on vfio-pci until the host restarts.
    return systems.asked(ask, Wanted(passed=passed, staying=staying, released=inputs.target == "host"))


def _missing(inputs: SystemInputs, key: str) -> HomelabError:
    return HomelabError(
        wanted=f"homelab:{inputs.system_name}.{key} in the stack's configuration",
        found="it is missing",
        why="it says how to reach the system, or what is to be installed there",
        next="put it back, or run `pulumi up` to give that up",
    )


def _never_there(inputs: SystemInputs, last: str, seconds: float, *, restarted: bool) -> HomelabError:
    return HomelabError(
        wanted=f"{inputs.system_name} in reach at {inputs.address}{' after its reboot' if restarted else ''}",
        found=f"{last}, for {seconds:.0f} s",
        why="NVIDIA's stack is installed from inside the guest",
        next="see whether it runs (its console in Proxmox VE) and has that address and SSH port; then run "
        "`pulumi up` again: it goes on from here",
    )
