"""What the work on every resource has in common: its types, the stack's settings, one run at a time on a host, an end
to it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import TypeAdapter

from homelab.errors import GoneError, HomelabError, RefusedError, UnansweredError, UnfinishedError, UnreachableError
from homelab.facts.host import HostFacts
from homelab.later import later
from homelab.nvidia import judge
from homelab.remote import host_session, ssh
from homelab.remote.ledger import stack_of
from homelab.resources import limits
from homelab.resources.base import Act, HostInputs, Resource
from homelab.resources.work import silent_host
from homelab.resources.work.plain import Properties
from homelab.settings import Container, Host, Settings, Timeouts, Vm, load_host, parse
from homelab.settings.parsing import decoded
from homelab.shapes import BootSeen, ShutdownInputs
from homelab.text import tell
from remote_scripts.both.terms import Terms

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from homelab.reading import systems
else:
    systems = later("homelab.reading.systems")

InputsT = TypeVar("InputsT", bound=HostInputs)
OutputsT = TypeVar("OutputsT", bound="DataclassInstance")
T = TypeVar("T")

# By what a message calls a resource.
_NAMED_BY = ("system_name", "vm", "container", "guest", "mapping", "download", "host")

# How long after this program's reboot a guest that it stopped is started again. Later, the guest is off because a
# person wants it so.
REBOOT_SECONDS = 3600


@functools.cache
def adapter_of(kind: type[Any]) -> TypeAdapter[Any]:
    """What reads properties as that dataclass; made once in a process, since that takes milliseconds."""
    return TypeAdapter(kind)


def read_as(kind: type[T], properties: Mapping[str, Any]) -> T:
    """Properties as a dataclass of a resource's declaration; what else is among them is left out. The one place where
    that is done.

    :raises pydantic.ValidationError: they don't fit, which is a mistake in this program.
    """
    instance: T = adapter_of(kind).validate_python(properties)  # type: ignore[arg-type]
    return instance


def raised(generation: dict[str, int], drifted: set[str], layers: Collection[str]) -> dict[str, int]:
    """How often each of `layers` has drifted, once more for `drifted`. An older version's state lacks some."""
    return {layer: generation.get(layer, 0) + (layer in drifted) for layer in layers}


def stopped_by_reboot(vmid: int, boot: BootSeen, last_boot: BootSeen | None) -> bool:
    """Did this program's reboot stop the guest, just now?

    :param last_boot: the boot of the host when the guest was last seen to; None: never.
    """
    return boot != last_boot and vmid in boot["stopped"] and time.time() - boot["at"] < REBOOT_SECONDS


@dataclass(frozen=True)
class StackTexts:
    """The stack's configuration, as the engine hands it to the provider: texts, some of them JSON. No part of it is in
    a resource's state."""

    texts: Mapping[str, str]

    def host(self, name: str) -> Host:
        """A host's settings.

        :raises HomelabError: the configuration no longer has it.
        """
        return load_host(self.texts.get("hosts"), name)

    def peers(self, name: str) -> list[str]:
        """The other hosts of the settings that are nodes of a host's cluster."""
        hosts = self._settings("").hosts
        cluster = hosts[name].cluster if name in hosts else None
        return [peer for peer, host in hosts.items() if cluster and host.cluster == cluster and peer != name]

    def host_names(self) -> list[str]:
        """The names of the hosts that the settings have, whatever else they say."""
        hosts = decoded(self.texts.get("hosts"))
        return sorted(hosts) if isinstance(hosts, dict) else []

    def _settings(self, *guests: str) -> Settings:
        return parse({key: self.texts[key] for key in ("hosts", *guests) if self.texts.get(key)})

    def restarts_before(self, host: str) -> str:
        """As of the settings."""
        return self._settings("").hosts[host].before

    def vms(self, host: str) -> dict[str, Vm]:
        """The settings of a host's VMs, by name.

        :raises HomelabError: they are mistaken.
        """
        return self._settings("vms").guests_on(host)[0]

    def entries_of(self, section: str, guest_id: int, host: str) -> dict[str, Vm | Container]:
        """The entries that have a guest of this id, by name: of a host, and of its cluster's other hosts.

        :param section: vms or containers.
        :raises HomelabError: the settings are mistaken.
        """
        settings, hosts = self._settings(section), {host, *self.peers(host)}
        # Those of the section alone were parsed.
        entries: dict[str, Vm | Container] = {**settings.vms, **settings.containers}
        return {name: guest for name, guest in entries.items() if guest.guest_id == guest_id and guest.host in hosts}

    def host_at(self, node: str) -> str | None:
        """The host of the settings that is the node of this name; None: they don't have it."""
        hosts = self._settings("").hosts
        return next((name for name, host in hosts.items() if host.node_name == node), None)

    def leave_moved(self, name: str, section: str, guest_id: int, node: str, moved: HomelabError) -> None:
        """Leaves a guest as it is that is on another node: its entry there takes over what it has. Others as of
        `entries_of`.

        :param name: of its entry here, for messages.
        :raises HomelabError: `moved`: the settings have no such entry.
        """
        host = self.host_at(node)
        if host is None or all(guest.host != host for guest in self.entries_of(section, guest_id, host).values()):
            raise moved
        tell(f"{name}: note: {moved.found}: it keeps what it has until its entry there takes that out")

    def containers(self, host: str) -> dict[str, Container]:
        """The settings of a host's containers, by name.

        :raises HomelabError: they are mistaken.
        """
        return self._settings("containers").guests_on(host)[1]

    def container(self, name: str) -> Container | None:
        """The settings of a container, wherever it is; None: they don't have it."""
        return self._settings("containers").containers.get(name)


def _cant_be_undone(host: str, error: HomelabError) -> HomelabError:
    # What a `destroy` says of a host that doesn't answer.
    return error.retold(
        why=f"what was set up on {host} can't be given back while it doesn't answer; nothing was changed there, and "
        "the state keeps it",
        next=f"switch {host} on and run the same command again; what other hosts have is given back meanwhile by "
        f"`pulumi destroy --continue-on-error`. If {host} won't come back, run that first, then forget it with all "
        f"that depends on it (`pulumi state delete --target-dependents 'URN of {host}-probe'`, which `pulumi stack "
        "--show-urns` lists) and take it out of homelab:hosts: what is on its disks stays as it is",
    )


class Work(Generic[InputsT, OutputsT]):
    """What is done with a resource. Methods block; they are called in threads, at the same time for several resources.

    What they return are the resource's outputs; a HomelabError is what a person gets to see.
    """

    resource: ClassVar[type[Resource]]

    def __init__(self, texts: Mapping[str, str], urn: str = "") -> None:
        """:param texts: the stack's configuration.
        :param urn: of the resource.
        """
        self.stack = StackTexts(texts)
        self.urn = urn

    # -- what a resource has of its own ----------------------------------------------------------------------------
    def id(self, inputs: InputsT) -> str:
        """What the engine knows the resource by."""
        return inputs.host

    def create(self, inputs: InputsT) -> OutputsT:
        """Makes it, or does it."""
        raise NotImplementedError

    def update(self, inputs: InputsT, before: InputsT, outputs: OutputsT) -> OutputsT:
        """Changes it to other inputs than those `before`, or because of what a refresh found. An act is done again."""
        if issubclass(self.resource, Act):
            return self.create(inputs)
        raise NotImplementedError

    def read(self, inputs: InputsT, outputs: OutputsT) -> OutputsT:
        """Looks for drift, and tells of it.

        :raises GoneError: the resource isn't there any more.
        """
        return outputs

    def delete(self, inputs: InputsT, outputs: OutputsT) -> None:
        """Undoes it. An act has nothing to undo; but its host is held then, and a run's last act is the first that a
        `destroy` deletes."""

    # -- what the engine asks for ----------------------------------------------------------------------------------
    def created(self, properties: Properties) -> tuple[str, Properties]:
        """Inputs -> the resource's id and state."""
        inputs = self._inputs(properties)
        return self.id(inputs), self._new_state("create", inputs, properties, lambda: self.create(inputs))

    def updated(self, state: Properties, properties: Properties) -> Properties:
        """The state so far and inputs -> the new state."""
        inputs, before, outputs = self._inputs(properties), self._inputs(state), self._outputs(state)
        return self._new_state("update", inputs, properties, lambda: self.update(inputs, before, outputs))

    def _new_state(
        self, verb: str, inputs: InputsT, properties: Mapping[str, object], do: Callable[[], OutputsT]
    ) -> Properties:
        """The new state.

        :raises UnfinishedError: the work has failed, and says what is known of it.
        """

        def work() -> OutputsT:
            if self.is_held_meanwhile(inputs):
                self.hold_or_fail(inputs)
            return do()

        try:
            return {**properties, **asdict(self._in_time(verb, properties, work))}
        except HomelabError as error:
            if error.outputs is None:
                raise
            raise UnfinishedError(error, self.id(inputs), {**properties, **asdict(error.outputs)}) from error

    def refreshed(self, state: Properties) -> Properties | None:
        """The state so far -> as it is; None: the resource isn't there any more."""
        inputs, outputs = self._inputs(state), self._outputs(state)
        try:
            return {**state, **asdict(self._in_time("read", state, lambda: self.read(inputs, outputs)))}
        except GoneError:
            return None
        except (UnreachableError, UnansweredError):
            # One error of a host, whichever of its resources comes first.
            session = host_session.of(inputs.host)
            with session.lock:
                first, session.is_silence_told = not session.is_silence_told, True
            if first:
                raise
            tell(f"{self.id(inputs)}: not compared, since {inputs.host} doesn't answer")
            return state

    def deleted(self, state: Properties) -> None:
        """Undoes it."""
        inputs, outputs = self._inputs(state), self._outputs(state)

        def work() -> None:
            self.hold(inputs)
            # Before anything was done: while it is, another resource may find that the host is gone.
            out_of_reach = host_session.of(inputs.host).is_out_of_reach
            try:
                self.delete(inputs, outputs)
            except UnreachableError as error:
                raise _cant_be_undone(inputs.host, error) if out_of_reach else error from error

        self._in_time("delete", state, work)

    def _in_time(self, verb: str, properties: Mapping[str, Any], do: Callable[[], T]) -> T:
        name = next((str(properties[key]) for key in _NAMED_BY if properties.get(key)), "")
        what = f"{name}: {verb} of {self.resource.__name__}"
        with silent_host.at_work():
            return limits.ended_in_time(what, self.seconds(properties), do)

    def _inputs(self, properties: Properties) -> InputsT:
        inputs: InputsT = read_as(self.resource.Inputs, properties)
        return inputs

    def _outputs(self, state: Properties) -> OutputsT:
        outputs: OutputsT = read_as(self.resource.Outputs, state)
        return outputs

    def seconds(self, properties: Mapping[str, Any]) -> int:
        """How long the work on the resource may take, in seconds."""
        try:
            host = self.stack.host(str(properties["host"]))
        except HomelabError:  # it is no longer configured, which is for the work itself to say
            host = Host.model_construct(timeouts=Timeouts())
        return limits.of_task(host, properties)

    # -- one run at a time -----------------------------------------------------------------------------------------
    def hold(self, inputs: InputsT) -> None:
        """Lets no other run at the resource's host while this one is at work there (homelab/remote/host_session.py).

        :raises RefusedError: another one is.
        """
        session = host_session.of(inputs.host)
        if session.is_out_of_reach:  # it isn't tried again for each resource
            return
        try:
            self.hold_or_fail(inputs)
        except RefusedError:
            raise
        except HomelabError:
            # No longer configured, or not in reach: whether that matters is for the work itself to say. A host that is
            # gone for good has no other run at work on it.
            session.is_out_of_reach = True

    def hold_or_fail(self, inputs: InputsT) -> None:
        """The same for what can't begin otherwise.

        :raises HomelabError: as of HostSession.hold.
        """
        host_session.of(inputs.host).hold(self.host(inputs))

    def is_held_meanwhile(self, inputs: InputsT) -> bool:
        """Whether the resource's host is held while it is made or changed."""
        return True

    # -- the host --------------------------------------------------------------------------------------------------
    def terms(self, name: str, shutdown: ShutdownInputs) -> Terms:
        """How a guest is changed there for its entry of this name in the settings."""
        return Terms(owner=f"{stack_of(self.urn)}/{name}", shutdown=shutdown.timeout, otherwise=shutdown.otherwise)

    def host(self, inputs: InputsT) -> Host:
        """The settings of the resource's host.

        :raises HomelabError: the configuration no longer has it.
        """
        return self.stack.host(inputs.host)

    def facts_of_refresh(self, inputs: InputsT) -> HostFacts:
        """The host as a refresh sees it: read once in a run.

        :raises HomelabError: it can't be read.
        """
        session = host_session.of(inputs.host)
        with session.lock:
            if session.facts is None:
                session.facts = self._read_once(inputs.host)
        if isinstance(session.facts, HomelabError):
            raise session.facts
        return session.facts

    def _read_once(self, name: str) -> HostFacts | HomelabError:
        """The host's facts, or why it can't be read: a host that doesn't answer is waited for once, not for each of its
        resources."""
        host, containers = self.stack.host(name), self.stack.containers(name)
        try:
            # With a list of what runs only where it matters: that takes a real host a second or two.
            with_running = bool(containers)
            facts = ssh.read(host, guests=with_running, kernel_log=True)
            inside = judge.installing(host, containers.values())
            return systems.read(ssh.Session(host), facts, inside) if inside else facts
        except HomelabError as error:
            return error
