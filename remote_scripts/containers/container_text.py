"""The text of a container's configuration, with other options and everything else as it is, byte for byte. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from remote_scripts.containers.card_nodes import HostNodes
from remote_scripts.containers.container_lines import Lines, lines_for
from remote_scripts.notes.container_note import Cards, ContainerNote
from remote_scripts.notes.guest_note import Options
from remote_scripts.pve.container_conf import ConfText, conf_text, options_of, raw_line
from remote_scripts.pve.properties import parse


@dataclass(frozen=True)
class Decided:
    """What a container is to have. `lines`: homelab's; `options`: these as options; `target`: these, and what all else
    of homelab's becomes.
    """

    lines: Lines
    options: dict[str, str]
    target: dict[str, str | None]


def decided(host: HostNodes, conf: ConfText, note: ContainerNote, cards: Cards, groups: Mapping[str, int]) -> Decided:
    """By the nodes that are there now; what its owner gives it stays.

    :param groups: as of container_lines.lines_for.
    """
    config = options_of(conf)
    own, base = own_options(config, note), note.base(config, {})
    lines = lines_for(host, conf.conf, conf.without(own), cards, groups)
    options = as_options(conf.text, own, lines.want)
    return Decided(lines, options, {**{key: base.get(key) for key in note.values}, **options})


def is_raw(key: str) -> bool:
    """Whether a key is an lxc.* line as a whole, whose value is nothing."""
    return key.startswith("lxc.")


def edited(text: str, options: Options) -> str:
    """The text with these options, above its first section. A new one comes after the last line that isn't empty. Of an
    lxc.* line that is there more than once the last one goes.

    :param options: by their keys, and lxc.* lines, `KEY: VALUE`, by themselves; None: it isn't to be there.
    """
    conf = conf_text(text)
    lines: list[str | None] = [*conf.head]
    new: list[str] = []
    for key, value in options.items():
        places = _places(conf.head, key)
        for place in (places[-1:] if value is None else []) if is_raw(key) else places:
            lines[place] = None
        if value is None or (is_raw(key) and places):
            continue
        line = key if is_raw(key) else f"{key}: {value}"
        if places:
            lines[places[-1]] = line
        else:
            new.append(line)
    head = [line for line in lines if line is not None]
    last = max((place for place, line in enumerate(head) if line.strip()), default=-1)
    return "".join(f"{line}\n" for line in (*head[: last + 1], *new, *head[last + 1 :], *conf.tail))


def own_options(config: Mapping[str, str], note: ContainerNote) -> dict[str, str]:
    """Homelab's options that are there."""
    base = note.base(config, {})
    return {key: config[key] for key in note.values if key in config and key not in base}


def as_options(text: str, own: Mapping[str, str], want: Iterable[str]) -> dict[str, str]:
    """Lines, `dev VALUE` or an lxc.* line, as options. A device that has a number from homelab keeps it."""
    by_path = {parse(key, value)["path"]: key for key, value in own.items() if not is_raw(key)}
    options: dict[str, str] = {}
    for line in want:
        value = line.removeprefix("dev ")
        if value == line:
            options[line] = ""
        else:
            key = by_path.get(value.partition(",")[0]) or free_number(text, options)
            options[key] = value
    return options


def free_number(text: str, taken: Options) -> str:
    """The first key dev[n] that is none of the taken ones, and stands nowhere in the text, neither in what waits for
    the next start nor in a snapshot.
    """
    number = 0
    while f"dev{number}" in taken or re.search(rf"(?m)^dev{number}:", text):
        number += 1
    return f"dev{number}"


def _places(head: tuple[str, ...], key: str) -> list[int]:
    if is_raw(key):
        return [place for place, line in enumerate(head) if raw_line(line) == raw_line(key)]
    return [place for place, line in enumerate(head) if line.startswith(f"{key}:")]


def sources(config: Mapping[str, str]) -> list[str]:
    """The paths of the host without which a container with such options doesn't start."""
    found: list[str] = []
    for key, value in config.items():
        raw, mount = raw_line(key)
        properties = parse(key, value)
        if raw == "lxc.mount.entry":
            words = [*mount.split(), "", "", "", ""]
            found += [] if "optional" in words[3].split(",") else [words[0].replace(r"\040", " ")]
        elif re.fullmatch(r"dev\d+", key):
            found.append(properties.get("path", ""))
        elif re.fullmatch(r"mp\d+", key):
            found.append(properties.get("volume", ""))
    return [path for path in found if path.startswith("/")]
