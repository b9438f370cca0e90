"""The work on a Guest: makes a VM or a container over the API, changes it in place, and removes it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from homelab.errors import ElsewhereError, GoneError, HomelabError, NotThereError, raise_all
from homelab.guest.mark import id_in_use, is_marked, is_noted, names_another_instance
from homelab.guest.options import tables
from homelab.guest.resource import Guest
from homelab.guest.settings import RUNS_PROGRAMS, is_disk, refuse_programs, system_disk
from homelab.properties import same, strings
from homelab.remote import ssh
from homelab.resources.work import started
from homelab.resources.work.api import ApiWork
from homelab.resources.work.plain import Properties
from homelab.resources.work.vm_transaction import VmTransaction
from homelab.text import tell
from homelab.vm.plan import changes
from remote_scripts.both.container_cards import Wanted as ContainerCards
from remote_scripts.both.guest_cards import Wanted
from remote_scripts.pve.guest_kinds import VM
from remote_scripts.pve.properties import parse

MOVED = "node"  # of a made guest's drift: it is on another node of the cluster
# The lock of a guest whose disks are removed; its configuration stays where a list of the cluster's jobs is locked.
_HALF_GONE = "destroyed"
# Options that others change for good reasons: a CD is taken out, a VM gets the hookscript of a shared card.
_OTHERS = re.compile(r"(?:ide|sata|scsi|virtio)[0-9]+|hookscript|args")
_NETWORK_CARD = re.compile(r"net[0-9]+")
# A VM's, as Proxmox VE writes it (print_net).
_WITH_ADDRESS = re.compile(r"[a-z0-9-]+=((?:[0-9A-F]{2}:){5}[0-9A-F]{2})(?:,|$)", re.IGNORECASE)


class GuestWork(ApiWork[Guest.Inputs, Guest.Outputs]):
    """Makes a guest over the API, changes it in place, and removes it unless it is protected."""

    resource = Guest

    def id(self, inputs: Guest.Inputs) -> str:
        return str(inputs.vmid)

    def config(self, inputs: Guest.Inputs) -> dict[str, str]:
        """Its configuration.

        :raises NotThereError: there is none.
        """
        wanted = f"to read the configuration of {inputs.label} on {inputs.node}"
        return strings(self.api(inputs).get(f"{inputs.path}/config", wanted))

    # -- made and changed ------------------------------------------------------------------------------------------
    def create(self, inputs: Guest.Inputs) -> Guest.Outputs:
        instance = secrets.token_hex(8)
        self.make(inputs, instance)
        written = written_of(self.config(inputs), inputs, inputs.config)
        return Guest.Outputs(instance=instance, written=written)

    def make(self, inputs: Guest.Inputs, instance: str) -> None:
        """Makes it, or finishes one that an interrupted run of this stack has made.

        :param instance: of this making of it.
        :raises HomelabError: another guest has its id.
        """
        folder = f"nodes/{inputs.node}/{inputs.guest_kind}"
        description = f"{inputs.mark} {instance}"
        try:
            current = self.config(inputs)
        except NotThereError:
            raise_all(refuse_programs(inputs.place, inputs.config))
            if inputs.clone is None:
                _say(inputs, "creating")
                options = {**inputs.config, **inputs.secret_config, "description": description}
                self._task(inputs, "post", folder, "create", vmid=inputs.vmid, **options)
            else:
                _say(inputs, f"cloning {inputs.clone}")
                # The mark travels with the clone: it is known as homelab's from its first moment.
                options = {"newid": str(inputs.vmid), "full": "1", "description": description}
                taken = ("name", "storage", "pool", "bwlimit")
                options |= {key: value for key, value in inputs.config.items() if key in taken}
                self._task(inputs, "post", f"{folder}/{inputs.clone}/clone", "clone", **options)
                self._finish(inputs, self.config(inputs))
        else:
            if not is_marked(inputs.mark, current) or "lock" in current:
                raise self._id_in_use(inputs, current)
            _say(inputs, "it was made by an earlier run that was interrupted: finishing it")
            # The resource that made it before, such as the one that this one replaces, no longer removes it.
            self._finish(inputs, current, description=marked_anew(inputs.mark, instance, current))
        self._grow(inputs)

    def _finish(self, inputs: Guest.Inputs, current: Mapping[str, str], **more: str) -> None:
        """Sets the options that the guest lacks, or has otherwise. What it has of disks and secrets stays."""
        wanted = {key: with_address(key, value, current) for key, value in inputs.config.items()}
        stays = {key for key in current if _OTHERS.fullmatch(key) or is_disk(key, current[key])} | RUNS_PROGRAMS
        changed = {
            key: value for key, value in wanted.items() if key not in stays and not same(key, current.get(key), value)
        }
        changed |= {key: value for key, value in inputs.secret_config.items() if key not in current}
        self._put(inputs, {**{key: value for key, value in changed.items() if _is_option(inputs, key)}, **more})

    def _grow(self, inputs: Guest.Inputs) -> None:
        """The system disk as large as wanted, if it is smaller."""
        if inputs.size is None:
            return
        config = self.config(inputs)
        disk = system_disk(config) or "scsi0"  # of one without a disk, Proxmox VE says that it has no such one
        if _gib(config.get(disk, "")) < inputs.size:
            self._task(inputs, "put", f"{inputs.path}/resize", "resize", disk=disk, size=f"{inputs.size}G")

    def update(self, inputs: Guest.Inputs, before: Guest.Inputs, outputs: Guest.Outputs) -> Guest.Outputs:
        self.require_same_disks(inputs, before)
        changed = self.change(inputs, before, outputs.drift)
        kept = {key: value for key, value in outputs.written.items() if key in inputs.config}
        written = written_of(self.config(inputs), inputs, changed) if changed else {}
        return replace(outputs, drift=[], written={**kept, **written})

    def foretell(self, state: Properties, properties: Properties) -> None:
        """Tells what an update changes, without asking the host, and refuses what it would.

        :param state: the guest's so far.
        :param properties: its new inputs.
        :raises HomelabError: as of `require_same_disks`.
        """
        inputs, before, outputs = self._inputs(properties), self._inputs(state), self._outputs(state)
        self.require_same_disks(inputs, before)
        options = _differing(inputs, before, outputs.drift)
        had = {**before.config, **dict.fromkeys(outputs.drift, "changed by hand")}
        lines = changes({key: inputs.config.get(key) for key in options}, had)
        lines += [f"{key}: set anew, for its next start" for key in _new_secrets(inputs, before)]
        lines += [f"size: {inputs.size} GiB"] if (inputs.size or 0) > (before.size or 0) else []
        lines += [
            f"{key}: as it is, only a person at the host changes it"
            for key in sorted(RUNS_PROGRAMS & {*had, *inputs.config})
        ]
        if lines:
            _say(inputs, f"{inputs.label}: {', '.join(lines)}")
        if options:
            restart = "is shut down and started for" if inputs.guest_kind == "qemu" else "gets at its next start"
            _say(inputs, f"{inputs.label}, if it runs, {restart} what Proxmox VE can't change meanwhile")

    def require_same_disks(self, inputs: Guest.Inputs, before: Guest.Inputs) -> None:
        """:raises HomelabError: only a new guest could have what the inputs say."""
        for key, original in before.config.items():
            wanted = inputs.config.get(key)
            is_disks = is_disk(key, original) or (wanted is not None and is_disk(key, wanted))
            if original != wanted and (not _is_option(inputs, key) or key == "unprivileged" or is_disks):
                _refuse_another(inputs, f"{key}: {wanted or 'none'}", original)
        if inputs.clone != before.clone:
            _refuse_another(inputs, f"clone: {inputs.clone}", str(before.clone))
        if (inputs.size or before.size or 0) < (before.size or 0):
            _refuse_another(inputs, f"size: {inputs.size} GiB", f"{before.size} GiB")

    def change(self, inputs: Guest.Inputs, before: Guest.Inputs, drift: Iterable[str]) -> list[str]:
        """Changes it in place, to what differs between the inputs.

        :param drift: options that differ from those `before`.
        :returns: the keys of the options that were changed.
        :raises ElsewhereError: it is on another node.
        :raises HomelabError: another guest has its id.
        """
        options, current = inputs.config, self.config(inputs)
        if not is_marked(inputs.mark, current):
            raise self._id_in_use(inputs, current)
        changed: dict[str, str | None] = {}
        for key in _differing(inputs, before, drift):
            if key not in options:
                changed |= {key: None} if key in current else {}
            elif not (is_disk(key, options[key]) and key in current):
                changed[key] = with_address(key, options[key], current)
        if inputs.guest_kind == "qemu":
            # Proxmox VE alone is told these: on the host they would be noted, and shown.
            secret = _new_secrets(inputs, before)
            self._put(inputs, secret)
            for key in secret:
                _say(inputs, f"{key} set anew: the guest gets it at its next start")
            if changed:
                self._set(inputs, changed)
            if inputs.size != before.size:
                self._grow(inputs)
        else:
            removed = [key for key, value in changed.items() if value is None]
            delete = {"delete": ",".join(removed)} if removed else {}
            self._put(inputs, {**{key: value for key, value in changed.items() if value is not None}, **delete})
        return list(changed)

    def _owner(self, inputs: Guest.Inputs) -> str:
        """Whose a VM is by its host's note; a container's tells it less surely from a later one of its id."""
        return self._transaction(inputs).read(self._wanted(inputs)).owner if inputs.kind is VM else ""

    def _id_in_use(self, inputs: Guest.Inputs, config: Mapping[str, str]) -> HomelabError:
        return id_in_use(inputs.kind, inputs.vmid, inputs.mark, config, self._owner(inputs))

    def _put(self, inputs: Guest.Inputs, options: Mapping[str, str]) -> None:
        """Sets options by digest; one that needs a start has to wait for it."""
        if options:
            api, path = self.api(inputs), f"{inputs.path}/config"
            wanted = f"to change {', '.join(options)} of {inputs.label}"
            api.put(path, wanted, digest=api.get(path, wanted)["digest"], **options)

    def _set(self, inputs: Guest.Inputs, settings: dict[str, str | None]) -> None:
        """Sets options of a VM, with a shutdown and a start if it runs and they need that."""
        host, wanted = self.host(inputs), self._wanted(inputs)
        before = started.awake(host, inputs.vmid, [])
        done = self._transaction(inputs).apply(replace(wanted, settings=settings))
        if done.started:
            started.require_cards(host, inputs.guest, inputs.vmid, before, done.log)

    def _task(self, inputs: Guest.Inputs, verb: str, path: str, act: str, /, **parameters: Any) -> None:
        """A task of the node, to its end.

        :param act: for messages; a shutdown has its own limit.
        """
        api, label = self.api(inputs), f"{inputs.label} ({inputs.guest})"
        timeouts = api.host.timeouts
        # A storage may overwrite or discard a disk before it is removed, for as long as writing it took.
        seconds = timeouts.create if act != "shutdown" else inputs.shutdown.timeout + timeouts.api_task

        api.carry_out(verb, path, f"{act} of {label}", seconds, partial(_say, inputs), **parameters)

    # -- read and removed ------------------------------------------------------------------------------------------
    def read(self, inputs: Guest.Inputs, outputs: Guest.Outputs) -> Guest.Outputs:
        try:
            config = self.config(inputs)
        except NotThereError:
            _say(inputs, f"drift: {inputs.label} is gone")
            raise GoneError from None
        except ElsewhereError as error:
            _say(inputs, f"drift: {error.found}")
            if not self._has_moved_to(inputs, outputs.instance, error.node):
                raise GoneError from None
            return replace(outputs, drift=[MOVED])
        if not is_marked(inputs.mark, config):
            unmarked = self._id_in_use(inputs, config)
            _say(inputs, f"drift: {unmarked.found}; {unmarked.next}")
            return replace(outputs, drift=["description"])
        written = {key: value for key, value in outputs.written.items() if key not in RUNS_PROGRAMS}
        drift = [key for key, value in written.items() if not same(key, config.get(key), value)]
        for key in drift:
            _say(inputs, f"drift: {key} is {config.get(key, 'not there')} instead of {outputs.written[key]}")
        return replace(outputs, drift=drift)

    def _has_moved_to(self, inputs: Guest.Inputs, instance: str, node: str) -> bool:
        """Whether the guest that was made here is on another node, and no other guest has its id there. A node that the
        settings don't have can't be asked."""
        if (host := self.stack.host_at(node)) is None:
            return True
        try:
            config = self.config(replace(inputs, host=host, node=node))
        except (NotThereError, ElsewhereError):  # a guest of the other kind
            return False
        return is_marked(inputs.mark, config) and not names_another_instance(inputs.mark, instance, config)

    def delete(self, inputs: Guest.Inputs, outputs: Guest.Outputs) -> None:
        try:
            config = self.config(inputs)
        except NotThereError:  # perhaps a run has removed it that was killed then
            self.forget(inputs)
            return
        except ElsewhereError as error:
            if self._has_moved_to(inputs, outputs.instance, error.node):
                self.stack.leave_moved(inputs.guest, inputs.section, inputs.vmid, error.node, error)
            return
        entries = self.stack.entries_of(inputs.section, inputs.vmid, inputs.host)
        adopted = [name for name, entry in entries.items() if entry.create is None]
        if why := reason_to_keep(inputs, outputs.instance, config, adopted):
            is_known = inputs.protect or adopted or is_marked(inputs.mark, config)
            if not is_known and is_noted(inputs.mark, self._owner(inputs)):
                raise self._id_in_use(inputs, config)
            _say(inputs, f"{inputs.label} stays: {why}")
        else:
            self.remove(inputs)
            self.forget(inputs)

    def remove(self, inputs: Guest.Inputs) -> None:
        """Shuts it down, and removes it with its disks."""
        api, path = self.api(inputs), inputs.path
        state = api.get(f"{path}/status/current", f"to see whether {inputs.label} runs")
        if state["status"] == "running":
            if inputs.guest_kind == "qemu":
                wanted = self._wanted(inputs)
                self._transaction(inputs).apply(replace(wanted, terms=replace(wanted.terms, power="stopped")))
            else:  # it is removed next: one that doesn't shut down is stopped
                force = {"timeout": inputs.shutdown.timeout, "forceStop": 1}
                self._task(inputs, "post", f"{path}/status/shutdown", "shutdown", **force)
        # Of a VM alone; a container's lock can be taken away by `pct unlock` alone.
        skip = {"skiplock": 1} if (inputs.guest_kind, state.get("lock")) == ("qemu", _HALF_GONE) else {}
        with suppress(NotThereError):  # a task of a run that was killed has done so meanwhile
            self._task(inputs, "delete", path, "destroy", purge=1, **skip)

    def forget(self, inputs: Guest.Inputs) -> None:
        """Takes away what is noted of it, which is gone."""
        if inputs.guest_kind == "qemu":
            self._transaction(inputs).revert(self._wanted(inputs))
        else:
            given = ContainerCards(ctid=inputs.vmid, terms=self.terms(inputs.guest, inputs.shutdown))
            ssh.Session(self.host(inputs)).ask("revert", "container_cards", given, goes_on=True)

    def _transaction(self, inputs: Guest.Inputs) -> VmTransaction:
        return VmTransaction(self.host(inputs), inputs.guest)

    def _wanted(self, inputs: Guest.Inputs) -> Wanted:
        return Wanted(vmid=inputs.vmid, terms=self.terms(inputs.guest, inputs.shutdown))


def _say(inputs: Guest.Inputs, text: str) -> None:
    tell(f"{inputs.guest}: {text}")


def _differing(inputs: Guest.Inputs, before: Guest.Inputs, drift: Iterable[str]) -> list[str]:
    """The options to change: those that differ between the inputs, or from those `before`: the latter are `drift`."""
    keys = [key for key in dict.fromkeys((*inputs.config, *before.config)) if key not in RUNS_PROGRAMS]
    return [key for key in keys if inputs.config.get(key) != before.config.get(key) or key in drift]


def _new_secrets(inputs: Guest.Inputs, before: Guest.Inputs) -> dict[str, str]:
    """The secret options to set; none of a container, whose count only while it is made."""
    if inputs.guest_kind == "lxc":
        return {}
    return {key: value for key, value in inputs.secret_config.items() if before.secret_config.get(key) != value}


def _gib(disk: str) -> float:
    """The size that a disk's option has, in GiB; 0: it has none."""
    match = re.search(r",size=([0-9.]+)([KMGT]?)", disk)
    return float(match[1]) * 1024.0 ** ("BKMGT".find(match[2] or "B") - 3) if match else 0.0


def _is_option(inputs: Guest.Inputs, key: str) -> bool:
    # Whether a guest's configuration has it, and not only what makes one.
    return key in tables().options[inputs.guest_kind]


def _refuse_another(inputs: Guest.Inputs, wanted: str, original: str) -> NoReturn:
    raise HomelabError(
        wanted=f"{inputs.place}.create.{wanted}",
        found=f"the {inputs.kind.label} was made with {original}",
        why="only a new guest could have that, and what is on the disk would be lost",
        next=f"put it back; or take {inputs.place} out, run `pulumi up`, and create it again",
    )


def written_of(config: Mapping[str, str], inputs: Guest.Inputs, keys: Iterable[str]) -> dict[str, str]:
    """Options as a guest has them, of those that are compared with it later.

    :param keys: those that were set.
    """
    compared = (key for key in keys if key in config and key in inputs.config and not _OTHERS.fullmatch(key))
    return {key: config[key] for key in compared if not is_disk(key, config[key])}


def with_address(key: str, value: str, current: Mapping[str, str]) -> str:
    """The value of an option. A network card keeps its hardware address, so that it keeps its lease. A container's also
    keeps `host-managed` (the host sets the network up), which Proxmox VE sets for an OCI image."""
    if not _NETWORK_CARD.fullmatch(key) or key not in current:
        return value
    if address := _WITH_ADDRESS.match(current[key]):
        model, comma, rest = value.partition(",")
        return value if "=" in model or "macaddr=" in rest else f"{model}={address[1]}{comma}{rest}"
    kept = {name: text for name, text in parse(key, current[key]).items() if name in ("hwaddr", "host-managed")}
    return value + "".join(f",{name}={text}" for name, text in kept.items() if f"{name}=" not in value)


def marked_anew(mark: str, instance: str, config: dict[str, str]) -> str:
    """The description of a guest that carries the mark, with this making of it named in it; whatever else the user has
    written there stays."""
    text = config["description"].removesuffix("\n")
    return re.sub(rf"{re.escape(mark)}(?: [0-9a-f]{{16}})?(?!\S)", lambda _: f"{mark} {instance}", text, count=1)


def reason_to_keep(inputs: Guest.Inputs, instance: str, config: dict[str, str], adopted: list[str]) -> str | None:
    """Why a guest that was made here isn't deleted with its resource; None: it is.

    :param instance: the making of it that is to be deleted; empty: the state is of before these were told apart.
    :param adopted: names in the settings of those that have it without `create`.
    """
    if inputs.protect:
        return "it is protected"
    if not is_marked(inputs.mark, config) and config.get("lock") != _HALF_GONE:
        return f"it is not the {inputs.kind.label} that was created here"
    if adopted:
        return f"{inputs.section}.{adopted[0]} adopts it"
    if names_another_instance(inputs.mark, instance, config):
        # Another resource has taken it over since, such as this one's replacement.
        return "it is kept by another entry of the state now"
    return None
