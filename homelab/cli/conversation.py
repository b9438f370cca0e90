"""What `homelab init` asks and does: a host read, its cards given to guests, the plan shown, a project written."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial

from homelab.cards import consoles, resolving, unfit
from homelab.cli import access, project
from homelab.cli.access import Access
from homelab.cli.project import PASSPHRASE
from homelab.cli.pulumi import PLUGIN_SECONDS, Pulumi, installed, selected_stack
from homelab.cli.settings_file import read_settings, write_settings
from homelab.errors import Declined, HomelabError, Mistake, UnreachableError, raise_all
from homelab.facts.host import HostFacts
from homelab.host import gates
from homelab.host.named import named
from homelab.init import cards as init_cards
from homelab.init import draft as init_draft
from homelab.init import new as init_new
from homelab.init import settings as init_settings
from homelab.init.ask import Ask, helps, say, show, to_type
from homelab.init.cards import Card, Use
from homelab.init.draft import Draft
from homelab.init.new import New
from homelab.judged import text as plan_text
from homelab.judged.tree import Tree
from homelab.reading import planning
from homelab.remote import ssh
from homelab.remote.proxmox import guest_address
from homelab.remote.proxmox.api import Api
from homelab.settings import Container, Host, Settings, Vm, parse, stack_file
from homelab.settings import project as project_folder

# What an answer means for a card; `up` would take it with the other cards' uses.
Meant = Callable[[Card, Mapping[Card, Use], Collection[str], str], Use]
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
    file = stack_file.path_of(pulumi.stack)
    state = pulumi.run("whoami", "--verbose").stdout
    if not state:  # nowhere is logged in to
        os.environ[project.BACKEND] = project.LOCAL
    if is_new:
        project.refuse_another(pulumi)
    text_before = read_settings(file)
    own_text = init_settings.without_example(text_before)
    values = init_settings.values_in(own_text)
    before = parse(values, file) if values.get("hosts") else None
    hosts = before.hosts if before else {}

    entry = access.access_to(arguments.address, arguments.host_key, arguments.identity, hosts, ask)
    host = _as_set(entry, own_text, arguments.set, file.name)
    facts = ssh.read(host, guests=True, kernel_log=True)
    node = facts.cluster.node or "pve"
    name = entry.name or init_cards.key_of(node, hosts, "pve")
    say("", f"{node}: Proxmox VE {facts.pve}, kernel {facts.kernel}{facts.cluster.described}")
    say(*([f"  {init_cards.guest(config, facts)}" for config in init_cards.takers(facts)] or [_NO_GUESTS]))
    login = {**entry.login, **init_settings.place(facts, node, name)} if entry.login else {}
    # What is refused whatever the answers are.
    raise_all(gates.check_host(facts))
    owners_key = access.public_key(entry)
    say(*([] if owners_key else [_NO_KEY]))
    vms, containers = before.guests_on(entry.name) if before else ({}, {})
    stack, known = project.stack_of(folder, pulumi.stack), named(vms, containers)

    def offers() -> Mapping[str, New]:
        return init_new.offers(init_new.stock_of(Api(entry.host, facts.cluster.node)), owners_key)

    draft = Draft(name, login, facts, own_text, arguments.set, stack, offers, known)

    @cache
    def planned_of(text: str) -> Tree:
        wanted = draft.of_host(_parsed(init_settings.values_in(text), file.name))
        by_login = wanted.host.model_copy(update={"ssh": entry.host.ssh})
        tree = planning.planned(replace(wanted, host=by_login), facts=facts, is_changed=True)
        raise_all(tree.refusals)
        return tree

    def meant(card: Card, others: Mapping[Card, Use], refused: Collection[str], text: str) -> Use:
        use = init_draft.parse_use(text, card, draft, others, refused)
        try:
            if use.use:
                planned_of(draft.written({**others, card: use}))
        except UnreachableError:
            raise
        except Mistake:  # what is set may be of a guest, or a card, that comes with a later answer
            return use
        except HomelabError as error:
            raise init_draft.refusal(card, use, error) from None
        return use

    guests: list[Vm | Container] = [*vms.values(), *containers.values()]
    has = {key: tuple(one.guest_id for one in guests if key in one.cards) for key in host.gpus}
    given = _given(arguments, host, draft, ask, has, meant)
    if not given and not arguments.set:
        say(*(f"  {key} → {_whom(host.gpus[key].use, ids, facts)}" for key, ids in has.items()))
        change = f" beside these. To change it: homelab init {name} --card CARD=WHO"
        raise Declined(f"No card was given to anybody{change if has else ': there is nothing to set up.'}")
    for card, use in given.items():
        if card.is_nvidia and use.new and use.vms:
            then = f"the driver comes after the first `pulumi up`: `homelab init {name} --card {card.key}={use.new.id}"
            say("", f"VM {use.new.id} ({use.new.name}) isn't made yet: {then} --nvidia`.")
    having = {vm.vmid for vm in vms.values() if vm.nvidia}
    inside = _inside(arguments, host, facts, ask, given, having) if arguments.nvidia or arguments.guest else {}
    text = draft.written(given, inside)
    planned = planned_of(text)
    # No question is left: a card that the settings lack now leaves them.
    raise_all(gates.check(planned.facts, planned.wanted.host, planned.wanted.vms.values())[1])
    say("", "What `pulumi up` will do, after it has shown it and asked:")
    for card, use in given.items():
        made = f"new: {use.new.about}; id {use.new.id}. `pulumi destroy` deletes it with its disks" if use.new else ""
        say(f"  {card.key} → {made or _whom(use.use, (*use.vms, *use.containers), facts)}")
    if (nvidia := planned.wanted.host.nvidia) and not entry.host.nvidia:
        say(f"  NVIDIA's driver {nvidia.driver} is installed on {node}")
    say(*(f"  NVIDIA's driver is installed in VM {vmid}" for vmid in inside))
    say(*(f"  {line}" for line in planned.of_reboot or ["reboot: not needed"]))
    # What was said where it was offered.
    said = [one for card in given if not arguments.card for one in unfit.remarks(facts, f"gpus.{card.key}", card.place)]
    say(*(f"  note: {one}" for one in (*planned.host.remarks, *planned.told_host.met) if one not in said))

    passphrase = _passphrase(ask, text_before + state)
    say("", f"This writes {'a Pulumi project with ' if is_new else ''}{file.name} into {folder}.")
    if entry.install:
        key, user = access.settings_path(entry.install), entry.host.ssh.user
        making = "" if entry.install.exists() else f"makes the SSH key {key}, without a passphrase, and "
        say(f"It {making}puts your public key {key}.pub into {user}'s authorized_keys on {entry.host.address}.")
    while arguments.dry_run or not ask.line(QUESTION, "y" if ask.yes else "n", _agreed, helps("plan")):
        changes = difflib.unified_diff(text_before.splitlines(), text.splitlines(), "now", "then", lineterm="")
        show("", *(f"  {line}" for line in (changes if text_before else text.splitlines())), "")
        say(plan_text.of_plan(planned))
        if arguments.dry_run:
            say("Nothing was done: --dry-run.")
            return

    say(f"Fetching Pulumi's plugin, unless it is there; at most {PLUGIN_SECONDS:g} s ...")
    say(*pulumi.fetch_plugin())
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
    url = next(iter(re.findall(r"Backend URL: (\S+)", state)), project.LOCAL)
    folder_of_state = f"{url.removeprefix('file://').partition('?')[0]}/.pulumi"
    say(
        f"Pulumi keeps its state, which `pulumi destroy` needs, in "
        f"{folder_of_state if url.startswith('file:') else url}.",
        "Next:" if passphrase is None else "Next (without the first line Pulumi asks for the passphrase each time):",
    )
    show(*([] if passphrase is None else [f"  {_setting_it(passphrase)}"]), "  pulumi up --suppress-outputs")


_NO_KEY = "  new-vm and new-container aren't offered: your public key isn't known; set the host's ssh.privateKeyFile."
_NO_GUESTS = "  It has no VM or container yet."


def _setting_it(passphrase: str, *, windows: bool = os.name == "nt") -> str:
    """The shell's line that sets the passphrase for its commands. PowerShell before 7.5 can't set an empty one."""
    if windows and passphrase:
        return f"$env:{PASSPHRASE} = [Net.NetworkCredential]::new('', (Read-Host -AsSecureString)).Password"
    if windows:
        return f'$env:{PASSPHRASE}_FILE = (New-Item -Force "$HOME\\.pulumi\\no-passphrase").FullName'
    return f"read -rs {PASSPHRASE}; export {PASSPHRASE}" if passphrase else f"export {PASSPHRASE}="


def _as_set(entry: Access, text: str, sets: Sequence[str], file: str) -> Host:
    """The host as the settings file's text and `--set` have it, by this run's login; a new one, whose name wasn't read
    yet, is the one that `--set` names.
    """
    named = (one.removeprefix("homelab:").split(".")[1] for one in sets if re.match(r"(homelab:)?hosts\.", one))
    name = entry.name or next(named, "pve")
    # Of a new host nothing is there yet, whoever else has that name.
    merged = init_settings.merged("" if entry.login else text, "config: {}\n", sets, name)
    of_host = {**init_settings.values_in(merged).get("hosts", {}).get(name, {}), **entry.login}
    # The cards are those of the file: `--set` may be about one that comes with an answer.
    host = _parsed({"hosts": {name: {**of_host, "gpus": entry.host.gpus}}}, file).hosts[name]
    return host.model_copy(update={"ssh": entry.host.ssh})


def _parsed(values: Mapping[str, object], file: str) -> Settings:
    try:
        return parse(values)
    except HomelabError as error:
        raise Mistake(str(error.retold(next=f"correct --set, or {file}"))) from None


def _inside(
    arguments: argparse.Namespace, host: Host, facts: HostFacts, ask: Ask, given: Mapping[Card, Use], having: set[int]
) -> dict[int, dict[str, object]]:
    """Logins at the guests of VMs that get NVIDIA's cards, by the VMs' ids (`--nvidia`), as `--guest` or a person says.

    :param having: VMs that are left out: the settings have NVIDIA's software in them.
    """
    vmids = {vmid for card, use in given.items() if card.is_nvidia for vmid in use.vms} - having
    asked = {str(one.id): one for one in init_cards.takers(facts) if one.id in vmids and not one.is_windows}
    said = {vmid: where for vmid, _, where in (one.partition("=") for one in arguments.guest)}
    for vmid in said.keys() - asked.keys():
        raise Mistake(f"--guest {vmid}: no VM that gets NVIDIA's driver; these do: {', '.join(asked) or 'none'}.")
    logins = dict[int, dict[str, object]]()
    for vmid, config in asked.items():
        answer = said.get(vmid, "")
        with suppress(HomelabError):  # no agent, or it doesn't run
            answer = answer or guest_address.asked(Api(host, facts.cluster.node), config.id)
        help_ = helps("guest", vmid=vmid, name=config.name)
        say(*[f"{help_['text']} Without a question: {help_['option']}."] * (vmid not in said))
        question = f"Where does VM {vmid} itself accept SSH? [USER@]ADDRESS or none{answer and f' [{answer}]'}:"
        parsed = partial(access.of_guest, identity=arguments.identity)
        logins[config.id] = Ask(ask.yes or vmid in said).line(question, answer, parsed, help_)
    return {vmid: login for vmid, login in logins.items() if login}


def _given(
    arguments: argparse.Namespace,
    host: Host,
    draft: Draft,
    ask: Ask,
    has: Mapping[str, Collection[int]],
    meant: Meant,
) -> dict[Card, Use]:
    """Who gets which card: by `--card`, else asked, of cards that nobody has.

    :param has: who has one by the settings.
    :param meant: for questions; what `--card` gives is judged by the plan of all.
    """
    facts = draft.facts
    configured = {place: gpu for gpu, place in resolving.resolve(facts, host.gpus)[0].items()}
    all_cards = init_cards.cards(facts, configured)
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
    users = {card: init_cards.users(facts, card) for card in nvidia or all_cards}
    for card in all_cards:
        use = Use()
        if card in named:
            use = _accepted(init_draft.parse_use(named[card], card, draft, given), ask)
        elif card in users and card.place not in configured and not (ask.yes and named):
            taken = {vmid for ids in (*has.values(), *(one.vms for one in given.values())) for vmid in ids}
            answer = init_cards.suggested(facts, card, taken)
            # Where somebody has each card, what is there may be meant to be set up here.
            if not users[card] or all(users.values()):
                called = ", ".join(filter(None, [str(card), consoles.screen(facts, card.place)]))
                say("", f"{card.key}: {called}; {', '.join(users[card]) or 'nobody'} has it.")
                say(*unfit.remarks(facts, "  For VMs", card.place))
                use = _accepted(_asked(ask, draft, answer, partial(meant, card, given)), ask)
            else:
                having = ", ".join(users[card])
                say(f"{card.key} ({card}) stays with {having}; --card {card.key}={answer} sets it up here.")
        if use.use:
            given[card] = use
    return given


def _asked(ask: Ask, draft: Draft, suggested: str, parsed: Callable[[Collection[str], str], Use]) -> Use:
    """Who gets a card: asked until `up` would take the answer. Where there is no guest yet, all answers are shown, and
    what the person must mend first for a VM, or for the host and containers."""
    is_bare, refused = not init_cards.takers(draft.facts), list[str]()
    own = [answer for answer in draft.new if ":" not in answer] if is_bare else []  # another file makes no difference
    for answer in dict.fromkeys([*(["host", init_cards.READY, *own] if is_bare else []), suggested]):
        if refused and draft.alike.get(answer) in refused:
            continue
        try:
            parsed(refused, answer)
        except Mistake as mistake:
            say(f"  {mistake}")
            refused.append(answer)
    say(*([f"  {init_draft.answers(draft, refused)}"] if is_bare else []))
    suggested = "nobody" if suggested in refused else suggested  # what `up` refuses isn't preselected
    question = f"Who gets it? A VM, containers, host or nobody; ? helps [{suggested}]:"
    return ask.line(question, suggested, partial(parsed, refused), helps("card"))


def _accepted(use: Use, ask: Ask) -> Use:
    """The use, if the person accepts what opens its gate. Where nobody is asked, `--set` does, or the plan refuses."""
    say(*(f"  note: {line}" for line in use.notes))
    if use.refused is None or ask.yes:
        return replace(use, more={})
    say(f"{use.refused.found}: {use.refused.why}.")
    sets = " ".join(f'--set "gpus.CARD.{key}={init_settings.flow(value)}"' for key, value in use.more.items())
    help_ = helps("setting", sets=sets, otherwise=to_type(use.refused.next))
    return use if ask.confirm(f"Give it all the same ({', '.join(use.more)})?", help_) else Use()


def _whom(use: str, ids: Collection[int], facts: HostFacts) -> str:
    guests = [init_cards.guest(config, facts) for config in init_cards.takers(facts) if config.id in ids]
    alone = {"host": "the host itself", "vm": "ready for VMs, and tried in a small one"}
    return f"{'in turn: ' if use == 'shared' else ''}{'; '.join(guests) or alone.get(use, 'nobody so far')}"


def _passphrase(ask: Ask, known: str) -> str | None:
    """The passphrase for a new stack; None: it takes none, or has it from the environment.

    :param known: the settings file's text, and what `pulumi whoami` says.
    """
    if any(name in os.environ for name in _PASSPHRASES) or any(word in known for word in _HAVE_A_KEY):
        return None
    if ask.yes:
        return ""
    say("", "Pulumi encrypts secrets, in the settings file and in its state, with a passphrase of your choice.")
    question = "A passphrase for Pulumi's secrets (Enter: none; ? helps)"
    help_ = helps("passphrase")
    while (first := ask.secret(question, help_)) and ask.secret("Again", help_) != first:
        say("That was another one.")
    return first


def _agreed(answer: str) -> bool:
    if answer.lower() not in ("y", "yes", "?"):
        raise Declined("Nothing was done.")
    return answer != "?"
