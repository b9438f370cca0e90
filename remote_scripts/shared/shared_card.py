"""A card that is handed over: its functions, their drivers, the numbers of its nodes, and whether it answers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from remote_scripts.shared import nvidia
from remote_scripts.shared.card import Card
from remote_scripts.shared.pci import DEVICES, driver_of, ids_of
from remote_scripts.tools.system import System

#: Whose majors stand in rules of containers.
DRIVERS = ("nvidia-uvm", "nvidia-caps")
#: How often it is looked whether a card answers, and the seconds in between, before it is taken for dead.
_LOOKS = 3
_LOOK_SECONDS = 1.0
_READ_SECONDS = 5.0


def all_on_vfio(system: System, card: Card) -> bool:
    """Whether every function of the card is on vfio-pci."""
    return all(driver_of(system, function) == "vfio-pci" for function in card.functions)


def is_on_vfio(system: System, card: Card) -> bool:
    """The same, where it is that card."""
    return all_on_vfio(system, card) and has_expected_ids(system, card)


def has_expected_ids(system: System, card: Card) -> bool:
    """Hardware may have been changed, or buses numbered anew, since it was configured."""
    return all(ids_of(system, address) == ids for address, ids in card.functions.items())


def is_alive(system: System, card: Card) -> bool | None:
    """Whether every function's configuration space reads as what it is. False: something else was read, again and
    again, or it has gone from the bus; None: it can't be told, since nothing was read. Of a card that doesn't answer,
    all bits are ones; and to read it may take for ever.
    """
    alive: bool | None = True
    for address, ids in card.functions.items():
        wanted = f"{ids[2:4]}{ids[0:2]}{ids[7:9]}{ids[5:7]}"
        current = ""
        for look in range(_LOOKS):
            if look:
                time.sleep(_LOOK_SECONDS)
            done = system.run.ask(
                "od", "-An", "-N4", "-tx1", system.files.name(f"{DEVICES}/{address}/config"), seconds=_READ_SECONDS
            )
            current = "".join(done.text.split())
            if current == wanted:
                break
        else:
            is_gone = system.files.at(DEVICES).is_dir() and not system.files.exists(f"{DEVICES}/{address}")
            if is_gone or re.fullmatch(r"[0-9a-f]{8}", current):
                return False
            alive = None
    return alive


def is_only(system: System, card: Card) -> bool:
    """Whether NVIDIA's driver has no other card."""
    others = (address for address in system.files.names(DEVICES) if address not in card.functions)
    return not any(driver_of(system, address) == "nvidia" for address in others)


def drm_names(system: System, card: Card) -> list[str]:
    """Of its nodes in /dev/dri."""
    drm = []
    for address in card.functions:
        names = system.files.names(f"{DEVICES}/{address}/drm")
        drm += [name for kind in ("card", "renderD") for name in names if name.startswith(kind)]
    return drm


def minor_of(system: System, card: Card) -> str:
    """N of the card's /dev/nvidiaN; empty: there is none, or it can't be read."""
    try:
        return _text(nvidia.minor_of(system, card.gpu))
    except OSError:
        return ""


def _major_of(system: System, driver: str) -> str:
    try:
        return _text(nvidia.major_of(system, driver))
    except OSError:
        return ""


def drivers_by_major(system: System) -> dict[str, str]:
    """The names of character devices' drivers, by their majors."""
    lines = system.files.text("/proc/devices").partition("Block devices:")[0].splitlines()
    return {words[0]: words[1] for words in map(str.split, lines) if len(words) == 2 and words[0].isdecimal()}


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


# What lines of containers have of it: numbers that may be others when it comes back. As text: the minor of
# /dev/nvidiaN, the majors of nvidia-uvm and nvidia-caps, the names in /dev/dri with a blank behind each.


def numbers(system: System, card: Card) -> str:
    """Those that it has now."""
    names = "".join(f"{name} " for name in drm_names(system, card))
    uvm, caps = (_major_of(system, driver) for driver in DRIVERS)
    return f"{minor_of(system, card)},{uvm},{caps},{names}"


def parts(text: str) -> tuple[list[str], list[str]]:
    """The three numbers, and the names."""
    words = f"{text},,,".split(",")
    return words[:3], words[3].split()


def have_moved(earlier: str, current: str) -> bool:
    """Whether some are others. What wasn't there then, or isn't there yet, has not moved."""
    (before, names), (after, current_names) = parts(earlier), parts(current)
    pairs = zip(before, after, strict=True)
    return any(map(is_another, pairs)) or any(is_renamed(name, current_names) for name in names)


def is_another(pair: tuple[str, str]) -> bool:
    """Whether both numbers are known, and differ."""
    return bool(pair[0] and pair[1] and pair[0] != pair[1])


def of_others(system: System, card: Card) -> tuple[set[str], set[str]]:
    """The minors of /dev/nvidiaN and the names in /dev/dri that other cards have now: what this one was called may be
    another's while it is away.
    """
    minors = set()
    for address in system.files.names(f"{nvidia.PROC}/gpus"):
        if address not in card.functions:
            with suppress(OSError):
                minors.add(_text(nvidia.minor_of(system, address)))
    others = (address for address in system.files.names(DEVICES) if address not in card.functions)
    return minors, {name for address in others for name in system.files.names(f"{DEVICES}/{address}/drm")}


def is_renamed(name: str, names: Iterable[str]) -> bool:
    """Whether it isn't among these, and another one of its kind is."""
    kind = name.rstrip("0123456789")
    return name not in names and any(name.startswith(kind) for name in names)


def node_numbers(system: System, card: Card) -> set[str]:
    """The numbers, in hexadecimal, of what must not be open: the card's own node and nvidia-modeset, what is in
    /dev/dri and /dev/snd of it, and where the whole driver goes, its control nodes.
    """
    minor = minor_of(system, card)
    numbers = {"c3:fe", *([f"c3:{int(minor):x}"] if minor else [])}
    for pattern in ("drm/*/dev", "sound/*/dev", "sound/*/*/dev"):
        numbers |= set(_hexadecimal(system, card, pattern))
    # Of a node that says no numbers of its own.
    numbers |= {f"e2:{int(re.sub(r'[^0-9]', '', name)):x}" for name in drm_names(system, card)}
    if is_only(system, card):
        numbers.add("c3:ff")
        if uvm := _major_of(system, "nvidia-uvm"):
            numbers |= {f"{int(uvm):x}:0", f"{int(uvm):x}:1"}
    return numbers


def _hexadecimal(system: System, card: Card, pattern: str) -> Iterator[str]:
    for address in card.functions:
        for path in system.files.at(f"{DEVICES}/{address}").glob(pattern):
            major, _, minor = path.read_text().strip().partition(":")
            yield f"{int(major):x}:{int(minor):x}"


def sound_numbers(system: System, card: Card) -> tuple[str, set[str]]:
    """A node of its sound that is there, and the numbers of all; empty: it has none."""
    there = ""
    for address in card.functions:
        for pattern in ("sound/*/uevent", "sound/*/*/uevent"):
            for path in system.files.at(f"{DEVICES}/{address}").glob(pattern):
                match = re.search(r"^DEVNAME=(.+)$", path.read_text(), re.MULTILINE)
                if match and path.with_name("dev").exists() and system.files.exists(f"/dev/{match[1]}"):
                    there = f"/dev/{match[1]}"
    numbers = {*_hexadecimal(system, card, "sound/*/dev"), *_hexadecimal(system, card, "sound/*/*/dev")}
    return there, numbers


def group_nodes(system: System, card: Card) -> list[str]:
    """The nodes of its IOMMU groups below /dev/vfio: open while a VM has it."""
    paths = []
    for address in card.functions:
        try:
            paths.append(f"/dev/vfio/{system.files.at(f'{DEVICES}/{address}/iommu_group').readlink().name}")
        except OSError:
            continue
        paths += [f"/dev/vfio/devices/{name}" for name in system.files.names(f"{DEVICES}/{address}/vfio-dev")]
    return [path for path in dict.fromkeys(paths) if system.files.exists(path)]


def mapped_as(system: System, card: Card) -> str:
    """A pattern of grep's for how its memory stands in /proc/PID/maps: a process may have closed the node."""
    names = [f"nvidia{minor_of(system, card)}", "nvidia-modeset"]
    names += [f"dri/{name}" for name in drm_names(system, card)]
    names += ["nvidiactl", "nvidia-uvm"] if is_only(system, card) else []
    return f" /dev/({'|'.join(names)})( \\(deleted\\))?$"
