"""Cards of makers other than NVIDIA for containers, whose drivers make nodes in /dev/dri, and /dev/kfd: what a
container gets of them, and the refusals.

Pure. A card is identified by its address; the numbers of its nodes change, so the agent looks them up in each
run (remote_scripts/containers/card_nodes.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from homelab.cards import group_gates
from homelab.container import makers
from homelab.errors import HomelabError
from homelab.facts.classes import AMD
from homelab.facts.host import HostFacts, bound_by_word
from homelab.properties import slot_of
from homelab.settings import Container
from homelab.shapes import CardPlan, SharedCard
from remote_scripts.containers.card_nodes import nodes_of
from remote_scripts.notes.container_note import Cards


def shared(
    name: str,
    container: Container,
    facts: HostFacts,
    gpus: Mapping[str, CardPlan],
    *,
    after_boot: bool = False,
) -> tuple[dict[str, SharedCard], list[HomelabError]]:
    """The cards of other makers that a container gets (name -> card), and every reason to refuse one.

    :param gpus: the host's cards of the settings, as HostProbe has them.
    :param after_boot: whether a reboot comes first, which gives cards back to their drivers.
    """
    cards: dict[str, SharedCard] = {}
    errors: list[HomelabError] = []
    for gpu, card in makers.other_cards(container, gpus).items():
        address = makers.display_function(card)["address"]
        device = facts.by_address.get(address)
        where = f"gpus.{gpu} ({facts.card(card['slot'])}) for containers.{name}"
        bound = device is not None and device.driver == "vfio-pci"
        # A card that stays bound by another program's or the user's configuration is refused by host/gates.py.
        returns = (after_boot and bound) and (
            address in bound_by_word(facts.cmdline.running) or facts.kept_by_hand(facts.by_address[address])
        )
        if not returns and (error := unserved(where, facts, address)):
            errors.append(error)
        else:
            cards[gpu] = {"address": address, "kinds": _kinds(container, facts, address), "nodes": []}
            if not returns:
                nodes = nodes_of(facts.card_nodes, Cards(cards=(makers.words({gpu: cards[gpu]}),))).nodes
                cards[gpu]["nodes"] = [node.path for node in nodes]
    return cards, errors


def _kinds(container: Container, facts: HostFacts, address: str) -> list[str]:
    drm = facts.drm.get(address)
    return [
        "render",
        *(["card"] if container.nodes == "all" and (drm is None or drm.card) else []),
        *(["kfd"] if drm is not None and drm.kfd and facts.by_address[address].vendor == AMD else []),
    ]


def unserved(where: str, facts: HostFacts, address: str) -> HomelabError | None:
    """The error for a card of which the host's driver has no node to share; None where it has one."""
    device, drm = facts.by_address.get(address), facts.drm.get(address)
    users = facts.users_of(address if device is None or device.physfn else device.slot)
    if device and device.driver != "vfio-pci" and not users and drm is not None and drm.render:
        return None
    found = f"there is no {address} on the host any more"
    if device:
        nodes = ", ".join(facts.drm_nodes(address)) or "none"
        found = f"{address} is on {device.driver or 'no driver'}; its nodes: {nodes}"
    return HomelabError(
        wanted=where,
        found="; ".join([found, *(f"it is given to {user}" for user in users)]),
        why="a container shares a card with the host's driver (i915, xe, amdgpu), which makes its node for computing "
        "(/dev/dri/renderD…): not on vfio-pci or while a VM has the card, nor with nomodeset, a blacklist or without "
        "its firmware. Drivers that only serve a screen, such as ast, never make any",
        next="see `lspci -nnk` and `dmesg | grep -iE 'drm|i915|amdgpu'`; take the card out of the VM's hostpci "
        "options, and what binds it to vfio-pci or keeps its driver off out of /etc/modprobe.d (`update-initramfs -u "
        f"-k all`) and the kernel command line ({group_gates.new_entries(facts)}); update pve-firmware and the kernel "
        "(`apt full-upgrade`), and reboot; or give the container another card",
    )


def lines(facts: HostFacts, shared: Mapping[str, SharedCard]) -> list[str]:
    """What a container gets, for the plan: a text for each card."""
    return [
        f"{', '.join(card['nodes']) or 'its nodes in /dev/dri'} of {facts.card(slot_of(card['address']))}"
        for _, card in sorted(shared.items())
    ]
