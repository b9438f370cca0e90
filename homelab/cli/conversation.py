"""What `homelab init` asks, shows and does, in its order: the host, its cards, the settings; then one yes, and step by step."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from homelab.cli.pulumi import PASSWORD, Pulumi
from homelab.cli.questions import Option, Questions
from homelab.doctor.stack import path_of
from homelab.errors import HomelabError, LoginRefusedError
from homelab.host.facts import HostFacts
from homelab.init import cards as init_cards
from homelab.init import stacks
from homelab.init.cards import Card
from homelab.init.choices import (
    Choices,
    ChosenVm,
    Guest,
    Stack,
    Use,
    free_id,
    guests,
    known_cards,
    known_use,
    parse_card,
    parse_setting,
    parse_use,
    settings_of,
    suggested,
    together,
)
from homelab.init.proposal import OPEN, Existing, Proposal, api_settings, existing, propose
from homelab.remote import first_contact, ssh
from homelab.remote.first_contact import HostKey
from homelab.settings import Host, project
from homelab.settings.parsing import load_host
from homelab.settings.paths import resolved
from homelab.text import clean

# Tries of a password that is typed.
_TRIES = 3
_CONNECT_SECONDS = 15.0


class Declined(Exception):
    """The person said no, or there is nothing to do: the text says what that means."""


@dataclass
class Output:
    """What a person sees, and where the steps stand. ``done``: the steps that are."""

    stream: TextIO
    done: list[str] = field(default_factory=list)
    _planned: list[str] = field(default_factory=list)
    _again: str = ""
    _undo: str = ""

    def say(self, *lines: str) -> None:
        """Lines, made safe to show."""
        for line in lines:
            self.stream.write(clean(line) + "\n")
        self.stream.flush()

    def steps(self, planned: list[str], again: str, undo: str = "") -> None:
        """From here on things are done. ``again``, ``undo``: the commands that go on after an interruption, or go back."""
        self._planned, self._again, self._undo = planned, again, undo

    def did(self, step: str) -> None:
        """A step is done."""
        self.done.append(step)
        self.say(f"  done: {step}")

    def say_where_it_stands(self) -> None:
        """After an error or an interruption: what is done, what isn't, how to go on."""
        if not self._planned:
            self.say("Nothing was changed.")
            return
        left = [step for step in self._planned if step not in self.done]
        self.say("Done:", *([f"  {step}" for step in self.done] or ["  nothing"]))
        if left:
            self.say("Perhaps done, since it was under way:", f"  {left[0]}")
            self.say(*(["Not done:", *(f"  {step}" for step in left[1:])] if left[1:] else []))
        self.say(f"Run it again to go on, it takes up what is there: {self._again}")
        if self._undo:
            self.say(f"To take the API's user, role and token away: {self._undo}")


@dataclass
class Access:
    """How the host is reached. ``host``: now; ``ssh``: as the settings are to have it; ``install``: the public key that is put there first;
    ``password``: that is to be in the settings, encrypted.
    """

    host: Host
    ssh: dict[str, Any]
    key: HostKey
    name: str = ""
    install: str = ""
    password: str = ""


def _host(address: str, login: Mapping[str, Any], host_key: str) -> Host:
    """:raises HomelabError: a port, a name or a password is none."""
    return load_host(json.dumps({"host": {"address": address, "ssh": {**login, "hostKey": host_key}}}), "host")


def _shown(path: Path) -> str:
    """A path as the settings have it: with ~ where it is in the person's own folder, and slashes on Windows, too."""
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else path.as_posix()


def access_to(arguments: argparse.Namespace, before: Existing, output: Output, ask: Questions) -> Access:
    """The host's key confirmed, and a login that works.

    :raises HomelabError: it can't be reached, another key answers, no login works.
    :raises Declined: the key isn't the host's.
    """
    known = _known_host(arguments, before)
    name, entry = known if known else ("", None)
    address = arguments.address or (entry.address if entry else "")
    if not address:
        raise HomelabError(
            wanted="the host's address",
            found=f"none, and {path_of(arguments.stack).name} has no host either",
            why="it is where everything begins",
            next="homelab init 192.168.0.202",
        )
    port = arguments.port or (entry.ssh.port if entry else 22)
    user = arguments.user or (entry.ssh.user if entry else "root")
    if entry is not None:
        key = first_contact.of_line(entry.ssh.pinned_host_key)
        output.say(f"{address}: the host key {key.fingerprint} is pinned in the settings.")
    else:
        key = first_contact.host_key(address, port, _CONNECT_SECONDS)
        _confirm_key(arguments.host_key, "--host-key", address, port, key, output, ask)
        _not_there_already(address, port, key, before)
    login = {"user": user, **({"port": port} if port != 22 else {})}
    found = _login(arguments, address, login, key, entry, output, ask)
    found.name = name
    return found


def _known_host(arguments: argparse.Namespace, before: Existing) -> tuple[str, Host] | None:
    settings = before.settings
    if settings is None:
        return None
    matching = [
        (name, host)
        for name, host in settings.hosts.items()
        if arguments.address in (None, host.address, name) and arguments.port in (None, host.ssh.port)
    ]
    if arguments.address is None and len(matching) > 1:
        raise HomelabError(
            wanted="one host",
            found=f"{len(matching)} in the settings: {', '.join(name for name, _ in matching)}",
            why="one host is set up at a time",
            next=f"say which: homelab init {matching[0][1].address}",
        )
    return matching[0] if matching else None


def _not_there_already(address: str, port: int, key: HostKey, before: Existing) -> None:
    """:raises HomelabError: the settings have this host, under another address."""
    for name, host in (before.settings.hosts if before.settings else {}).items():
        if first_contact.of_line(host.ssh.pinned_host_key) == key:
            raise HomelabError(
                wanted=f"a host at {address}:{port} that the settings don't have",
                found=f"the host key of {name}, which they have at {host.address}:{host.ssh.port}",
                why="one host described twice would be changed by two hands",
                next=f"homelab init {host.address}; where its address has changed, correct it in the settings first",
            )


def _confirm_key(
    given: str | None, option: str, address: str, port: int, key: HostKey, output: Output, ask: Questions
) -> None:
    """:param given: what the option ``option`` says that the key is, None: nothing."""
    kind = key.line.split()[0].removeprefix("ssh-").partition("-")[0]
    output.say(
        f"{address} shows the host key  {key.fingerprint}  ({kind})",
        "On its own console, this command shows it:",
        f"  ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub",
    )
    if given is not None:
        wanted = given.strip()
        if wanted != key.fingerprint and wanted.split()[:2] != key.line.split():
            raise HomelabError(
                wanted=f"the host key {wanted} at {address}:{port}",
                found=f"{key.fingerprint} ({key.line})",
                why="this may be another machine, or one in between: it would be given root's commands",
                next=f"compare with what its console shows, and correct {option} or the address",
            )
        return
    known = first_contact.is_known(address, port, key, Path.home() / ".ssh" / "known_hosts")
    if known:
        output.say("It is the key that your known_hosts has for it.")
    if not ask.confirm("Is it the same?", default=known):
        raise Declined(
            "Nothing was done: without the right host key, root's commands might go to another machine. Where nobody can be asked, give "
            f"the fingerprint that the console shows with {option}."
        )


def _ways() -> list[dict[str, Any]]:
    """How this person may log in without a password, in the order in which it is tried."""
    ways: list[dict[str, Any]] = [
        {"privateKeyFile": _shown(path)} for path in first_contact.usual_keys(Path.home() / ".ssh")
    ]
    return [*ways, {"agent": True}] if os.environ.get("SSH_AUTH_SOCK") or os.name == "nt" else ways


def _login(
    arguments: argparse.Namespace,
    address: str,
    login: dict[str, Any],
    key: HostKey,
    entry: Host | None,
    output: Output,
    ask: Questions,
) -> Access:
    folder = Path.home() / ".ssh"
    usual = first_contact.usual_keys(folder)
    ways: list[dict[str, Any]] = []
    if arguments.identity:
        ways = [{"privateKeyFile": _shown(Path(arguments.identity).expanduser().absolute())}]
    elif arguments.agent:
        ways = [{"agent": True}]
    else:
        if entry is not None and (entry.ssh.private_key_file or entry.ssh.agent):
            file = entry.ssh.private_key_file
            there = file is None or resolved(file).is_file()
            ways += [{"privateKeyFile": file} if file else {"agent": True}] if there else []
        ways += _ways()
    for way in ways:
        host = _host(address, {**login, **way}, key.line)
        if first_contact.lets_in(host):
            output.say(f"Logged in as {host.ssh.user} with {way.get('privateKeyFile') or 'the SSH agent'}.")
            return Access(host, {**login, "hostKey": key.line, **way}, key)
    if arguments.identity or arguments.agent:
        raise LoginRefusedError(
            wanted=f"to log in to {address} as {login['user']} with {arguments.identity or 'the SSH agent'}",
            found="refused",
            why="nothing on the host can be read without it",
            next="take another key, or leave --identity and --agent out to log in with a password once",
        )
    output.say(f"No key of yours opens {address} yet.")
    host, password = _by_password(address, login, key, ask, output)
    if entry is not None:
        # How the settings log in is the person's. A password that an ended run was to put there is put there now.
        given = entry.ssh.password
        is_open = given is not None and given.get_secret_value() == OPEN
        return Access(host, {}, key, password=password if is_open else "")
    install = arguments.install_key
    if install is None:
        install = ask.confirm(
            "Put your public key onto the host, so that no password is needed from now on?", default=True
        )
    if not install:
        return Access(host, {**login, "hostKey": key.line, "password": OPEN}, key, password=password)
    path = usual[0] if usual else folder / "homelab_ed25519"
    return Access(
        host, {**login, "hostKey": key.line, "privateKeyFile": _shown(path)}, key, install=str(path), password=""
    )


def _by_password(address: str, login: dict[str, Any], key: HostKey, ask: Questions, output: Output) -> tuple[Host, str]:
    for number in range(_TRIES):
        given = os.environ.get(PASSWORD)
        password = given or ask.secret(f"Password of {login['user']} on {address} (it is asked once)")
        if password:
            host = _host(address, {**login, "password": password}, key.line)
            if first_contact.lets_in(host):
                return host, password
        output.say("The host refuses this password.")
        if given or number == _TRIES - 1:
            break
    raise LoginRefusedError(
        wanted=f"to log in to {address} as {login['user']} with a password",
        found="refused",
        why="nothing on the host can be read without it",
        next="see whether the password is right, and whether the host's sshd takes passwords (PermitRootLogin, PasswordAuthentication)",
    )


def _recommending(values: list[str], what: str) -> list[Option]:
    """Options, of which the first is the recommended one."""
    return [(one, f"{what} {one}{' (recommended)' if number == 0 else ''}") for number, one in enumerate(values)]


class Conversation:
    """One run of `homelab init`."""

    def __init__(self, arguments: argparse.Namespace, output: Output, ask: Questions) -> None:
        self.arguments, self.output, self.ask = arguments, output, ask
        self.stack: str = arguments.stack
        self.file = path_of(arguments.stack)
        self.result: dict[str, object] = {"stack": self.stack, "file": str(self.file)}
        self._read = ""

    def hold(self) -> None:
        """All of it.

        :raises HomelabError: it can't go on.
        :raises Declined: the person says no.
        """
        text = read_settings(self.file)
        before = existing(text, self.file.name)
        self._read = text
        if before.example:
            self.output.say(
                f"{self.file.name} is the example, never filled in: a new file takes its place, and it is kept as {self._kept.name}."
            )
        pulumi = None if self.arguments.dry_run else Pulumi.find(project(), self.stack)
        access = access_to(self.arguments, before, self.output, self.ask)
        facts = asyncio.run(ssh.read(access.host, guests=True, lspci=True))
        node = facts.cluster.node or "pve"
        # Another host whose node has the same name (that is "pve" where nobody chose one) is not this one.
        name = access.name or init_cards.key_of(node, before.settings.hosts if before.settings else (), "pve")
        found, known = self._cards(facts, before, name)
        self._show_host(facts, found, access, node)
        while True:
            choices = self._choose(facts, found, known, access, node, before)
            proposal = self._propose(before, choices, access, facts, found, name, node)
            self._show(text if not before.example else "", proposal, access)
            if not proposal.refused:
                break
            self.output.say("", "`pulumi up` would refuse this:", *(f"{error}" for error in proposal.refused))
            if self.arguments.card or not self.ask.confirm("Choose anew?", default=False):
                raise Declined(
                    "Nothing was done: what is refused has to be changed first, on the host or in the answers."
                )
        if self.arguments.dry_run:
            self.output.say("Nothing was done: --dry-run.")
            return
        assert pulumi is not None
        backend = self._backend(pulumi)
        passphrase = self._passphrase(pulumi, backend or "", proposal.text)
        if not self.ask.confirm("Do all of this?", default=self.arguments.yes):
            raise Declined("Nothing was done.")
        if passphrase is not None:
            pulumi.more["PULUMI_CONFIG_PASSPHRASE"] = passphrase
        self._do(pulumi, backend, before, proposal, access, name)

    @property
    def _kept(self) -> Path:
        return self.file.with_name(f"{self.file.name}.example")

    # -- the host ----------------------------------------------------------------------------------------------
    def _cards(self, facts: HostFacts, before: Existing, name: str) -> tuple[list[Card], dict[str, Use]]:
        """The cards, under the names that they have in the settings already; and what those say of them."""
        found = init_cards.cards(facts)
        settings = before.settings
        host = settings.hosts.get(name) if settings else None
        if settings is None or host is None:
            return found, {}
        names = known_cards(facts, host)
        named: list[Card] = []
        for card in found:
            taken = [*host.gpus, *(one.key for one in named)]
            key = names.get(card.place) or (
                card.key if card.key not in taken else init_cards.key_of(card.key, taken, "card")
            )
            named.append(Card(card.place, card.id, card.name, key, card.alone))
        vms = {key: vm for key, vm in settings.vms.items() if vm.host == name}
        containers = {key: one for key, one in settings.containers.items() if one.host == name}
        return named, {place: known_use(host, gpu, vms, containers) for place, gpu in names.items()}

    def _show_host(self, facts: HostFacts, found: list[Card], access: Access, node: str) -> None:
        driver = f", NVIDIA driver {facts.nvidia.version}" if facts.nvidia.version else ""
        self.output.say("", f"{node}: Proxmox VE {facts.pve}, kernel {facts.kernel}{driver}")
        shown = []
        for card in found:
            refused = init_cards.refused(facts, card, access.host, "vm")
            self.output.say(f"  {card.key}: {card}", *(f"    {line}" for line in init_cards.lines(facts, card, node)))
            self.output.say(*(f"    for a VM it would be refused: {error.found}; {error.next}" for error in refused))
            shown.append(
                {
                    "name": card.key,
                    "is": card.name,
                    "id": card.id,
                    "place": card.place,
                    "refusedForVm": [str(one) for one in refused],
                }
            )
        there = guests(facts)
        self.output.say(*(["Guests:", *(f"  {guest}" for guest in there)] if there else ["No guests."]))
        self.result["host"] = {
            "node": node,
            "address": access.host.address,
            "hostKey": access.key.fingerprint,
            "version": facts.pve,
        }
        self.result["cards"] = shown
        self.result["guests"] = [
            {"id": guest.id, "kind": guest.kind, "name": guest.name, "running": guest.running} for guest in there
        ]

    # -- choices -----------------------------------------------------------------------------------------------
    def _choose(
        self, facts: HostFacts, found: list[Card], known: dict[str, Use], access: Access, node: str, before: Existing
    ) -> Choices:
        given = dict(parse_card(text, found, facts) for text in self.arguments.card)
        uses = {card.place: use for card, use in given.items()}
        for card in found:
            if card.place not in uses:
                preset = known.get(card.place) or suggested(facts, card, node)
                # With --card, the cards that aren't named stay as they are.
                uses[card.place] = known.get(card.place, Use("none")) if given else self._use_of(facts, card, preset)
        choices = Choices(uses, over=self.arguments.cuda is not None or self.arguments.container_toolkit is not None)
        if all(use.kind == "none" for use in uses.values()):
            raise Declined(
                "No card is given to anybody: nothing is to be set up. Say which by --card, such as --card rtx5090=vm:103."
            )
        for text in self.arguments.set:
            choices.more = together(choices.more, parse_setting(text))
        if any(use.kind == "new-vm" for use in uses.values()):
            choices.new_vm = self._new_vm(access, node)
        self._nvidia(choices, facts, found, before)
        self._in_vms(choices, facts, found, before, access)
        return choices

    def _use_of(self, facts: HostFacts, card: Card, preset: Use) -> Use:
        there = guests(facts)
        vms = [guest for guest in there if guest.kind == "vm"]
        shared = [guest for guest in there if guest.kind == "lxc"]
        options: list[Option] = [(f"vm:{guest.id}", f"for {guest}") for guest in vms]
        options.append(("new-vm", f"for a new VM (id {free_id(facts)})"))
        if shared:
            options.append(("lxc", "for containers, which share it"))
        options += [("host", "for the host itself"), ("none", "leave it alone")]
        first = "lxc" if preset.kind == "lxc" else str(preset) if preset.kind != "new-vm" else "new-vm"
        chosen = self.ask.choose(f"What is {card.key} ({card}) for?", options, first)
        if chosen != "lxc":
            return parse_use(chosen, facts)
        ids = self.ask.several(
            "For which containers?",
            [(str(guest.id), str(guest)) for guest in shared],
            [str(one) for one in preset.guests] if preset.kind == "lxc" else [str(shared[0].id)],
        )
        return Use("lxc", tuple(int(one) for one in ids))

    def _new_vm(self, access: Access, node: str) -> ChosenVm:
        printed: list[str] = []
        ask = f"pvesh get /nodes/{node}/storage --content images --enabled 1 --output-format json"
        first_contact.carry_out(access.host, [ask], lambda _, said: printed.append(said))
        listed = _last_json("".join(printed))
        storages = [str(one["storage"]) for one in listed if one.get("active")] if isinstance(listed, list) else []
        if not storages:
            raise HomelabError(
                wanted="a storage for the new VM's disk",
                found="none that is active and takes disks of VMs",
                why="the VM's system disk is made on it",
                next="add one in the web interface (Datacenter -> Storage, content: Disk image)",
            )
        name = self.arguments.vm_name or self.ask.text("Name of the new VM", "gpu")
        preset = "local-lvm" if "local-lvm" in storages else storages[0]
        storage = self.arguments.storage or self.ask.choose(
            "Storage for its disk", [(one, one) for one in storages], preset
        )
        size = str(self.arguments.disk or self.ask.text("Its disk, in GiB", "64"))
        return ChosenVm(name, storage, int(size) if size.isdecimal() else 64)

    def _nvidia(self, choices: Choices, facts: HostFacts, found: list[Card], before: Existing) -> None:
        staying = [card for card in found if card.is_nvidia and choices.uses[card.place].kind in ("lxc", "host")]
        settings = before.settings
        set_up = {one.ctid for one in settings.containers.values() if one.nvidia is not None} if settings else set()
        new = {number for card in staying for number in choices.uses[card.place].guests} - set_up
        of_host = any(choices.uses[card.place].kind == "host" for card in staying)
        if not staying or not (new or of_host or choices.over or self.arguments.driver):
            return
        system = stacks.of_host(facts, [card.id for card in staying])
        loaded = facts.nvidia.version
        driver: str | None = None
        if self.arguments.driver not in (None, "none"):
            driver = self.arguments.driver
        elif loaded or (settings and any(host.nvidia for host in settings.hosts.values())):
            self.output.say(f"The host's driver{f' {loaded}' if loaded else ''} stays as it is.")
        elif self.arguments.driver is None:
            possible = stacks.drivers("host", system)
            chosen = self.ask.choose(
                "NVIDIA's driver on the host",
                [*_recommending(possible, "branch"), ("none", "none: I install it myself")],
                possible[0] if possible else "none",
            )
            driver = None if chosen == "none" else chosen
        if of_host:
            cuda = self._cuda(stacks.releases("host", system, driver), "on the host")
            choices.host_stack = Stack(driver, cuda, self._toolkit("on the host"))
        elif driver:
            choices.host_stack = Stack(driver)
        if any(choices.uses[card.place].kind == "lxc" for card in staying):
            where = "in the containers"
            cuda = self._cuda(stacks.releases("lxc", stacks.in_container(driver or loaded or None), None), where)
            choices.guest_stack = Stack(None, cuda, self._toolkit(where))

    def _in_vms(self, choices: Choices, facts: HostFacts, found: list[Card], before: Existing, access: Access) -> None:
        """NVIDIA's software inside the VMs that run and get a card, where the person wants it."""
        settings = before.settings
        set_up = {vm.vmid for vm in settings.vms.values() if vm.nvidia is not None} if settings else set()
        for guest in guests(facts):
            mine = [
                card.id
                for card in found
                if card.is_nvidia and choices.uses[card.place] == Use("vm", (guest.id,)) and guest.kind == "vm"
            ]
            if not mine or guest.id in set_up or not guest.running:
                continue
            if not self.arguments.guest_address and not self.ask.confirm(
                f"Install NVIDIA's driver in {guest}, too? SSH has to reach it.", default=False
            ):
                continue
            system = stacks.in_vm(mine)
            possible = stacks.drivers("vm", system)
            driver = self.arguments.driver or self.ask.choose(
                f"NVIDIA's driver in VM {guest.id}", _recommending(possible, "branch"), possible[0] if possible else ""
            )
            where = f"in VM {guest.id}"
            stack = Stack(driver, self._cuda(stacks.releases("vm", system, driver), where), self._toolkit(where))
            choices.vm_stacks[guest.id] = {**self._guest_login(guest, access), "nvidia": stack.settings}

    def _guest_login(self, guest: Guest, access: Access) -> dict[str, Any]:
        """`address` and `ssh` of a VM, tried.

        :raises HomelabError: it can't be reached, or lets nobody in.
        """
        asked = self.arguments
        address = asked.guest_address or self.ask.text(f"Address of {guest.name}", "")
        user = asked.guest_user or self.ask.text(
            f"Who logs in to {guest.name}: root, or a user with sudo without a password", "root"
        )
        key = first_contact.host_key(address, asked.guest_port, _CONNECT_SECONDS)
        _confirm_key(asked.guest_host_key, "--guest-host-key", address, asked.guest_port, key, self.output, self.ask)
        login = {"user": user, **({"port": asked.guest_port} if asked.guest_port != 22 else {})}
        own = {name: access.ssh[name] for name in ("privateKeyFile", "agent") if access.ssh.get(name)}
        for way in [*([own] if own and not access.install else []), *_ways()]:
            if first_contact.lets_in(_host(address, {**login, **way}, key.line)):
                return {"address": address, "ssh": {**login, "hostKey": key.line, **way}}
        raise LoginRefusedError(
            wanted=f"to log in to {guest} at {address} as {user} with a key of yours",
            found="none of them is taken",
            why="NVIDIA's software is installed from inside",
            next=f"put your public key into {user}'s authorized_keys in the VM, and run homelab init again; or leave NVIDIA's driver out",
        )

    def _toolkit(self, where: str) -> str | None:
        found = self.arguments.container_toolkit or self.ask.choose(
            f"NVIDIA's container toolkit {where}",
            [("none", "none"), ("docker", "for Docker"), ("containerd", "for containerd"), ("podman", "for Podman")],
            "none",
        )
        return None if found == "none" else str(found)

    def _cuda(self, possible: list[str], where: str) -> str | None:
        if self.arguments.cuda is not None:
            return None if self.arguments.cuda == "none" else str(self.arguments.cuda)
        chosen = self.ask.choose(
            f"CUDA's toolkit {where}",
            [*_recommending(possible, "CUDA"), ("none", "none: only the driver's libraries")],
            possible[0] if possible else "none",
        )
        return None if chosen == "none" else chosen

    # -- the proposal --------------------------------------------------------------------------------------------
    def _propose(
        self,
        before: Existing,
        choices: Choices,
        access: Access,
        facts: HostFacts,
        found: list[Card],
        name: str,
        node: str,
    ) -> Proposal:
        old = before.values.get("hosts")
        there = old.get(name) if isinstance(old, Mapping) else None
        host: dict[str, Any] = {"address": access.host.address} if not there else {}
        if not there:
            host |= {"ssh": access.ssh, **({"node": node} if node != name else {})}
        if any(use.kind in ("vm", "new-vm") for use in choices.uses.values()):
            if (api := api_settings(self.stack, there or {}, facts, self.arguments.api_port or 8006)) is not None:
                host["api"] = api
            else:
                self.output.say("The settings' own API user stays as it is; homelab init makes none.")
        values = settings_of(choices, name, host, facts, found, before.values)
        return propose(before, values, self.stack, name, facts, self.file.name)

    def _show(self, old: str, proposal: Proposal, access: Access) -> None:
        self.output.say(
            "",
            f"{self.file.name}:"
            if not old
            else f"{self.file.name} changes:"
            if old != proposal.text
            else f"{self.file.name} stays as it is.",
        )
        if not old:
            self.output.say(*(f"  {line}" for line in proposal.text.splitlines()))
        else:
            changes = difflib.unified_diff(old.splitlines(), proposal.text.splitlines(), "now", "then", lineterm="")
            self.output.say(*(f"  {line}" for line in changes))
        self.output.say(*(["What `pulumi up` does to guests:", *proposal.remarks] if proposal.remarks else []))
        commands = proposal.making.commands if proposal.making else []
        if commands:
            self.output.say(
                "",
                "On the host, an API user with exactly the rights that these settings take:",
                *(f"  {one}" for one in commands),
            )
        self.result |= {
            "settings": proposal.text,
            "commands": commands,
            "refused": [str(error) for error in proposal.refused],
        }

    # -- Pulumi ----------------------------------------------------------------------------------------------------
    def _backend(self, pulumi: Pulumi) -> str | None:
        """Where to log in first; None: somebody is logged in."""
        if self.arguments.backend:
            return str(self.arguments.backend)
        if pulumi.backend() is not None:
            return None
        chosen = self.ask.choose(
            "Where is Pulumi to keep the stack's state?",
            [
                ("file://~", "in a folder of this machine (~/.pulumi)"),
                ("https://api.pulumi.com", "in Pulumi Cloud"),
                ("other", "elsewhere, by its URL"),
            ],
            "file://~",
        )
        return self.ask.text("URL of the backend", "s3://bucket") if chosen == "other" else chosen

    def _passphrase(self, pulumi: Pulumi, backend: str, text: str) -> str | None:
        """What encrypts the stack's secrets, asked for where it takes one; None: it is known, or none is needed."""
        if not pulumi.needs_passphrase(backend or pulumi.backend() or "", text):
            return None
        while True:
            first = self.ask.secret(
                "Passphrase for the stack's secrets (later in PULUMI_CONFIG_PASSPHRASE, or asked for by pulumi)"
            )
            if "encryptionsalt:" in text or self.ask.secret("The same once more") == first:
                return first
            self.output.say("They differ.")

    # -- doing -----------------------------------------------------------------------------------------------------
    def _do(
        self, pulumi: Pulumi, backend: str | None, before: Existing, proposal: Proposal, access: Access, name: str
    ) -> None:
        say, did = self.output.say, self.output.did
        making = proposal.making
        commands = making.commands if making else []
        install = f"your public key put onto {access.host.address}"
        written, made = f"{self.file.name} written", f"the stack {self.stack} made"
        encrypted, previewed = "secrets put into the settings, encrypted", "pulumi preview"
        port = access.host.ssh.port
        where = f"{access.host.address}{f' --port {port}' if port != 22 else ''} --stack {self.stack}"
        self.output.steps(
            [
                *([install] if access.install else []),
                *([f"pulumi login {backend}"] if backend else []),
                *([written, made, *commands]),
                *([encrypted] if access.password or (making and making.secret) else []),
            ],
            f"homelab init {where}",
            f"homelab init --undo {where}",
        )
        say("")
        host = access.host
        if access.install:
            line = first_contact.make_key(Path(access.install))
            first_contact.carry_out(access.host, [first_contact.installing(line, host.ssh.user)], lambda *_: None)
            host = _host(
                access.host.address, {key: one for key, one in access.ssh.items() if key != "hostKey"}, access.key.line
            )
            if not first_contact.lets_in(host):
                raise LoginRefusedError(
                    wanted=f"to log in with the key {access.install}, which was just put onto the host",
                    found="refused",
                    why="every later run needs it",
                    next="look at ~/.ssh/authorized_keys of that user on the host, and at PubkeyAuthentication in sshd_config; or run it with --no-install-key",
                )
            did(install)
        if backend:
            pulumi.login(backend)
            did(f"pulumi login {backend}")
        self._write(before, proposal.text)
        did(written)
        pulumi.make_stack()
        did(made)
        secrets: dict[str, str] = {}
        if access.password:
            secrets[f"homelab:hosts.{name}.ssh.password"] = access.password

        def ran(command: str, printed: str) -> None:
            if command.startswith("pveum user token add "):
                secrets[f"homelab:hosts.{name}.api.tokenSecret"] = _token_secret(printed)
            did(command)

        if commands:
            first_contact.carry_out(host, commands, ran)
        for path, secret in secrets.items():
            pulumi.set_secret(path, secret)
        if secrets:
            did(encrypted)
        say("", f"{self.stack} is set up.")
        if self.arguments.preview:
            say(f"{previewed} --stack {self.stack}:")
            if pulumi.preview(to_errors=bool(self.arguments.json)) != 0:
                say(
                    "The preview failed: what it says stands against `pulumi up`. The settings are written; correct them, and preview again."
                )
        say(f"Next: pulumi up --stack {self.stack}")

    def _write(self, before: Existing, text: str) -> None:
        """The settings file, whole or not at all."""
        if read_settings(self.file) != self._read:
            raise HomelabError(
                wanted=f"{self.file.name} as it was when it was read",
                found="somebody has changed it meanwhile",
                why="what was put in must not be lost",
                next="run homelab init again: it adds to the file as it is now",
            )
        if before.example:
            write_settings(self._kept, self._read)
        write_settings(self.file, text)


def read_settings(file: Path) -> str:
    """A settings file's text with its own ends of lines; empty: there is none.

    :raises HomelabError: it can't be read, or isn't text.
    """
    try:
        return file.read_bytes().decode("utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise HomelabError(
            wanted=f"settings in {file}",
            found="it isn't UTF-8" if isinstance(error, ValueError) else str(error),
            why="what is in it must not be lost",
            next="correct it, or choose another stack with --stack",
        ) from None


def write_settings(file: Path, text: str) -> None:
    """Writes it, whole or not at all. A link stays one, and who may read the file stays as it was."""
    place = file.resolve()
    number, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    new = Path(name)
    try:
        with os.fdopen(number, "wb") as opened:
            opened.write(text.encode())
            opened.flush()
            os.fsync(opened.fileno())
        # mkstemp's file is its owner's alone, which a new one may well stay.
        if place.exists():
            shutil.copymode(place, new)
        new.replace(place)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _token_secret(printed: str) -> str:
    """The secret in what `pveum user token add --output-format json` prints. It is in no message.

    :raises HomelabError: there is none.
    """
    answer = _last_json(printed)
    found = answer.get("value") if isinstance(answer, dict) else None
    if not isinstance(found, str) or not found:
        raise HomelabError(
            wanted="the new token's secret from pveum",
            found="an answer of another form",
            why="it is shown once, and the settings need it",
            next="run homelab init again: it makes the token anew",
        )
    return found


def _last_json(printed: str) -> Any:
    """The JSON of the last line; None: it is none. A login may print something of its own before."""
    try:
        return json.loads(printed.strip().rpartition("\n")[2])
    except ValueError:
        return None
