"""What the dynamic resources have in common: where their credentials come from."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pulumi.dynamic import ConfigureRequest, DiffResult, ResourceProvider

from homelab.resources import limits

if TYPE_CHECKING:
    from homelab.host.facts import HostFacts
    from homelab.settings import Container, Host, Vm

# What a refresh has read already in this process, by host: its probe and its containers look at the same reading. Resources are
# refreshed at the same time, in threads.
_READINGS: dict[str, HostFacts] = {}
_READING = threading.Lock()


# How long after a reboot of ours a guest that it stopped is started again; later, that it is off is somebody's wish.
REBOOT_SECONDS = 3600


# Hosts that could not be reached to be held: they aren't tried again for each resource.
_OUT_OF_REACH: set[str] = set()


# What is done before each of a provider's acts, by the method's name: a provider may have a way of its own.
_PREPARED_BY = {"create": "hold_on", "read": None, "update": "hold_on", "delete": "hold"}


def _after(prepare: str | None, act: Callable[..., Any]) -> Callable[..., Any]:
    if prepare is None:
        return act

    @functools.wraps(act)
    def run(self: HostProvider, *arguments: Any) -> Any:
        getattr(self, prepare)(arguments[-1])
        return act(self, *arguments)

    return run


def stopped_by_us(vmid: int, boot: dict[str, Any], known: dict[str, Any] | None) -> bool:
    """Has a reboot of ours stopped the guest, just now?

    :param boot: of the host: the guests that a reboot of ours ``stopped``, and when (``at``; BootVerification).
    :param known: the same when the guest was last seen to; None: never.
    """
    if known == boot:
        return False
    return vmid in [int(stopped) for stopped in boot["stopped"]] and time.time() - boot["at"] < REBOOT_SECONDS


def replaced_by(olds: dict[str, Any], news: dict[str, Any], *others: str) -> DiffResult:
    """The `diff` of an act: it is done again with the change of any input.

    :param others: properties that are no reason: outputs, and inputs that only say how.
    """
    changed = [key for key in news if key not in others and olds.get(key) != news.get(key)]
    return DiffResult(changes=bool(changed), replaces=changed, stables=[], delete_before_replace=False)


class HostProvider(ResourceProvider):
    """A provider whose credentials come from the stack's configuration; none of them is in a resource's state.

    `settings` and what reads a host or its API are imported where they are used: a run without a change starts the process of the
    dynamic resources, too, and needs none of them (a quarter of a second).
    """

    serialize_as_secret_always = True
    # How the process of the dynamic resources finds a provider: (its module, its class) -> it. That process has only the folder of
    # the running project on its path. A project in another folder names here a function of a module that lies in its own.
    found_by: ClassVar[Callable[[str, str], ResourceProvider] | None] = None
    _hosts: str | None = None
    _vms: str | None = None
    _containers: str | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Whatever a provider does with its resource has an end (homelab/resources/limits.py); what changes something, a host of its own."""
        super().__init_subclass__(**arguments)
        for name, prepare in _PREPARED_BY.items():
            if name in cls.__dict__:
                setattr(cls, name, limits.limited(_after(prepare, cls.__dict__[name])))

    def seconds(self, props: dict[str, Any]) -> int:
        """How long one of them may take."""
        from homelab.errors import HomelabError
        from homelab.settings import Host, Timeouts

        try:
            host = self.host(props)
        except HomelabError:  # it is no longer configured, which is for the act itself to say
            host = Host.model_construct(timeouts=Timeouts())
        return limits.of_task(host, props)

    @limits.limited
    def delete(self, _id: str, props: dict[str, Any]) -> None:
        """Nothing but `hold`: a run's last step, which is an act, is the first that a `destroy` deletes."""
        self.hold(props)

    def hold(self, props: dict[str, Any]) -> None:
        """Lets no other run at the resource's host while this one is at work there (homelab/remote/guard.py).

        :raises RefusedError: another one is.
        """
        from homelab.remote import guard

        name = str(props.get("host"))
        if name not in _OUT_OF_REACH and not self._hold(props, guard.hold):
            _OUT_OF_REACH.add(name)

    def hold_on(self, props: dict[str, Any]) -> None:
        """The same where this run has held it, and lost it since."""
        from homelab.remote import guard

        self._hold(props, guard.hold_on)

    def _hold(self, props: dict[str, Any], take: Callable[[str, Host], None]) -> bool:
        """Could it be asked for?"""
        from homelab.errors import HomelabError
        from homelab.remote.guard import RefusedError

        try:
            take(str(props.get("host")), self.host(props))
        except RefusedError:
            raise
        except HomelabError:
            # No longer configured, or not in reach: whether that matters is for the act itself to say. A host that is gone for good
            # has nobody at work on it.
            return False
        return True

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        if HostProvider.found_by is None:
            return super().__reduce_ex__(protocol)
        return HostProvider.found_by, (type(self).__module__, type(self).__qualname__)

    def configure(self, req: ConfigureRequest) -> None:
        # With its namespace: another project that uses these resources has its hosts under the same key.
        self._hosts = req.config.get("homelab:hosts")
        self._vms = req.config.get("homelab:vms")
        self._containers = req.config.get("homelab:containers")

    def host(self, props: dict[str, Any]) -> Host:
        """The settings of the resource's host. Raises HomelabError when the configuration no longer has it."""
        from homelab.settings import load_host

        return load_host(self._hosts, props["host"])

    def vms(self, props: dict[str, Any]) -> dict[str, Vm]:
        """The settings of the VMs of the resource's host, by name. Raises HomelabError when they are mistaken."""
        from homelab.settings import parse

        settings = parse({"hosts": self._hosts or "{}", "vms": self._vms or "{}"})
        return {name: vm for name, vm in settings.vms.items() if vm.host == props["host"]}

    def containers(self, props: dict[str, Any]) -> dict[str, Container]:
        """The settings of the containers of the resource's host, by name. Raises HomelabError when they are mistaken."""
        from homelab.settings import parse

        settings = parse({"hosts": self._hosts or "{}", "containers": self._containers or "{}"})
        return {name: one for name, one in settings.containers.items() if one.host == props["host"]}

    def facts_of_refresh(self, props: dict[str, Any]) -> HostFacts:
        """The host as a refresh sees it: read once in a run, on one connection. Raises HomelabError: it can't be read."""
        from homelab.remote import ssh

        name = str(props["host"])
        with _READING:
            if name not in _READINGS:
                host, containers = self.host(props), self.containers(props)
                systems = ["host"] * (host.nvidia is not None)
                systems += [str(one.ctid) for one in containers.values() if one.nvidia is not None]
                # With a list of what runs only where it matters: that takes a real host a second or two.
                _READINGS[name] = asyncio.run(ssh.read(host, guests=bool(containers), systems=systems))
            return _READINGS[name]
