"""`python -m homelab rom`: makes a file of a card's option ROM, for a VM's `romfile`; takes it away again.

`dump` reads the ROM from the card, or from the firmware where a processor's graphics have theirs (AMD: the table VFCT), checks that it is one and this card's,
and keeps it in the host's /usr/share/kvm. Nothing else of the host changes. Exit status: 0; 2, it couldn't be done.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import re
import sys
from collections.abc import Sequence

from homelab.cli import stack_options
from homelab.errors import HomelabError, raise_all
from homelab.host import gates, rom
from homelab.host.classes import AMD
from homelab.host.devices import Device
from homelab.host.facts import HostFacts
from homelab.remote import scripts, ssh
from homelab.settings import Host

WELL, FAILED = 0, 2
FOLDER = "/usr/share/kvm"


def _file_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise argparse.ArgumentTypeError("a file's name has letters, digits, periods, hyphens and underscores")
    return text


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    found = argparse.ArgumentParser(prog="python -m homelab rom", description="A card's option ROM as a file for a VM.")
    actions = found.add_subparsers(dest="action", required=True)
    for name, said in (("dump", "reads it and keeps it"), ("remove", "removes the file")):
        action = actions.add_parser(name, help=said, description=f"{said} ({FOLDER} on the host)")
        action.add_argument("gpu", help="the card: a name under hosts.NAME.gpus")
        action.add_argument("--host", help="one of homelab:hosts, where there are several")
        action.add_argument("--name", type=_file_name, help="the file's name (default: homelab-GPU.rom)")
        stack_options.add(action)
        action.add_argument(
            "--identity", metavar="FILE", help="log in with this private key instead of what the settings say"
        )
    return found


def _slot(facts: HostFacts, host: Host, gpu: str) -> str:
    if gpu not in host.gpus:
        raise HomelabError(
            wanted=f"the card {gpu}",
            found=f"cards of this host in the settings: {', '.join(host.gpus) or 'none'}",
            why="a card is known by its settings",
            next="name one of these",
        )
    slots, errors = gates.resolve(facts, {gpu: host.gpus[gpu]})
    raise_all(errors)
    return slots[gpu]


async def _dump(node: str, host: Host, gpu: str, file: str) -> list[str]:
    async with ssh.connect(host) as session:
        facts = gates.choosing(await session.read(guests=True), host.gpus)
        slot = _slot(facts, host, gpu)
        in_use = rom.refused(facts, f"gpus.{gpu}", slot, node)
        shown = next((one for one in facts.functions(slot) if one.is_display and not one.physfn), None)
        if shown is None or shown.vendor != AMD:
            raise_all(in_use)
        assert shown is not None
        script = scripts.card_rom(file, address=shown.address, ids=shown.id, at_rest=not in_use)
        content, place = _content(scripts.answer(await session.run("read_rom", script)), shown)
        if not content:
            raise_all(in_use)  # the firmware's table would have done without the card's rest
        found = rom.checked(content, shown, f"gpus.{gpu} ({facts.card(slot)})")
        kept = scripts.answer(await session.run("keep", scripts.card_rom(file, content=found.content)))
    kinds = ", ".join(f"{one.kind} for {one.vendor}:{one.device}" for one in found.images)
    return [
        f"{FOLDER}/{file}: {'written' if kept['changed'] == 'yes' else 'was there already'}",
        f"  of gpus.{gpu} ({facts.card(slot)}), from {place}: {len(found.content)} bytes, {kinds}",
        f"  SHA-256 {found.sha256}",
        *(f"  note: {one}" for one in rom.remarks(found, shown)),
        f"To use it: romfile: {file} for this card under vms.NAME.gpus.",
        f"To remove it: python -m homelab rom remove {gpu}" + ("" if file == _default(gpu) else f" --name {file}"),
    ]


def _content(said: dict[str, object], device: Device) -> tuple[bytes, str]:
    """What was read, and where: the card's own before the firmware's."""
    texts = {key: str(said.get(key, "")) for key in ("rom", "vfct")}
    try:
        found = {key: base64.b64decode(text, validate=True) for key, text in texts.items()}
    except binascii.Error:
        found = {}
    own = found.get("rom", b"")
    if not rom.images(own) and device.vendor == AMD and (table := rom.of_vfct(found.get("vfct", b""), device)):
        return table, "the firmware's table VFCT"
    return own, "the card"


async def _remove(host: Host, file: str) -> list[str]:
    async with ssh.connect(host) as session:
        done = scripts.answer(await session.run("remove", scripts.card_rom(file)))
    return [f"{FOLDER}/{file}: {'taken away' if done['changed'] == 'yes' else 'nothing of this program is there'}"]


def _default(gpu: str) -> str:
    return f"homelab-{gpu}.rom"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = parser().parse_args(argv)
    try:
        name, host = stack_options.read(arguments).host(arguments.host, arguments.identity)
        file = arguments.name or _default(arguments.gpu)
        done = (
            _remove(host, file) if arguments.action == "remove" else _dump(host.node or name, host, arguments.gpu, file)
        )
        print("\n".join(asyncio.run(done)))
    except HomelabError as error:
        print(error, file=sys.stderr)
        return FAILED
    return WELL
