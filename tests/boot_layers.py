"""What the agent is asked, by tests of several folders."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from homelab.remote import agent
from homelab.settings import Timeouts
from remote_scripts.boot.wanted_boot import Boot
from remote_scripts.both import cmdline, needed
from remote_scripts.both import read_host as read_host_layer
from remote_scripts.both import reboot as reboot_layer
from remote_scripts.both.container_cards import Wanted as ContainerCards
from remote_scripts.both.terms import Terms
from remote_scripts.notes.container_note import Cards
from remote_scripts.tools import modules
from tests import sent_along

if TYPE_CHECKING:
    from tests.host import Host

# As the settings have it where they say nothing.
ROLLBACK_SECONDS = Timeouts().rollback


@dataclass(frozen=True)
class Asked:
    """A layer, and its `Wanted`."""

    layer: str
    wanted: Any

    def sent(self, verb: str) -> str:
        """Standard input for `agent.command_in_memory`."""
        return sent_along.text(verb, agent.request(self.layer, self.wanted))


def initramfs(is_needed: bool = True) -> Asked:
    """The initramfs of a host with, or without, cards of ours."""
    return Asked("initramfs", needed.Wanted(needed=is_needed))


def iommu(words: str, *, rollback_after: int = ROLLBACK_SECONDS) -> Asked:
    """The IOMMU's words."""
    return Asked("cmdline", cmdline.Wanted(name="iommu", words=words, rollback_after=rollback_after))


def vfio(words: str, *, rollback_after: int = ROLLBACK_SECONDS) -> Asked:
    """The words that bind cards, and the second boot entry."""
    return Asked("cmdline", cmdline.Wanted(name="vfio", words=words, rollback_after=rollback_after))


def read_host(**wanted: Any) -> Asked:
    """A reading of a host, by the verb `read`."""
    return Asked("read_host", read_host_layer.Wanted(**wanted))


def reboot(words: str, *, rollback_after: int = ROLLBACK_SECONDS, awaited: int = 3 * ROLLBACK_SECONDS) -> Asked:
    """The reboot into what was configured."""
    boot = Boot(words=tuple(words.split()))
    wanted = reboot_layer.Wanted(policy="auto", boot=boot, rollback_after=rollback_after, awaited=awaited)
    return Asked("reboot", wanted)


def archive_with(*changes: tuple[str, str, str]) -> str:
    """The agent's archive in base64, as `agent._archive_text` has it, with other text in some modules.

    Args:
        changes: of each a module, what it says, and what it is to say.
    """
    with zipfile.ZipFile(io.BytesIO(agent.archive())) as whole:
        texts = {
            name.removesuffix(".py").replace("/", "."): whole.read(name).decode()
            for name in whole.namelist()
            if not name.endswith("__init__.py")
        }
    for module, old, new in changes:
        assert old in texts[f"remote_scripts.{module}"], f"{module}: {old}"
        texts[f"remote_scripts.{module}"] = texts[f"remote_scripts.{module}"].replace(old, new)
    return base64.b64encode(modules.packed(texts)).decode()


def asked_of(host: Host, verb: str, layer: str, wanted: Any, *changes: tuple[str, str, str]) -> str:
    """What a layer answers, or says, asked as a session asks it, with other text in some of the agent's modules."""
    # Of no version that is kept on the host.
    request = json.dumps(json.loads(agent.asked(verb, agent.request(layer, wanted))) | {"version": "of a test"})
    command = f"{agent.command_in_memory('root')} 2>&1"
    return sent_along.answer(host.run(command, input=f"{request}\n{archive_with(*changes)}\n", check=False))


def container_cards(ctid: int, cards: Cards, *, timeout: int = 5) -> Asked:
    """The cards of a container; it has so many seconds to go off."""
    return Asked("container_cards", ContainerCards(ctid=ctid, cards=cards, terms=Terms(shutdown=timeout)))
