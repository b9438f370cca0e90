"""What `homelab init` writes into a stack's settings file: text with comments, in which what a person may want next
stands ready to be switched on. In a file that exists, comments and order stay."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark, YAMLError
from ruamel.yaml.tokens import CommentToken

from homelab.errors import Mistake
from homelab.facts.host import HostFacts
from homelab.fields.types import is_name
from homelab.init.cards import Card, Use, guest_key, in_vm, mapping_of
from homelab.nvidia.checks import fitting_cudas, fitting_drivers
from homelab.nvidia.request import Request, SystemFacts
from homelab.settings import Host, Nvidia, Settings, stack_file
from homelab.text import clean

HEAD = """# yaml-language-server: $schema=docs/config.schema.json
# `homelab init` wrote this file; run it again to add a card. An editor that knows the schema above explains each key.
"""
# Keys of a host that aren't keys of the whole configuration, too.
_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n", "~")
_OF_A_HOST = {str(field.alias) for field in Host.model_fields.values()} - {
    str(field.alias) for field in Settings.model_fields.values()
}


def values_in(text: str) -> dict[str, Any]:
    """A file's values under `homelab:`, by key without that, as Pulumi reads them.

    :raises Mistake: it isn't YAML.
    """
    try:
        return dict(stack_file.readable(stack_file.values_of(stack_file.parsed(text))))
    except yaml.YAMLError as error:
        raise Mistake(f"The settings file isn't one of Pulumi's: {error}. Correct it, or take another stack.") from None


def without_example(text: str) -> str:
    """A file's text; of the project's example, which nobody has filled in, only what Pulumi has added to it."""
    if "FILL+IN" not in text:
        return text
    return "".join(line for line in text.splitlines(keepends=True) if re.match("encrypt|secretsprovider", line))


def flow(value: Any) -> str:
    """A value on one line of YAML. Texts are in quotes where another reader might take them for something else."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z~][\w./~@ +=-]*|\d+(\.\d+){3}", value)
    return value if plain and value.lower() not in _WORDS else json.dumps(value)


def place(facts: HostFacts, node: str, name: str) -> dict[str, str]:
    """What the settings of a new host say of its place: the node's name, where it isn't the host's, and its cluster,
    where that has a name that the settings take."""
    cluster = facts.cluster.name if is_name(facts.cluster.name) else ""
    return {**({"node": node} if node != name else {}), **({"cluster": cluster} if cluster else {})}


def addition(
    name: str,
    login: Mapping[str, Any],
    given: Mapping[Card, Use],
    facts: HostFacts,
    before: Any,
    inside: Mapping[int, Mapping[str, object]] = {},
) -> str:
    """The settings that give cards to their guests, as a file's text.

    :param name: the host's in the settings.
    :param login: `address`, `ssh` and `node` of a host that isn't in the settings yet.
    :param before: the file's values under `homelab:`, by key without that.
    :param inside: `address` and `ssh` of the guests that get NVIDIA's driver, by their VMs' ids.
    """
    if not given and not login:
        return "config: {}\n"
    host = before.get("hosts", {}).get(name, {})
    own_gpus, mappings = host.get("gpus", {}), dict[str, str]()
    lines = ["config:", "  homelab:hosts:", f"    {name}:"]
    for key, value in login.items():
        block = isinstance(value, Mapping)
        lines += [f"      {key}:{'' if block else ' ' + flow(value)}"]
        lines += [f"        {inner}: {flow(item)}" for inner, item in value.items()] if block else []
    lines += [] if "nvidia" in host else _driver(given, facts)
    lines += ["      gpus:"] if given else []
    for card, use in given.items():
        found = {} if card.key in own_gpus else card.find
        mapping = mapping_of(card, use.vms, facts)
        by_hand = {"mapping": mapping} if mapping != card.key else {}
        gpu = {**found, **by_hand, "use": use.use, **use.more}
        mappings[card.key] = {**own_gpus.get(card.key, {}), **gpu}.get("mapping") or card.key
        lines.append(f"        {card.key}: {flow(gpu)} # {card}")
    keys = {card.key for card in given}
    taken = [*before.get("vms", ()), *before.get("containers", ())]
    for section, id_key in (("vms", "vmid"), ("containers", "ctid")):
        entries = {key: entry for key, entry in before.get(section, {}).items() if entry.get("host") == name}
        names = {entry.get(id_key): key for key, entry in entries.items()}
        getting = {number: key for number, key in names.items() if keys & {*map(_card, entries[key].get("gpus") or ())}}
        for number in (number for use in given.values() for number in getattr(use, section) if number not in getting):
            getting[number] = names.get(number) or guest_key(number, facts, taken, section[:2])
            taken.append(getting[number])
        lines += [f"  homelab:{section}:"] if getting else []
        for number, key in getting.items():
            cards = [card for card, use in given.items() if number in getattr(use, section)]
            kept = [use for use in entries.get(key, {}).get("gpus") or () if _card(use) not in keys]
            taken_over = [
                card for card in cards if section == "vms" and in_vm(number, card, mappings[card.key], facts).take_over
            ]
            new = [{"gpu": card.key, "takeOver": True} if card in taken_over else card.key for card in cards]
            lines.append(f"    {key}:")
            if key not in entries:
                lines += [f"      host: {name}", f"      {id_key}: {number}"]
            if key not in entries or number in inside:
                lines += _software(section, number, cards, facts, inside.get(number, {}))
            lines.append(f"      gpus: {flow([*kept, *new])}")
    return "\n".join(lines) + "\n"


def _card(use: Any) -> str:
    return str(use.get("gpu") if isinstance(use, Mapping) else use)


def _driver(given: Mapping[Card, Use], facts: HostFacts) -> list[str]:
    """The host's settings of drivers: of NVIDIA's where a card stays with the host, behind `#` where it has one."""
    staying = {card: use for card, use in given.items() if use.use in ("lxc", "shared", "host")}
    functions = [device for card in staying for device in facts.functions(card.place)]
    lines = []
    if any(facts.kept_by_hand(device) or facts.named_at_next_boot(device) for device in functions):
        lines.append("      takeOver: true # the host's driver gets what settings of your own keep from it")
    if ids := tuple(card.id for card in staying if card.is_nvidia):
        driver = next(iter(fitting_drivers(Request("host", Nvidia(), SystemFacts(cards=ids)))), "580")
        loaded, in_turn = facts.nvidia.version, any(use.use == "shared" for use in staying.values())
        needed = "NVIDIA's driver on the host: what stays there can't be used without it"
        line = f"nvidia: {flow({'driver': driver})}"
        lines += (
            [f"      {line} # {needed}"]
            if in_turn or not loaded
            else [f"      # {line} # in place of {loaded}, which is loaded, and stays"]
        )
    return lines


def _software(
    section: str, number: int, cards: Iterable[Card], facts: HostFacts, inside: Mapping[str, object]
) -> list[str]:
    """NVIDIA's software inside a guest: in a running container the driver's libraries; in a VM's guest that can be
    logged in to the driver; all else behind `#`."""
    ids = tuple(card.id for card in cards if card.is_nvidia)
    config = facts.guests.config(number)
    if not ids or (config and config.is_windows):
        return []
    driver = next(iter(fitting_drivers(Request("vm", Nvidia(), SystemFacts(cards=ids)))), "580")
    cuda = next(iter(fitting_cudas(Request("vm", Nvidia(driver=driver), SystemFacts(cards=ids)))), "12.8")
    more = {"cuda": cuda, "containerToolkit": "docker"}
    if section == "containers":
        off = "" if number in facts.guests.running else "# "
        return [f"      {off}nvidia: {{}} # the driver's libraries; to compile, and for Docker in it: {flow(more)}"]
    if inside:
        software = {**inside, "nvidia": {"driver": driver}}
        return [f"      {key}: {flow(value)}" for key, value in software.items()]
    login = '{user: root, hostKey: "ssh-ed25519 AAAA…", privateKeyFile: ~/.ssh/id_ed25519}'
    return [
        "      # NVIDIA's software in this VM, over SSH (cuda and containerToolkit only if you want them):",
        "      # address: 192.168.0.50",
        f"      # ssh: {login}",
        f"      # nvidia: {flow({'driver': driver, **more})}",
    ]


def merged(text: str, more: str, sets: Sequence[str], host: str) -> str:
    """A file's text with the settings of another; what stands there already stays as it is written.

    :param sets: `PATH=VALUE` each (`--set`).
    :raises Mistake: the file isn't YAML; or one of `sets` isn't of that form.
    """
    round_trip = YAML()
    round_trip.preserve_quotes, round_trip.width = True, 2**20
    round_trip.indent(mapping=2, sequence=4, offset=2)
    try:
        if not round_trip.load(text):  # a new file, or one with nothing but comments, or Pulumi's empty one
            text = (re.sub(r"^{}\s*", "", text, flags=re.MULTILINE) or clean(HEAD)) + more
        whole = round_trip.load(text.replace("\r\n", "\n"))
        if isinstance(whole, CommentedMap) and whole.get("config") is None:
            whole["config"] = CommentedMap()
        _merge(whole, round_trip.load(more))
        for each in sets:
            _merge(whole, _setting(each, host))
    except YAMLError as error:
        at = str(error).replace("\n", " ")
        raise Mistake(
            f"The settings file can't be added to: {at}. Correct it, or take another stack (--stack)."
        ) from None
    if not sets and text.endswith(more):
        return text
    out = io.StringIO()
    round_trip.dump(whole, out)
    return out.getvalue().replace("\n", "\r\n" if "\r\n" in text else "\n")


def _merge(into: Any, more: CommentedMap) -> None:
    if not isinstance(into, CommentedMap) or into.yaml_anchor():
        raise YAMLError("something else than keys with values, or an anchor (&) whose aliases would change, too")
    for key, value in more.items():
        old = into.get(key)
        if isinstance(value, CommentedMap) and old:
            _merge(old, value)
        elif isinstance(value, CommentedSeq) and value and old:
            _update(into, key, value)
        elif key not in into or old != value:
            follows = _cut(into, key if key in into else next(reversed(list(into)), None))
            into[key] = value
            if into.fa.flow_style() and isinstance(value, CommentedMap):
                value.ca.comment = None
            elif old is None and key in more.ca.items:
                into.ca.items[key] = more.ca.items[key]
            _add(into, key, follows)


def _update(into: CommentedMap, key: str, items: CommentedSeq) -> None:
    """Changes a list in its place: what stays keeps its comments."""
    old, follows = into[key], _cut(into, key)
    for index in reversed([index for index, item in enumerate(old) if item not in items]):
        del old[index]
    old.extend(item for item in items if item not in old)
    _add(into, key, follows)


def _end(node: Any, key: Any) -> tuple[Any, Any]:
    """The innermost collection whose last value ends where a value ends, and that one's key: it has the comments."""
    while isinstance(node[key], CommentedMap | CommentedSeq) and node[key] and not node[key].fa.flow_style():
        node = node[key]
        key = list(node)[-1] if isinstance(node, CommentedMap) else len(node) - 1
    return node, key


def _cut(node: CommentedMap, key: Any) -> str:
    """Takes off the lines of comments behind a value, which belong to what follows it."""
    node, key = _end(node, key) if key is not None else (node, key)
    token = next((token for token in node.ca.items.get(key) or () if isinstance(token, CommentToken)), None)
    if token is None:
        return ""
    own, _, follows = token.value.partition("\n")
    token.value = f"{own}\n"
    return str(follows)


def _add(node: CommentedMap, key: Any, follows: str) -> None:
    node, key = _end(node, key)
    slots = node.ca.items.setdefault(key, [None] * 4)
    place = 2 if isinstance(node, CommentedMap) else 0
    if slots[place] is not None:
        slots[place].value += follows
    elif follows:
        slots[place] = CommentToken(f"\n{follows}", CommentMark(0), None)


def _setting(text: str, host: str) -> CommentedMap:
    """`vms.sandbox.machine=q35` as a file's settings."""
    path, equals, value = text.partition("=")
    parts = path.removeprefix("homelab:").split(".")
    if parts[0] in _OF_A_HOST:  # as refusals name it: gpus.rtx5090.allowConsole
        parts = ["hosts", host, *parts]
    if not equals or not all(parts):
        raise Mistake(
            f"--set {text}: write PATH=VALUE, such as vms.sandbox.machine=q35; docs/settings.md has the paths"
        )
    node: Any = YAML().load(value)
    for part in ("config", f"homelab:{parts[0]}", *parts[1:])[::-1]:
        node = CommentedMap({part: node})
    return CommentedMap(node)
