"""What `homelab init` asks and does: a host read, its cards given to guests, the plan shown, a project written."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence
from dataclasses import replace

from homelab.cli import access, project
from homelab.cli.access import Access
from homelab.cli.project import PASSPHRASE
from homelab.cli.pulumi import Pulumi, installed, selected_stack
from homelab.cli.settings_file import read_settings, write_settings
from homelab.cli.whereabouts import guests_on
from homelab.errors import HomelabError
from homelab.host import consoles, gates
from homelab.host.facts import HostFacts
from homelab.init import cards as init_cards
from homelab.init import settings as init_settings
from homelab.init.ask import Ask, Declined, Mistake, say, show
from homelab.init.cards import Card, Use
from homelab.remote import planning, ssh
from homelab.settings import Settings, parse
from homelab.settings import project as project_folder

_PASSPHRASES = (PASSPHRASE, f"{PASSPHRASE}_FILE")
QUESTION = "Go on? [y/N, ? shows the file and the whole plan]"
# In a stack's file, or what `pulumi whoami` says of a backend that keeps the keys to secrets itself.
_HAVE_A_KEY = ("encryptionsalt:", "secretsprovider:", "https://")


def hold(arguments: argparse.Namespace, ask: Ask, done: list[str]) -> None:
    """Holds it.

    :param done: gets the steps that are done.
    :raises Declined: the person doesn't want it, or there is nothing to do.
    :raises Mistake: an option can't be taken.
    :raises HomelabError: the host or Pulumi refuses.
    """
    folder = project_folder()
    is_new = not (folder / "Pulumi.yaml").exists()
    project.check(folder)
    pulumi = Pulumi(installed(), folder, arguments.stack or selected_stack(folder))
    file = folder / f"Pulumi.{pulumi.stack.rpartition('/')[2]}.yaml"
    state = pulumi.run("whoami", "--verbose").stdout
    if not state:  # nowhere is logged in to
        os.environ[project.BACKEND] = project.LOCAL
    if is_new:
        project.refuse_another(pulumi)
    text_before = read_settings(file)
    own_text = init_settings.without_example(text_before)
    values = init_settings.values_in(own_text)
    hosts = parse(values).hosts if values.get("hosts") else {}

    entry = access.access_to(arguments.address, arguments.host_key, arguments.identity, hosts, ask)
    facts = ssh.read(entry.host, guests=True, lspci=True, kernel_log=True)
    node = facts.cluster.node or "pve"
    name = entry.name or init_cards.key_of(node, hosts, "pve")
    say("", f"{node}: Proxmox VE {facts.pve}, kernel {facts.kernel}{facts.cluster.described}")
    takers = init_cards.takers(facts)
    say(*([f"  {init_cards.guest(config, facts)}" for config in takers] or [_NO_GUESTS]))
    given = _given(arguments, entry, facts, ask)
    if not given and not arguments.set:
        raise Declined("No card was given to anybody: there is nothing to set up.")
    login = {**entry.login, **init_settings.place(facts, node, name)} if entry.login else {}
    more = init_settings.addition(name, login, given, facts, values)
    text = init_settings.merged(own_text, more, arguments.set, name)
    try:
        settings = parse(init_settings.values_in(text))
    except HomelabError as error:
        raise error.retold(next=f"correct {'--set, or ' if arguments.set else ''}{file.name}") from None
    planned = _planned(name, entry, settings, facts, project.stack_of(folder, pulumi.stack))
    host = settings.hosts[name]
    say("", "What `pulumi up` will do, after it has shown it and asked:")
    say(*(f"  {card.key} → {_whom(use, facts)}" for card, use in given.items()))
    if host.nvidia and "nvidia" not in values.get("hosts", {}).get(name, {}):
        say(f"  NVIDIA's driver {host.nvidia.driver} is installed on {node}")
    say(f"  reboot: {planned.reboot.in_short(planned.want.gpus)}")
    say(*(f"  note: {remark}" for remark in planned.remarks))

    passphrase = _passphrase(ask, text_before + state)
    say("", f"This writes {'a Pulumi project with ' if is_new else ''}{file.name} into {folder}.")
    if entry.install:
        key = f"{access.settings_path(entry.install)}.pub"
        say(f"It puts your public key {key} into {entry.host.ssh.user}'s authorized_keys on {entry.host.address}.")
    while arguments.dry_run or not ask.line(QUESTION, "y" if ask.yes else "n", _agreed):
        changes = difflib.unified_diff(text_before.splitlines(), text.splitlines(), "now", "then", lineterm="")
        show("", *(f"  {line}" for line in (changes if text_before else text.splitlines())), "")
        show(planned.text(name, host))
        if arguments.dry_run:
            say("Nothing was done: --dry-run.")
            return

    if entry.install:
        access.installed(entry)
        done.append("your public key is on the host")
    if is_new:
        project.make(folder, None if state else project.LOCAL)
        done.append(f"a project in {folder}")
    if text_before != read_settings(file):
        raise Mistake(f"{file.name} was changed meanwhile: run it again, and it adds to the file as it is now.")
    write_settings(file, text)
    done.append(f"{file.name} is written")
    os.environ.update({} if passphrase is None else {PASSPHRASE: passphrase})
    pulumi.make_stack()
    if passphrase is not None:
        say("Pulumi asks for the passphrase at each command; where this line has run, it doesn't:")
        show(f"  {_setting_it(passphrase)}")
    say("Next: pulumi up --suppress-outputs")


_NO_GUESTS = "  It has no VM or container yet. `pulumi up` can make one: homelab's examples/settings/new-vm.yaml."


def _setting_it(passphrase: str, *, windows: bool = os.name == "nt") -> str:
    """The shell's line that sets the passphrase for its commands. PowerShell before 7.5 can't set an empty one."""
    if windows and passphrase:
        return f"$env:{PASSPHRASE} = [Net.NetworkCredential]::new('', (Read-Host -AsSecureString)).Password"
    if windows:
        return f'$env:{PASSPHRASE}_FILE = (New-Item -Force "$HOME\\.pulumi\\no-passphrase").FullName'
    return f"read -rs {PASSPHRASE}; export {PASSPHRASE}" if passphrase else f"export {PASSPHRASE}="


def _given(arguments: argparse.Namespace, entry: Access, facts: HostFacts, ask: Ask) -> dict[Card, Use]:
    """Who gets which card: by `--card`, else asked, of cards that nobody has."""
    configured = {place: gpu for gpu, place in gates.resolve(facts, entry.host.gpus)[0].items()} if entry.name else {}
    all_cards = init_cards.cards(facts, configured)
    node = facts.cluster.node or "pve"
    named: dict[Card, str] = {}
    for text in arguments.card:
        which, _, who = text.partition("=")
        found = [card for card in all_cards if which.strip().lower() in card.names]
        if len(found) != 1:
            known = ", ".join(f"{card.key} ({card})" for card in all_cards) or "none"
            raise Mistake(f"--card {text}: {len(found)} of that name; the host has {known}")
        named[found[0]] = who
    given: dict[Card, Use] = {}
    nvidia = [card for card in all_cards if card.is_nvidia]
    users = {card: init_cards.users(facts, card, node) for card in nvidia or all_cards}
    for card in all_cards:
        use = Use()
        if card in named:
            use = _accepted(init_cards.parse_use(named[card], card, facts, entry.host), card, entry, facts, ask)
        elif card in users and card.place not in configured and not (ask.yes and named):
            # Where somebody has each card, what is there may be meant to be set up here.
            if not users[card] or all(users.values()):
                use = _asked(card, users[card], entry, facts, ask, arguments.set)
            else:
                answer = init_cards.suggested(facts, card, node)
                having = ", ".join(users[card])
                say(f"{card.key} ({card}) stays with {having}; --card {card.key}={answer} sets it up here.")
        if use.use:
            given[card] = use
    return given


def _asked(card: Card, users: Sequence[str], entry: Access, facts: HostFacts, ask: Ask, sets: Sequence[str]) -> Use:
    def parsed(text: str) -> Use:
        use = init_cards.parse_use(text, card, facts, entry.host)
        for vmid in () if sets else use.vms:  # what is set may be what a VM lacks
            for error in init_cards.judged(vmid, card, facts).refusals:
                raise Mistake(f"{error.found}; {error.next}")
        return use

    suggested = init_cards.suggested(facts, card, facts.cluster.node or "pve")
    screen = ", the host's screen" if consoles.screens(facts, facts.functions(card.place)) else ""
    say("", f"{card.key}: {card}{screen}; {', '.join(users) or 'nobody'} has it.")
    try:
        parsed(suggested)
    except Mistake as mistake:  # what `up` refuses isn't preselected
        say(f"  not for {suggested}: {mistake}")
        suggested = "nobody"
    question = f"Who gets it? A VM's number, containers' numbers, host or nobody [{suggested}]:"
    return _accepted(ask.line(question, suggested, parsed), card, entry, facts, ask)


def _accepted(use: Use, card: Card, entry: Access, facts: HostFacts, ask: Ask) -> Use:
    """The use, if the person accepts what opens its gate. Where nobody is asked, `--set` does, or the plan refuses."""
    say(*(f"  note: {line}" for vmid in use.vms for line in init_cards.judged(vmid, card, facts).met))
    error = init_cards.refusal(facts, card, entry.host, use)
    if error is None or ask.yes:
        return replace(use, more={})
    say(f"{error.found}: {error.why}.")
    return use if ask.confirm(f"Give it all the same ({', '.join(use.more)})?") else Use()


def _planned(name: str, entry: Access, settings: Settings, facts: HostFacts, stack: str) -> planning.Planned:
    """The plan of the settings, as a preview makes it; by this run's login.

    :param stack: PROJECT/STACK.
    :raises HomelabError: all that `up` would refuse.
    """
    host = settings.hosts[name]
    login = host.model_copy(update={"ssh": entry.host.ssh})
    return planning.planned(name, login, *guests_on(settings, name, host, facts), stack=stack)


def _whom(use: Use, facts: HostFacts) -> str:
    ids = (*use.vms, *use.containers)
    guests = [init_cards.guest(config, facts) for config in init_cards.takers(facts) if config.id in ids]
    return f"{'in turn: ' if use.use == 'shared' else ''}{'; '.join(guests) or 'the host itself'}"


def _passphrase(ask: Ask, known: str) -> str | None:
    """The passphrase for a new stack; None: it takes none, or has it from the environment.

    :param known: the settings file's text, and what `pulumi whoami` says.
    """
    if any(name in os.environ for name in _PASSPHRASES) or any(word in known for word in _HAVE_A_KEY):
        return None
    if ask.yes:
        return ""
    while (first := ask.secret("A passphrase for Pulumi's secrets (Enter: none)")) and ask.secret("Again") != first:
        say("That was another one.")
    return first


def _agreed(answer: str) -> bool:
    if answer.lower() not in ("y", "yes", "?"):
        raise Declined("Nothing was done.")
    return answer != "?"
