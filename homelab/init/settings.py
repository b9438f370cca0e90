"""What `homelab init` writes into a stack's settings file: text with comments, in which what a person may want next
stands ready to be switched on. In a file that exists, comments and order stay."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from homelab.errors import Mistake
from homelab.facts.host import HostFacts
from homelab.fields.types import is_name
from homelab.init.cards import Card, Use, guest_key, is_taken_over, mapping_of
from homelab.init.new import New
from homelab.nvidia.checks import fitting_cudas, fitting_drivers
from homelab.nvidia.request import Request
from homelab.settings import Host, Nvidia, Settings, stack_file
from homelab.text import clean

_USUAL_KEY = {"privateKeyFile": "~/.ssh/id_ed25519"}
HEAD = """# yaml-language-server: $schema=docs/config.schema.json
# `homelab init` wrote this file; run it again to add a card. An editor that knows the schema above explains each key.
"""
# Keys of a host that aren't keys of the whole configuration, too.
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
        raise Mistake(f"The settings file: {stack_file.not_yaml(error)}. Correct it, or take another stack.") from None


def without_example(text: str) -> str:
    """A file's text; of the project's example, which nobody has filled in, only what Pulumi has added to it."""
    if "FILL+IN" not in text:
        return text
    return "".join(line for line in text.splitlines(keepends=True) if re.match("encrypt|secretsprovider", line))


def flow(value: Any) -> str:
    """A value on one line of YAML. Texts are in quotes where another reader might take them for something else."""
    in_brackets: str = yaml.dump(
        [value],
        Dumper=stack_file.Writer,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=2**20,
    )
    return in_brackets[1:-2] if in_brackets.count("\n") == 1 else json.dumps(value, ensure_ascii=False)


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
    new = {use.new.id: use.new for use in given.values() if use.new}
    downloads = {file: about for one in new.values() for file, about in one.downloads.items()}
    lines += ["      downloads:"] if downloads else []
    lines += [f"        {file}: {flow(about)}" for file, about in downloads.items()]
    lines += ["      gpus:"] if given else []
    for card, use in given.items():
        found = {} if card.key in own_gpus else card.find
        mapping = mapping_of(card, use.vms, facts)
        by_hand = {"mapping": mapping} if mapping != card.key else {}
        tried = {"passthroughTest": True} if use.use == "vm" and not use.vms else {}
        gpu = {**found, **by_hand, "use": use.use, **tried, **use.more}
        mappings[card.key] = {**own_gpus.get(card.key, {}), **gpu}.get("mapping") or card.key
        lines.append(f"        {card.key}: {flow(gpu)} # {card}")
    ssh = {**host, **login}.get("ssh", {})
    same = {"ssh": {key: ssh[key] for key in ("privateKeyFile", "agent") if key in ssh} or _USUAL_KEY}
    keys = {card.key for card in given}
    taken = [*before.get("vms", ()), *before.get("containers", ())]
    for section, id_key in (("vms", "vmid"), ("containers", "ctid")):
        entries = {key: entry for key, entry in before.get(section, {}).items() if entry.get("host") == name}
        names = {entry.get(id_key): key for key, entry in entries.items()}
        getting = {number: key for number, key in names.items() if keys & {*map(_card, entries[key].get("gpus") or ())}}
        for number in (number for use in given.values() for number in getattr(use, section) if number not in getting):
            getting[number] = names.get(number) or guest_key(number, facts, taken, section[:2], new.get(number))
            taken.append(getting[number])
        lines += [f"  homelab:{section}:"] if getting else []
        for number, key in getting.items():
            cards = [card for card, use in given.items() if number in getattr(use, section)]
            kept = [use for use in entries.get(key, {}).get("gpus") or () if _card(use) not in keys]
            taken_over = [
                card for card in cards if section == "vms" and is_taken_over(number, card, mappings[card.key], facts)
            ]
            uses = [{"gpu": card.key, "takeOver": True} if card in taken_over else card.key for card in cards]
            lines.append(f"    {key}:")
            if key not in entries:
                lines += [f"      host: {name}", f"      {id_key}: {number}"]
            if key not in entries or number in inside:
                lines += _software(section, number, cards, facts, inside.get(number, same), new.get(number))
            lines.append(f"      gpus: {flow([*kept, *uses])}")
            if key not in entries and number in new:
                lines.append("      create: # Proxmox VE's own keys, as qm and pct take them")
                lines += [f"        {name}: {flow(value)}" for name, value in new[number].create.items()]
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
        driver, _ = _fitting(ids)
        off, why = "", "NVIDIA's driver on the host: what stays there can't be used without it"
        if (loaded := facts.nvidia.version) and all(use.use != "shared" for use in staying.values()):
            off, why = "# ", f"in place of {loaded}, which is loaded, and stays"
        lines.append(f"      {off}nvidia: {flow({'driver': driver})} # {why}")
    return lines


def _fitting(cards: tuple[str, ...]) -> tuple[str, list[str]]:
    """The branch of NVIDIA's driver to propose for cards, and the releases of CUDA that go with it."""
    request = Request.of("host", Nvidia(), cards=cards)
    driver = next(iter(fitting_drivers(request)), "580")
    return driver, fitting_cudas(request.trial(driver=driver))


def _software(
    section: str, number: int, cards: Iterable[Card], facts: HostFacts, login: Mapping[str, Any], new: New | None
) -> list[str]:
    """NVIDIA's software inside a guest: in a container that runs, or is made of a known system, the driver's libraries;
    in a VM's guest that can be logged in to the driver; all else behind `#`.

    :param login: of such a guest; without `address` what is proposed in its place.
    """
    ids = tuple(card.id for card in cards if card.is_nvidia)
    config = facts.guests.config(number)
    if not ids or (config and config.is_windows):
        return []
    driver, cudas = _fitting(ids)
    more = {"cuda": cudas[0], "containerToolkit": "docker"} if cudas else {"containerToolkit": "docker"}
    if section == "containers":
        is_made = new is not None and "ostype" in new.create
        off = "" if is_made or (number in facts.guests.running and not (config and config.nvidia_mounts)) else "# "
        return [f"      {off}nvidia: {{}} # the driver's libraries; to compile, and for Docker in it: {flow(more)}"]
    if "address" in login:
        software = {**login, "nvidia": {"driver": driver}}
        return [f"      {key}: {flow(value)}" for key, value in software.items()]
    user = new.create.get("ciuser", "root") if new else "root"
    proposed = {"user": user, "hostKey": "ssh-ed25519 AAAA…", **login["ssh"]}
    return [
        "      # NVIDIA's software in this VM, over SSH (cuda and containerToolkit only if you want them):",
        "      # address: 192.168.0.50 # as your router's leases name it; or `agent`, with qemu-guest-agent in it",
        f"      # ssh: {flow(proposed)}",
        f"      # nvidia: {flow({'driver': driver, **more})}",
    ]


class _Loader(stack_file.Loader):
    """Takes each key for a text, as Pulumi does, and refuses one that is there twice."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in names[:number]:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} has the key {key.value} a second time")
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = self.DEFAULT_SCALAR_TAG
        return node


def merged(text: str, more: str, sets: Sequence[str], host: str) -> str:
    """A file's text with the settings of another; what stands there already stays as it is written, with its comments
    but for those in a list of which something goes.

    :param sets: `PATH=VALUE` each (`--set`).
    :raises Mistake: the file isn't YAML, or of another form; or one of `sets` isn't of that form.
    """
    changed = text.replace("\r\n", "\n")
    if changed[-1:] not in ("", "\n"):
        changed += "\n"
    try:
        for part in (more, *(_setting(each, host) for each in sets)):
            changed = _with(changed, part)
    except yaml.YAMLError as error:
        at = str(error).replace("\n", " ")
        raise Mistake(
            f"The settings file can't be added to: {at}. Correct it, or take another stack (--stack)."
        ) from None
    return changed.replace("\n", "\r\n") if "\r\n" in text else changed


def _with(text: str, more: str) -> str:
    """A file's text with the settings of one other text.

    :raises yaml.YAMLError: it isn't YAML, or has a form, such as an alias, in which it would say something else.
    """
    now = stack_file.parsed(text, _Loader) or {}
    wanted = _together(now, stack_file.parsed(more, _Loader))
    if not now:  # a new file, or one with nothing but comments, or Pulumi's empty one
        changed = (re.sub(r"^{}\s*", "", text, flags=re.MULTILINE) or clean(HEAD)) + more
    else:
        changed = text
        nodes = [yaml.compose(one, _Loader) for one in (text, more)]
        edits = _edits(text, nodes[0], now, wanted, more, nodes[1])
        for start, end, put in reversed(sorted(edits, key=lambda edit: edit[0])):
            changed = f"{changed[:start]}{put}{changed[end:]}"
    try:
        if stack_file.parsed(changed, _Loader) == wanted:
            return changed
    except yaml.YAMLError:
        pass  # its message would tell of a line that isn't in the file
    shared = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
    form = "an alias (*), whose value two places share" if shared else "a form of YAML that isn't known here"
    raise yaml.YAMLError(f"it has {form}")


def _together(now: Any, more: Any) -> Any:
    if not isinstance(more, Mapping) or not now:
        return more
    if not isinstance(now, Mapping):
        raise yaml.YAMLError(f"something else than keys with values, where {', '.join(more)} belongs")
    return {**now, **{key: _together(now.get(key), value) for key, value in more.items()}}


def _edits(
    text: str, node: Any, now: Mapping[str, Any], wanted: Mapping[str, Any], more: str, added: Any
) -> Iterator[tuple[int, int, str]]:
    """What is put into a file's text between which places.

    :param node: a mapping in it, which has keys and says what is `now`.
    :param wanted: what it is to say.
    :param added: the mapping in `more` that says what is new.
    """
    here = {key.value: (key, value) for key, value in node.value}
    # In front of a mapping may be a tag, and in front of its first key `?`.
    column = min(node.start_mark.column, node.value[0][0].start_mark.column)
    # What is further inside comes first, as both may come to one place.
    for key, value in sorted(added.value, key=lambda pair: pair[0].value not in here):
        name = key.value
        old: Any = here[name][1] if name in here else None
        if name not in here and node.flow_style:
            at, item = node.end_mark.index - 1, f"{flow(name)}: {flow(wanted[name])}"
            has_comma = "," in re.sub("#.*", "", text[_end(text, node.value[-1][1]) : at])
            yield at, at, f" {item}," if has_comma else f", {item}"
        elif name not in here:
            block = more[key.start_mark.index - key.start_mark.column : _end_of_line(more, value)]
            lines = f"{name}: {flow(wanted[name])}" if added.flow_style else block
            at = _end_of_line(text, node)
            yield at, at, "\n" + textwrap.indent(textwrap.dedent(lines), " " * column)
        elif now[name] == wanted[name]:
            continue
        elif isinstance(value, yaml.MappingNode) and not (now[name] or node.flow_style or value.flow_style):
            lines = more[_end_of_line(more, key) : _end_of_line(more, value)]
            at = _end_of_line(text, old)
            yield here[name][0].end_mark.index, _end(text, old), ":"
            yield at, at, textwrap.indent(textwrap.dedent(lines), " " * (column + 2))
        elif isinstance(old, yaml.MappingNode) and old.value and isinstance(value, yaml.MappingNode):
            yield from _edits(text, old, now[name], wanted[name], more, value)
        elif isinstance(old, yaml.SequenceNode) and not old.flow_style and wanted[name][: len(old.value)] == now[name]:
            at, items = _end_of_line(text, old), wanted[name][len(old.value) :]
            yield at, at, "".join(f"\n{' ' * old.start_mark.column}- {flow(item)}" for item in items)
        else:
            yield here[name][0].end_mark.index, _end(text, old), f": {flow(wanted[name])}"


def _end(text: str, node: yaml.Node) -> int:
    """Where a value ends in a text; what comes below it may be comments on what follows."""
    while isinstance(node, yaml.CollectionNode) and node.value and not node.flow_style:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    if re.match(r"[|>]\d?\+", text[node.start_mark.index :]):  # the empty lines behind it are its own
        return int(node.end_mark.index) - 1
    return len(text[: node.end_mark.index].rstrip())


def _end_of_line(text: str, node: yaml.Node) -> int:
    end = text.find("\n", _end(text, node))
    return len(text) if end < 0 else end


def _setting(text: str, host: str) -> str:
    """`vms.sandbox.machine=q35` as a file's text."""
    path, equals, value = text.partition("=")
    parts = path.removeprefix("homelab:").split(".")
    if parts[0] in _OF_A_HOST:  # as refusals name it: gpus.rtx5090.allowConsole
        parts = ["hosts", host, *parts]
    if not equals or not all(parts):
        raise Mistake(
            f"--set {text}: write PATH=VALUE, such as vms.sandbox.machine=q35; docs/settings.md has the paths"
        )
    keys = ("config", f"homelab:{parts[0]}", *map(flow, parts[1:]))
    try:
        written = flow(stack_file.parsed(value, _Loader))
    except yaml.YAMLError:  # its message may quote a secret
        raise Mistake(
            f"--set {path}: its value can't be read as YAML; write a text with such signs in quotes"
        ) from None
    return "\n".join(f"{'  ' * depth}{key}:" for depth, key in enumerate(keys)) + f" {written}\n"
