"""The work on a guest that this program makes: a VM or a container."""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from homelab.errors import HomelabError
from homelab.properties import same, strings
from homelab.provider.api import ApiWork
from homelab.provider.base import GoneError
from homelab.remote.proxmox.errors import ElsewhereError, NotThereError
from homelab.resources.base import NewGuest, NewGuestInputs
from homelab.text import tell

NewGuestT = TypeVar("NewGuestT", bound=NewGuestInputs)
MOVED = "node"  # of a made guest's drift: it is on another node of the cluster


class NewGuestWork(ApiWork[NewGuestT, NewGuest.Outputs]):
    """Makes a guest over the API, changes it in place, and removes it unless it is protected."""

    # -- what a kind of guest has of its own -----------------------------------------------------------------------
    def guest(self, inputs: NewGuestT) -> CreatedGuest:
        """The guest that the inputs describe."""
        raise NotImplementedError

    def make(self, inputs: NewGuestT, instance: str) -> None:
        """Makes it, or finishes one that an interrupted run of this stack has made.

        :param instance: of this making of it.
        :raises HomelabError: another guest has its id.
        """
        raise NotImplementedError

    def compared(self, inputs: NewGuestT) -> Sequence[str]:
        """The options of `config` that are read back on a refresh."""
        raise NotImplementedError

    def require_same_disk(self, inputs: NewGuestT, before: NewGuestT) -> None:
        """:raises HomelabError: only a new guest could have what the inputs say."""
        raise NotImplementedError

    def change(self, inputs: NewGuestT, before: NewGuestT, drift: list[str]) -> None:
        """Changes it in place.

        :param drift: options that differ from those `before`.
        """
        raise NotImplementedError

    def remove(self, inputs: NewGuestT) -> None:
        """Shuts it down, and removes it with its disks."""
        raise NotImplementedError

    def forget(self, inputs: NewGuestT) -> None:
        """Takes away what is noted of it, which is gone."""

    # -- what all of them have -------------------------------------------------------------------------------------
    def id(self, inputs: NewGuestT) -> str:
        return str(self.guest(inputs).guest_id)

    def config(self, inputs: NewGuestT) -> dict[str, str]:
        """Its configuration.

        :raises NotThereError: there is none.
        """
        guest = self.guest(inputs)
        wanted = f"to read the configuration of {guest.label}"
        return strings(self.api(inputs).get(guest.path(inputs.node), wanted))

    def create(self, inputs: NewGuestT) -> NewGuest.Outputs:
        instance = secrets.token_hex(8)
        self.make(inputs, instance)
        return NewGuest.Outputs(instance=instance)

    def update(self, inputs: NewGuestT, before: NewGuestT, outputs: NewGuest.Outputs) -> NewGuest.Outputs:
        self.require_same_disk(inputs, before)
        if MOVED in outputs.drift:
            self.config(inputs)  # refused, unless it is back
        self.change(inputs, before, outputs.drift)
        return dataclasses.replace(outputs, drift=[])

    def delete(self, inputs: NewGuestT, outputs: NewGuest.Outputs) -> None:
        guest = self.guest(inputs)
        try:
            config = self.config(inputs)
        except NotThereError:  # perhaps a run has removed it that was killed then
            self.forget(inputs)
            return
        except ElsewhereError as error:
            if not self.stack.is_on(error.node, guest.section, guest.guest_id):
                raise
            return  # another resource has it, on the host that it has moved to
        entries = self.stack.entries_of(guest.section, guest.guest_id, inputs.host)
        adopted = [name for name, entry in entries.items() if entry.create is None]
        if why := reason_to_keep(guest, inputs, outputs.instance, config, adopted):
            tell(f"{guest.name}: {guest.label} stays: {why}")
        else:
            self.remove(inputs)
            self.forget(inputs)

    def read(self, inputs: NewGuestT, outputs: NewGuest.Outputs) -> NewGuest.Outputs:
        guest = self.guest(inputs)
        try:
            wanted = f"to read the configuration of {guest.label}"
            config = strings(self.reading(inputs, guest.path(inputs.node), wanted))
        except NotThereError:
            tell(f"{guest.name}: drift: {guest.label} is gone")
            raise GoneError from None
        except ElsewhereError as error:
            tell(f"{guest.name}: drift: {error.found}")
            return dataclasses.replace(outputs, drift=[MOVED])
        options = inputs.config
        drift = [
            key for key in self.compared(inputs) if key in options and not same(key, config.get(key), options[key])
        ]
        for key in drift:
            tell(f"{guest.name}: drift: {key} is {config.get(key, 'not there')} instead of {options[key]}")
        return dataclasses.replace(outputs, drift=drift)


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
        return f"leave `create` out of {self.section}.{self.name} to adopt that {self.kind} as it is"

    @property
    def kind(self) -> str:
        """VM or container."""
        return self.label.partition(" ")[0]


def created_vm(vmid: int, name: str) -> CreatedGuest:
    """:param name: in the settings."""
    return CreatedGuest(name, f"VM {vmid}", "vms", "vmid", "name", "qemu", vmid)


def created_container(ctid: int, name: str) -> CreatedGuest:
    """:param name: in the settings."""
    return CreatedGuest(name, f"container {ctid}", "containers", "ctid", "hostname", "lxc", ctid)


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


def reason_to_keep(
    guest: CreatedGuest,
    inputs: NewGuestInputs,
    instance: str,
    config: dict[str, str],
    adopted: list[str],
) -> str | None:
    """Why a guest that was made here isn't deleted with its resource; None: it is.

    :param instance: the making of it that is to be deleted; empty: the state is of before these were told apart.
    :param adopted: names in the settings of those that have it without `create`.
    """
    if inputs.protect:
        return "it is protected"
    if not is_marked(inputs.mark, config):
        return f"it is not the {guest.kind} that was created here"
    if adopted:
        return f"{guest.section}.{adopted[0]} adopts it"
    if names_another_instance(inputs.mark, instance, config):
        # Another resource has taken it over since, such as this one's replacement.
        return "it is kept by another entry of the state now"
    return None
