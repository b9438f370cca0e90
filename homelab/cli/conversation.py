"""What `homelab init` asks, shows and does, in its order: the host, its cards, the settings; then one yes, and step by
step."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homelab.cli.access import (
    CONNECT_SECONDS,
    Access,
    Login,
    access_to,
    confirm_key,
    host_at,
    login_as,
    login_methods,
)
from homelab.cli.output import Declined, Output
from homelab.cli.pulumi import Pulumi
from homelab.cli.questions import Option, Questions
from homelab.cli.settings_file import read_settings, write_settings
from homelab.doctor.stack import path_of
from homelab.errors import HomelabError, LoginRefusedError
from homelab.host.facts import HostFacts
from homelab.init import cards as init_cards
from homelab.init import stacks, storages
from homelab.init.cards import Card, containers_with
from homelab.init.choices import (
    Choices,
    ChosenVm,
    Guest,
    Stack,
    Use,
    combined,
    configured_cards,
    configured_use,
    example,
    free_id,
    guests,
    parse_card,
    parse_setting,
    parse_use,
    settings_of,
    suggested,
    takers,
)
from homelab.init.present import present
from homelab.init.proposal import Existing, Proposal, cluster_settings, existing, propose
from homelab.nvidia import compatibility
from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import SystemFacts
from homelab.remote import first_contact, planning, ssh
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.files import Files
from homelab.settings import project

# How NVIDIA calls a branch, and what that means.
_KINDS = {"LTSB": "long-term support", "PB": "production", "NFB": "new features", "legacy": "legacy"}


def _branches(names: list[str]) -> list[Option]:
    """The options of the question for the driver; the first is the recommended one."""
    rows = compatibility.load().branches
    options: list[Option] = []
    for number, name in enumerate(names):
        row = rows.get(int(name))
        traits = [_KINDS[row.kind], *([f"fixes until {row.ends}"] if row.ends else [])] if row else []
        traits += ["recommended"] if number == 0 else []
        options.append((name, f"branch {name}{', '.join(['', *traits])}"))
    return options


class Conversation:
    """One run of `homelab init`. What `hold` reads first, and all questions are about: `before`, the stack's file;
    `access` to the host, its `facts` and its `node`; its `name` and its `cards`' names in the settings.
    """

    before: Existing
    access: Access
    facts: HostFacts
    node: str
    name: str
    cards: list[Card]

    def __init__(self, arguments: argparse.Namespace, output: Output, ask: Questions) -> None:
        self.arguments, self.output, self.ask = arguments, output, ask
        self.stack: str = arguments.stack
        self.file = path_of(arguments.stack)
        self.result: dict[str, object] = {"stack": self.stack, "file": str(self.file)}
        self._text_before = ""
        # What was read inside: `host`, or a guest's id.
        self._readings: dict[str, SystemReading] = {}
        self._looked_into: set[str] = set()

    def hold(self) -> None:
        """Asks for the settings, shows them, writes them, and makes the stack.

        :raises HomelabError: it can't go on.
        :raises Declined: the person says no.
        """
        text = read_settings(self.file)
        self.before = existing(text, self.file.name)
        self._text_before = text
        if self.before.example:
            self.output.say(
                f"{self.file.name} is the example, never filled in: a new file takes its place, and it is kept as "
                f"{self._example_copy.name}."
            )
        pulumi = None if self.arguments.dry_run else Pulumi.find(project(), self.stack)
        if pulumi and not (self.before.text or self.arguments.backend) and pulumi.backend():
            pulumi.need_unused_name()  # before anything is asked, where it can be
        if not self.arguments.yes:
            self.output.say(
                "On a stock host you answer five questions: whether the host key is right; the password, unless one "
                "of your keys is accepted; who gets each card; a passphrase for Pulumi's secrets, unless it is set; "
                "and a final yes. Nothing changes before that yes; ? there shows each change. Options can answer all "
                "of them: homelab init --help."
            )
        self.access = access_to(self.arguments, self.before, self.output, self.ask)
        self.facts = ssh.read(self.access.host, guests=True, lspci=True)
        self.node = self.facts.cluster.node or "pve"
        # Another host whose node has the same name ("pve" is the default) is not this one.
        self.name = self.access.name or init_cards.key_of(self.node, self.before.hosts, "pve")
        self.cards, uses_before = self._cards()
        if not self.access.name:  # a host that is in no settings yet
            users = {config.id for card in self.cards for config in self.facts.containers_with(card.place)}
            self._look_inside(sorted(users & self.facts.guests.running), host=False)
        self._show_host()
        while True:
            choices = self._choose(uses_before)
            proposal = self._propose(choices)
            self.result |= {
                "settings": proposal.text,
                "refused": [str(error) for error in proposal.refused],
            }
            if self.arguments.yes or self.arguments.dry_run:
                self._show(proposal)
            if not proposal.refused:
                break
            self.output.say("", "`pulumi up` would refuse this:", *(f"{error}" for error in proposal.refused))
            if self.arguments.card or not self.ask.confirm("Choose again?", default=False):
                raise Declined(
                    "Nothing was done: what is refused has to be changed first, on the host or in the answers."
                )
        if self.arguments.dry_run:
            self.output.say("Nothing was done: --dry-run.")
            return
        assert pulumi is not None
        backend = self._backend(pulumi)
        passphrase = self._passphrase(pulumi, backend or "", proposal.text)
        self._sum_up(choices, backend)
        while not self._agrees():
            self._show(proposal)
            self._sum_up(choices, backend)
        if passphrase is not None:
            pulumi.extra_environment["PULUMI_CONFIG_PASSPHRASE"] = passphrase
        self._do(pulumi, backend, proposal.text)

    @property
    def _example_copy(self) -> Path:
        return self.file.with_name(f"{self.file.name}.example")

    # -- the host ----------------------------------------------------------------------------------------------
    def _cards(self) -> tuple[list[Card], dict[str, Use]]:
        """A host's cards under their names in the settings, and place -> use that the settings have of a card."""
        cards = init_cards.cards(self.facts)
        host = self.before.hosts.get(self.name)
        if host is None:
            return cards, {}
        names = configured_cards(self.facts, host)
        renamed: list[Card] = []
        for card in cards:
            names_in_use = [*host.gpus, *(earlier.key for earlier in renamed)]
            key = names.get(card.place) or (
                card.key if card.key not in names_in_use else init_cards.key_of(card.key, names_in_use, "card")
            )
            renamed.append(Card(card.place, card.id, card.name, key, card.alone))
        vms = {key: vm for key, vm in self.before.vms.items() if vm.host == self.name}
        containers = {
            key: container for key, container in self.before.containers.items() if container.host == self.name
        }
        return renamed, {place: configured_use(host, gpu, vms, containers) for place, gpu in names.items()}

    def _show_host(self) -> None:
        driver = f", NVIDIA driver {self.facts.nvidia.version}" if self.facts.nvidia.version else ""
        versions = f"Proxmox VE {self.facts.pve}, kernel {self.facts.kernel}{driver}"
        self.output.say("", f"{self.node}: {versions}{self.facts.cluster.described}")
        card_results = []
        for card in self.cards:
            refused = init_cards.refused(self.facts, card, self.access.host, "vm")
            self.output.say(
                f"  {card.key}: {card}", *(f"    {line}" for line in init_cards.lines(self.facts, card, self.node))
            )
            if (screen := init_cards.screen_lost(self.facts, card, self.access.host)) is not None:
                self.output.say(f"    a VM can have it, but note: {screen.found}; {screen.why}")
            else:
                self.output.say(
                    *(f"    not possible for a VM because: {error.found}; {error.next}" for error in refused)
                )
            card_results.append(
                {
                    "name": card.key,
                    "is": card.name,
                    "id": card.id,
                    "place": card.place,
                    "refusedForVm": [str(error) for error in refused],
                }
            )
        all_guests = guests(self.facts)
        self.output.say(*(["Guests:", *(f"  {guest}" for guest in all_guests)] if all_guests else ["No guests."]))
        already = present(self.facts, self.cards, self.node, self._readings) if not self.access.name else []
        heading = "Already set up here (what is kept now stays after `pulumi destroy`, too):"
        self.output.say(*([heading, *(f"  {line}" for line in already)] if already else []))
        self.result["host"] = {
            "node": self.node,
            "address": self.access.host.address,
            "hostKey": self.access.key.fingerprint,
            "version": self.facts.pve,
        }
        self.result["cards"] = card_results
        self.result["guests"] = [
            {"id": guest.id, "kind": guest.kind, "name": guest.name, "running": guest.running} for guest in all_guests
        ]

    # -- choices -----------------------------------------------------------------------------------------------
    def _choose(self, uses_before: dict[str, Use]) -> Choices:
        chosen = dict(parse_card(text, self.cards, self.facts) for text in self.arguments.card)
        uses = {card.place: use for card, use in chosen.items()}
        accepted: dict[str, Any] = {}
        left_out = init_cards.not_asked_about(self.facts, self.cards, self.node, uses_before)
        if not chosen and not self.arguments.yes:
            asked = [card.key for card in self.cards if card not in left_out]
            self.output.say(
                "", f"Next: who gets {' and '.join(asked)}; then a passphrase, unless it is set, and the final yes."
            )
        for card in self.cards:
            if card.place not in uses:
                preset = uses_before.get(card.place) or suggested(self.facts, card, self.node)
                # With --card, the cards that aren't named stay as they are.
                if chosen:
                    uses[card.place] = uses_before.get(card.place, Use("none"))
                    continue
                if card in left_out:
                    self.output.say(
                        f"{card.key} ({card}) stays with the host, which shows its screen on it. To give it to a "
                        f"guest: --card {card.key}=…"
                    )
                    uses[card.place] = Use("none")
                    continue
                self._explain(card, preset, configured=card.place in uses_before)
                uses[card.place] = use = self._use_of(card, preset)
                if (
                    use.kind in ("vm", "new-vm")
                    and init_cards.screen_lost(self.facts, card, self.access.host) is not None
                ):
                    accepted[card.key] = {"allowConsole": True}
        choices = Choices(uses, over=self.arguments.cuda is not None or self.arguments.container_toolkit is not None)
        if all(use.kind == "none" for use in uses.values()):
            raise Declined(
                "No card was given to a guest, so there is nothing to set up. Say which card goes where by --card, "
                f"such as --card {example(self.cards, self.facts)}."
            )
        if accepted:
            choices.more = {"homelab:hosts": {self.name: {"gpus": accepted}}}
        for text in self.arguments.set:
            choices.more = combined(choices.more, parse_setting(text, self.name))
        if any(use.kind == "new-vm" for use in uses.values()):
            choices.new_vm = self._new_vm()
        self._nvidia(choices)
        self._in_vms(choices)
        return choices

    def _use_of(self, card: Card, preset: Use) -> Use:
        all_guests = takers(self.facts)
        possible = init_cards.possible_uses(self.facts, card, self.access.host)
        screen = init_cards.screen_lost(self.facts, card, self.access.host)
        for_vms = "vm" in possible or screen is not None
        every_vm = [guest for guest in all_guests if guest.kind == "vm"]
        vms = every_vm if for_vms else []
        shared = [guest for guest in all_guests if guest.kind == "lxc"] if "lxc" in possible else []
        options: list[Option] = [(f"vm:{guest.id}", str(guest)) for guest in vms]
        if for_vms:
            options.append(("new-vm", f"a new VM (id {free_id(self.facts)})"))
        if every_vm and shared and card.is_nvidia and not card.is_virtual:
            options.append(("shared", "in turn (shared): containers have it, and a VM takes it for as long as it runs"))
        if shared:
            options.append(("lxc", "containers (shared)"))
        if "host" in possible:
            options.append(("host", "the host itself"))
        options.append(("none", "leave it alone"))
        for error in init_cards.with_vm(self.facts, card):
            self.output.say(f"{card.key} can't go back to the host's driver now: {error.found}; {error.next}.")
        first = str(preset) if preset.kind == "vm" else preset.kind
        if first not in (value for value, _ in options):
            first = "none"
        chosen = self.ask.choose(f"Who should get {card.key} ({card})?", options, first)
        if chosen.startswith(("vm:", "new-vm")) and screen is not None:
            self.output.say(f"{screen.found}: {screen.why}.")
            # Whoever has accepted it in the settings is asked once more only.
            if not self.ask.confirm("Give it to the VM anyway (allowConsole)?", default=chosen == str(preset)):
                return Use("none")
        if chosen not in ("lxc", "shared"):
            return parse_use(chosen, self.facts)
        before = [str(ctid) for ctid in preset.of_kind("lxc", self.facts)]
        ids = self.ask.several(
            "For which containers?",
            [(str(guest.id), str(guest)) for guest in shared],
            before or [str(shared[0].id)],
        )
        if chosen == "lxc":
            return Use("lxc", tuple(int(ctid) for ctid in ids))
        holders = [str(vmid) for vmid in preset.of_kind("vm", self.facts)]
        taking = self.ask.several(
            "Which VMs may take it?",
            [(str(guest.id), str(guest)) for guest in every_vm],
            holders or [str(every_vm[0].id)],
        )
        return Use("shared", tuple(int(number) for number in (*taking, *ids)))

    def _new_vm(self) -> ChosenVm:
        """What a new VM is made of: its disk's storage and what it starts from, of what the host has."""
        arguments = self.arguments
        offered = storages.offered(Files(Api(self.access.host, self.node), self.output.say))
        name = arguments.vm_name or self.ask.text("Name of the new VM", "gpu")
        preset = "local-lvm" if "local-lvm" in offered.disks else offered.disks[0]
        storage = arguments.storage or self.ask.choose(
            "Storage for its disk", [(option, option) for option in offered.disks], preset
        )
        image, iso = self._source(offered)
        size = str(arguments.disk or self.ask.text("Size of its disk, in GiB", "64"))
        while not re.fullmatch(r"[1-9][0-9]{0,5}", size):
            self.output.say("A number of GiB, such as 64.")
            size = self.ask.text("Size of its disk, in GiB", "64")
        into = (offered.into or "local") if image in storages.cloud_images() else ""
        return ChosenVm(name, storage, int(size), image=image, iso=iso, into=into, cloud=self._cloud(image))

    def _source(self, offered: storages.Offered) -> tuple[str, str]:
        """The image (a volume, or the name of a known one, which is downloaded), or the CD, that a new VM starts from;
        both empty: an empty disk."""
        image, iso = self.arguments.image, self.arguments.iso
        if image is not None or iso is not None:
            return image if image not in (None, "none") else "", iso or ""
        options: list[Option] = [(volume, f"from the cloud image {volume}") for volume in offered.images]
        options += [(volume, f"an empty disk, and the CD {volume}") for volume in offered.isos]
        options += [
            (release, f"from the cloud image {release}, which the host downloads to {offered.into}")
            for release in offered.downloadable
        ]
        if not options:
            return "", ""
        # A download is never preselected.
        preset = (*offered.images, "none")[0]
        chosen = self.ask.choose("What does it start from?", [*options, ("none", "an empty disk")], preset)
        if chosen in offered.isos:
            return "", chosen
        return "" if chosen == "none" else chosen, ""

    def _cloud(self, image: str) -> dict[str, Any]:
        """What cloud-init sets up in a VM from an image; empty: nothing."""
        arguments = self.arguments
        if not image:
            return {}
        user = arguments.cloud_user or self.ask.text("User that cloud-init creates in it", storages.user_of(image))
        file = (
            arguments.cloud_key
            or self.access.ssh.get("privateKeyFile")
            or next((method["privateKeyFile"] for method in login_methods() if "privateKeyFile" in method), "")
        )
        key = first_contact.public_key_of(Path(file).expanduser()) if file else ""
        if key:
            self.output.say(f"The key of {file} will log in as {user or 'its user'}.")
        else:
            self.output.say(
                "You have no key here yet that could log in to it: put one into create.cloudInit.sshKeys before "
                "`pulumi up`."
            )
        ip = arguments.cloud_ip or self.ask.text(
            "Its address with the prefix, such as 192.168.0.50/24, or dhcp", "dhcp"
        )
        gateway = arguments.cloud_gateway or (self.ask.text("Its gateway", "") if ip != "dhcp" else "")
        cloud_init = {"user": user, "sshKeys": [key] if key else [], "ip": ip, "gateway": gateway}
        return {name: value for name, value in cloud_init.items() if value}

    def _nvidia(self, choices: Choices) -> None:
        stays = ("shared", "lxc", "host")
        staying = [card for card in self.cards if card.is_nvidia and choices.uses[card.place].kind in stays]
        in_turn = any(choices.uses[card.place].kind == "shared" for card in staying)
        by_card = {card: choices.uses[card.place].of_kind("lxc", self.facts) for card in staying}
        configured = {container.ctid for container in self.before.containers.values() if container.nvidia is not None}
        sharing = {number for numbers in by_card.values() for number in numbers}
        new = sharing - configured
        of_host = any(choices.uses[card.place].kind == "host" for card in staying)
        host_nvidia = self.before.hosts[self.name].nvidia if self.name in self.before.hosts else None
        lacking = in_turn and host_nvidia is None  # what hands a card over is of the driver that this program installs
        if not staying or not (new or of_host or choices.over or self.arguments.driver or lacking):
            return
        stopped = [guest for guest in guests(self.facts) if guest.id in sharing and not guest.running]
        self._look_inside(sorted(sharing - {guest.id for guest in stopped}), host=True)
        system = stacks.of_host(self.facts, [card.id for card in staying], self._readings.get("host"))
        loaded = self.facts.nvidia.version
        if self.arguments.driver in (None, "none") and (loaded or host_nvidia) and not lacking:
            self.output.say(f"The host's driver{f' {loaded}' if loaded else ''} stays as it is.")
            driver = None
        else:
            driver = self._driver_of_host(system, lacking=lacking)
        if of_host:
            choices.host_stack = self._on_host(system, driver, loaded, configured=host_nvidia is not None)
        elif driver:
            choices.host_stack = Stack(driver)
        for guest in stopped:
            self.output.say(
                f"{guest}: it only gets its card. NVIDIA's software is installed from inside: start it, and run "
                "homelab init again."
            )
        # Those that have their software already keep it.
        inside = sorted((sharing if choices.over else new) - {guest.id for guest in stopped})
        followed_driver = (
            driver
            or loaded
            or (host_nvidia and (host_nvidia.driver or next(iter(stacks.drivers("host", system)), None)))
            or None
        )
        if inside and followed_driver is None:
            self._refuse_without_driver("the containers")
            self.output.say(
                "The containers only get their cards: NVIDIA's libraries in them are of the host's driver, and it "
                "has none."
            )
        elif inside:
            systems = [
                stacks.in_container(
                    followed_driver,
                    [card.id for card, numbers in by_card.items() if number in numbers],
                    self._readings.get(str(number)),
                )
                for number in inside
            ]
            where = "in the containers"
            cuda = self._cuda(stacks.releases_for_all(systems), where)
            choices.guest_stack = Stack(None, cuda, self._toolkit(where, systems))

    def _driver_of_host(self, system: SystemFacts, *, lacking: bool) -> str | None:
        """The branch, or the version, of NVIDIA's driver that the host gets; None: this program installs none.

        :param lacking: must it be one that this program installs?
        """
        if self.arguments.driver is not None:
            return None if self.arguments.driver == "none" else str(self.arguments.driver)
        possible = stacks.drivers("host", system)
        options = [*_branches(possible), *([] if lacking else [("none", "none: I install it myself")])]
        kept = self.facts.nvidia.version.partition(".")[0]
        first = kept if kept in possible else possible[0] if possible else "none"
        chosen = self.ask.choose("NVIDIA's driver on the host", options, first) if options else "none"
        return None if chosen == "none" else chosen

    def _look_inside(self, containers: list[int], *, host: bool) -> None:
        """Reads containers, and the host, as systems of NVIDIA's software, each once. One that can't be read is
        reported, and counts as unknown."""
        wanted = {*map(str, containers), *(["host"] if host else [])} - self._looked_into
        if not wanted:
            return
        session = ssh.Session(self.access.host)
        ids = [number for number in containers if str(number) in wanted]
        readings, refused = planning.read_systems(session, self.facts, ids, host="host" in wanted)
        self._readings |= readings
        self.output.say(*(f"{error.wanted}: {error.found}" for error in refused))
        self._looked_into |= wanted

    def _on_host(self, system: SystemFacts, driver: str | None, loaded: str, *, configured: bool) -> Stack | None:
        """NVIDIA's software on the host itself. None: it stays as it is.

        :param driver: what it gets; None: it keeps the `loaded` one, or gets none.
        :param configured: do the settings have a driver for it already?
        """
        where = "on the host"
        if driver is None and not loaded and not configured:
            self._refuse_without_driver("the host")
            return None
        # Where the settings name none, the recommended branch would take the loaded driver's place.
        kept = driver or (None if configured else loaded)
        if driver is None and self.arguments.driver == "none" and self.arguments.cuda is None:
            cuda = None
        else:
            cuda = self._cuda(stacks.releases("host", system, kept), where)
        toolkit = self._toolkit(where, [system])
        return Stack(kept, cuda, toolkit) if driver or cuda or toolkit else None

    def _refuse_without_driver(self, where: str) -> None:
        """:raises HomelabError: software is asked for that takes a driver."""
        options = {"--cuda": self.arguments.cuda, "--container-toolkit": self.arguments.container_toolkit}
        software = [f"{option} {value}" for option, value in options.items() if value not in (None, "none")]
        if software:
            raise HomelabError(
                wanted=f"{' and '.join(software)} for {where}",
                found="no driver of NVIDIA's is loaded on the host, and none is to be installed (--driver none)",
                why="CUDA programs and the container toolkit need the driver",
                next="leave --driver none out, or install the driver yourself first, or leave the others out",
            )

    def _in_vms(self, choices: Choices) -> None:
        """NVIDIA's software inside the VMs that run and get a card, where the person wants it."""
        configured = {vm.vmid for vm in self.before.vms.values() if vm.nvidia is not None}
        for guest in guests(self.facts):
            card_ids = [
                card.id
                for card in self.cards
                if card.is_nvidia and choices.uses[card.place] == Use("vm", (guest.id,)) and guest.kind == "vm"
            ]
            if not card_ids or guest.id in configured:
                continue
            config = self.facts.guests.config(guest.id)
            if config is not None and config.is_windows:
                self.output.say(
                    f"{guest} is Windows: it only gets its card. Inside it, get the driver from Windows Update or "
                    "NVIDIA's own installer (https://www.nvidia.com/drivers)."
                )
                continue
            if not guest.running:
                continue
            if not self.arguments.guest_address:
                self.output.say(
                    f"{guest} only gets its card. To install NVIDIA's driver in it, too, over SSH: "
                    "--guest-address ADDRESS."
                )
                continue
            if self.arguments.driver == "none":
                raise HomelabError(
                    wanted=f"NVIDIA's software in {guest}",
                    found="--driver none",
                    why="NVIDIA's other software in a VM needs the driver",
                    next="leave --driver none out, or leave --guest-address out: then the VM only gets its card",
                )
            login, reading = self._guest_login(guest)
            if reading is not None:
                self._readings[str(guest.id)] = reading
            system = stacks.in_vm(card_ids, reading)
            possible = stacks.drivers("vm", system)
            if not possible and not self.arguments.driver:
                self.output.say(
                    f"{guest}: no driver of NVIDIA's fits its card and what is in it; it only gets its card."
                )
                continue
            driver = self.arguments.driver or self.ask.choose(
                f"NVIDIA's driver in VM {guest.id}", _branches(possible), possible[0]
            )
            where = f"in VM {guest.id}"
            cuda = self._cuda(stacks.releases("vm", system, driver), where)
            stack = Stack(driver, cuda, self._toolkit(where, [system]))
            choices.vm_stacks[guest.id] = {**login, "nvidia": stack.settings}

    def _guest_login(self, guest: Guest) -> tuple[dict[str, Any], SystemReading | None]:
        """`address` and `ssh` of a VM, tried; and what is in it, None where that can't be read.

        :raises HomelabError: it can't be reached, or refuses each login.
        """
        arguments = self.arguments
        address = arguments.guest_address or self.ask.text(f"Address of {guest.name}", "")
        user = arguments.guest_user or self.ask.text(
            f"Who logs in to {guest.name}: root, or a user with sudo without a password", "root"
        )
        key = first_contact.host_key(address, arguments.guest_port, CONNECT_SECONDS)
        confirm_key(
            arguments.guest_host_key, "--guest-host-key", address, arguments.guest_port, key, self.output, self.ask
        )
        login = login_as(user, arguments.guest_port)
        host_method: Login = {}
        if file := self.access.ssh.get("privateKeyFile"):
            host_method["privateKeyFile"] = file
        elif self.access.ssh.get("agent"):
            host_method["agent"] = True
        for method in [*([host_method] if host_method and not self.access.install else []), *login_methods()]:
            vm_host = host_at(address, {**login, **method}, key.line)
            if first_contact.refusal(vm_host, is_first=False) is None:
                settings = {"address": address, "ssh": {**login, "hostKey": key.line, **method}}
                try:
                    return settings, planning.read_vm(vm_host)
                except HomelabError as error:
                    self.output.say(
                        f"{guest} can't be looked into: {error.found}. Whether NVIDIA's software fits it isn't known."
                    )
                    return settings, None
        raise LoginRefusedError(
            wanted=f"to log in to {guest} at {address} as {user} with a key of yours",
            found="none of them is accepted",
            why="NVIDIA's software is installed from inside",
            next=f"put your public key into {user}'s authorized_keys in the VM, and run homelab init again; or "
            "leave NVIDIA's driver out",
        )

    def _toolkit(self, where: str, systems: Sequence[SystemFacts]) -> str | None:
        """The program whose containers get the card; None: no program's. Asked where there is such a program."""
        installed = {runtime for system in systems for runtime in system.runtimes or ()}
        labels = {"docker": "for Docker", "containerd": "for containerd", "podman": "for Podman"}
        options = [(runtime, label) for runtime, label in labels.items() if runtime in installed]
        chosen = self.arguments.container_toolkit
        if chosen is None and options:
            chosen = self.ask.choose(
                f"NVIDIA's container toolkit {where}, where {', '.join(sorted(installed))} is installed",
                [("none", "none"), *options],
                "none",
            )
        return None if chosen in (None, "none") else str(chosen)

    def _cuda(self, possible: list[str], where: str) -> str | None:
        if self.arguments.cuda is not None:
            return None if self.arguments.cuda == "none" else str(self.arguments.cuda)
        if not possible:
            self.output.say(
                f"No release of CUDA {where}: none fits the cards, the driver and what NVIDIA's repository has for the "
                "distribution. The driver alone runs programs that bring their own CUDA."
            )
            return None
        chosen = self.ask.choose(
            f"CUDA's toolkit {where} (some 8 GB; only what is compiled there needs it)",
            [
                ("none", "none: programs bring their own CUDA (recommended)"),
                *((release, f"CUDA {release}") for release in possible),
            ],
            "none",
        )
        return None if chosen == "none" else chosen

    # -- the proposal --------------------------------------------------------------------------------------------
    def _propose(self, choices: Choices) -> Proposal:
        hosts_before = self.before.values.get("hosts")
        host_before = hosts_before.get(self.name) if isinstance(hosts_before, Mapping) else None
        host: dict[str, Any] = {"address": self.access.host.address} if not host_before else {}
        if not host_before:
            host |= {"ssh": self.access.ssh, **({"node": self.node} if self.node != self.name else {})}
        host |= cluster_settings(host_before or {}, self.facts)
        values = settings_of(choices, self.name, host, self.facts, self.cards, self.before.values)
        return propose(self.before, values, self.name, self.facts, self.file.name, self._readings)

    def _show(self, proposal: Proposal) -> None:
        """Each line of what would be written."""
        text_before = "" if self.before.example else self._text_before
        self.output.say(
            "",
            f"{self.file.name}:"
            if not text_before
            else f"{self.file.name} changes:"
            if text_before != proposal.text
            else f"{self.file.name} stays as it is.",
        )
        if not text_before:
            self.output.show(*(f"  {line}" for line in proposal.text.splitlines()))
        else:
            changes = difflib.unified_diff(
                text_before.splitlines(), proposal.text.splitlines(), "now", "then", lineterm=""
            )
            self.output.show(*(f"  {line}" for line in changes))
        self.output.say(*(["What `pulumi up` does to guests:", *proposal.remarks] if proposal.remarks else []))

    def _agrees(self) -> bool:
        """Whether the person says yes; otherwise each line is wanted first.

        :raises Declined: the person says no.
        """
        if self.arguments.yes:
            return True
        question = "Do all of this? (yes, no; ? shows each change)"
        while (answer := self.ask.text(question, "").lower()) not in ("y", "yes", "?"):
            if answer in ("", "n", "no"):
                raise Declined("Nothing was done.")
        return answer != "?"

    def _explain(self, card: Card, preset: Use, *, configured: bool) -> None:
        """Says why a use is preselected."""
        if self.arguments.yes or preset.kind == "none":
            return
        by_id = {guest.id: guest for guest in guests(self.facts)}
        names = ", ".join(str(by_id[number]) for number in preset.guests if number in by_id) or preset.kind
        using = {user.vmid for user in self.facts.users_of(card.place, self.node)}
        using |= set(containers_with(self.facts, card))
        reason = "the settings say so" if configured else "it has the card" if using else "no other guest fits"
        self.output.say(f"{card.key}: preselected for {names}, since {reason}.")

    def _sum_up(self, choices: Choices, backend: str | None) -> None:
        """What the yes is to, in the lines right above it."""
        by_id = {guest.id: str(guest) for guest in guests(self.facts)}
        lines = []
        for card in self.cards:
            use = choices.uses[card.place]
            names = [by_id.get(number, f"new VM {number}") for number in use.guests]
            if use.kind != "none":
                lines.append(f"  {card.key} → {'; '.join(names) or 'the host itself'}")
        here = [self.file.name, f"the stack {self.stack}", *([f"pulumi login {backend}"] if backend else [])]
        self.output.say(
            "",
            "In short:",
            *lines,
            f"  created here: {', '.join(here)}",
            f"  created on {self.access.host.address}: {'your public key' if self.access.install else 'nothing'}",
            "  cards and guests: unchanged until `pulumi up`, which shows its plan and asks",
        )

    # -- Pulumi ----------------------------------------------------------------------------------------------------
    def _backend(self, pulumi: Pulumi) -> str | None:
        """URL of the backend to log in to first; None: the user is logged in."""
        if self.arguments.backend:
            return str(self.arguments.backend)
        if pulumi.backend() is not None:
            return None
        chosen = self.ask.choose(
            "Where should Pulumi keep the stack's state?",
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
            first = self.ask.secret("Passphrase for the stack's secrets (Pulumi asks for it again)")
            if "encryptionsalt:" in text or self.ask.secret("The same passphrase again") == first:
                return first
            self.output.say("They differ.")

    # -- doing -----------------------------------------------------------------------------------------------------
    def _do(self, pulumi: Pulumi, backend: str | None, text: str) -> None:
        say, did = self.output.say, self.output.did
        install = f"your public key put onto {self.access.host.address}"
        login = f"pulumi login {backend}"
        written, made = f"{self.file.name} written", f"the stack {self.stack} created"
        encrypted = "the password put into the settings, encrypted"
        port = self.access.host.ssh.port
        where = f"{self.access.host.address}{f' --port {port}' if port != 22 else ''} --stack {self.stack}"
        self.output.steps(
            [
                *([install] if self.access.install else []),
                *([login] if backend else []),
                *(written, made),
                *([encrypted] if self.access.password else []),
            ],
            f"homelab init {where}",
        )
        say("")
        if self.access.install:
            self._install_key()
            did(install)
        if backend:
            pulumi.login(backend)
            did(login)
        # A folder whose stack it is has settings of it, or at least its salt.
        if not self.before.text:
            pulumi.need_unused_name()
        self._write(text)
        did(written)
        pulumi.make_stack()
        did(made)
        if self.access.password:
            pulumi.set_secret(f"homelab:hosts.{self.name}.ssh.password", self.access.password)
            did(encrypted)
        say("", f"{self.stack} is set up.")
        if self.arguments.preview:
            say(f"pulumi preview --stack {self.stack}:")
            if pulumi.preview(to_errors=bool(self.arguments.json)) != 0:
                say(
                    "The preview failed, and `pulumi up` would fail in the same way. The settings are written; "
                    "correct them, and preview again."
                )
        if pulumi.extra_environment and os.name == "posix":
            say("To type the passphrase only once more in this shell:")
            self.output.show("  read -rs PULUMI_CONFIG_PASSPHRASE; export PULUMI_CONFIG_PASSPHRASE")
        say(f"Next: pulumi up --stack {self.stack}")

    def _install_key(self) -> None:
        """Puts the public key onto the host.

        :raises LoginRefusedError: the key doesn't get in.
        """
        access = self.access
        line = first_contact.make_key(Path(access.install))
        command = first_contact.authorizing_command(line, access.host.ssh.user)
        first_contact.carry_out(access.host, command)
        host = host_at(access.host.address, access.ssh, access.key.line)
        if first_contact.refusal(host, is_first=False) is not None:
            raise LoginRefusedError(
                wanted=f"to log in with the key {access.install}, which was just put onto the host",
                found="refused",
                why="every later run needs it",
                next="look at ~/.ssh/authorized_keys of that user on the host, and at PubkeyAuthentication in "
                "sshd_config; or run it with --no-install-key",
            )

    def _write(self, text: str) -> None:
        """The settings file, whole or not at all."""
        if read_settings(self.file) != self._text_before:
            raise HomelabError(
                wanted=f"{self.file.name} as it was when it was read",
                found="it was changed meanwhile",
                why="what was put in must not be lost",
                next="run homelab init again: it adds to the file as it is now",
            )
        if self.before.example:
            write_settings(self._example_copy, self._text_before)
        write_settings(self.file, text)
