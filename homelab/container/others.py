"""Cards of other makers than NVIDIA for containers: whose driver makes nodes in /dev/dri, and /dev/kfd. What is given,
and what stands against it.

Pure. A card is known by its address; which numbers its nodes have, the scripts look up whenever they work
(remote_scripts/lib/container/card_nodes.sh).
"""

from __future__ import annotations

from collections.abc import Mapping

from homelab.container import makers
from homelab.errors import HomelabError
from homelab.host import gates
from homelab.host.classes import AMD, DRIVERS
from homelab.host.devices import Device
from homelab.host.facts import HostFacts, bound_by_word
from homelab.settings import Container
from homelab.shapes import CardPlan, SharedCard

# What keeps a driver from serving its card, on the kernel's command line.
_STOPPING = ("modeset=0", "enable=0")
# What the reading passes on is a line of modprobe.d with its file, or one by which the kernel tells of a failure: which
# words of the kernel do is decided there (`without_render` in remote_scripts/lib/read/drm.sh).
_MODPROBE = "/etc/modprobe.d/"


def shared(
    name: str,
    container: Container,
    facts: HostFacts,
    gpus: Mapping[str, CardPlan],
    node: str,
    *,
    after_boot: bool = False,
) -> tuple[dict[str, SharedCard], list[HomelabError]]:
    """What a container gets of its cards of other makers, and every reason not to give it.

    :param gpus: the host's cards of the settings, as HostProbe has them.
    :param node: the host's name in Proxmox VE.
    :param after_boot: is it asked before a reboot that gives cards back to their drivers?
    """
    found: dict[str, SharedCard] = {}
    errors: list[HomelabError] = []
    for gpu, card in makers.others(container, gpus).items():
        address = makers.shown(card)["address"]
        device = facts.by_address.get(address)
        where = f"gpus.{gpu} ({facts.card(card['slot'])}) for containers.{name}"
        bound = device is not None and device.driver == "vfio-pci"
        # What somebody else has bound, and that would stay so, is refused before (host/gates.py).
        ours = bound and (
            address in bound_by_word(facts.cmdline.running) or facts.kept_by_hand(facts.by_address[address])
        )
        if device is None:
            errors.append(_gone(where, address))
        elif ours and after_boot:
            found[gpu] = {"address": address, "kinds": _kinds(container, facts, device), "nodes": []}
        elif refused := unserved(where, facts, device, node):
            errors.append(refused)
        else:
            kinds = _kinds(container, facts, device)
            nodes = makers.nodes(f"{address}={','.join(kinds)}", facts.drm)
            found[gpu] = {"address": address, "kinds": kinds, "nodes": nodes}
    return found, errors


def _kinds(container: Container, facts: HostFacts, device: Device) -> list[str]:
    drm = facts.drm.get(device.address)
    return [
        "render",
        *(["card"] if container.nodes == "all" and (drm is None or drm.card) else []),
        *(["kfd"] if drm is not None and drm.kfd and device.vendor == AMD else []),
    ]


def _gone(where: str, address: str) -> HomelabError:
    return HomelabError(
        wanted=where,
        found=f"there is no {address} on the host any more",
        why="its driver makes the nodes that the container is given",
        next="see `lspci -nn`; run `pulumi up --refresh`, which looks for the card anew",
    )


def unserved(where: str, facts: HostFacts, device: Device, node: str) -> HomelabError | None:
    """Why the host's driver has no node of this card to share; None: it has."""
    users = ", ".join(str(user) for user in facts.users_of(device.address if device.physfn else device.slot, node))
    if device.driver == "vfio-pci" or users:
        return HomelabError(
            wanted=where,
            found=f"{device.address} is on {device.driver or 'no driver'}"
            + (f", and given to {users}" if users else ""),
            why="a container shares a card with the host's driver: one that is on vfio-pci, or that a VM takes at "
            "its start, has no nodes in /dev/dri",
            next="take it out of the VM's hostpci options and out of what binds it to vfio-pci (modprobe.d, the "
            "kernel command line), and reboot; "
            "or give the container another card",
        )
    drm = facts.drm.get(device.address)
    if drm is not None and drm.render:
        return None
    words = [word for word in facts.cmdline.running.split() if _stops(word, device)]
    told = (drm.trouble if drm is not None else "").splitlines()
    said = "; ".join(told)
    state = (
        f"{device.address} is on {device.driver}, which serves no node for computing (renderD)"
        if device.driver
        else f"no driver has {device.address}"
    )
    if words:
        return HomelabError(
            wanted=where,
            found=f"{state}; on the running kernel's command line: {' '.join(words)}",
            why="with that the card's driver makes no nodes, and there is nothing to give to a container",
            next=f"take {' '.join(words)} out of where the words are (/etc/default/grub, or /etc/kernel/cmdline), "
            f"{gates.new_entries(facts)}, and reboot",
        )
    if any("firmware" in line.lower() and not line.startswith(_MODPROBE) for line in told):
        return HomelabError(
            wanted=where,
            found=f"{state}; the kernel says: {said}",
            why="the card's firmware is the host's matter: without it its driver serves nothing",
            next="update the host's packages pve-firmware and kernel (`apt full-upgrade`), and reboot",
        )
    if said:
        return HomelabError(
            wanted=where,
            found=f"{state}; {said}",
            why="the card's driver makes the nodes that a container is given",
            next="take a blacklist of the driver out of /etc/modprobe.d and run `update-initramfs -u -k all`; then "
            "reboot",
        )
    return HomelabError(
        wanted=where,
        found=state,
        why="a container uses a card by such a node; drivers for a screen alone, such as ast, have none"
        if device.driver
        else "the card's driver (i915, xe, amdgpu) makes the nodes that a container is given",
        next="name another card"
        if device.driver
        else "see `lspci -nnk` and `dmesg | grep -iE 'drm|i915|amdgpu'`; a newer card may need a newer kernel",
    )


def _stops(word: str, device: Device) -> bool:
    """Does this word of the command line keep the card's driver away? One driver has it: what is said of another is no
    reason."""
    drivers = {device.driver} if device.driver else set(DRIVERS.get(device.vendor, ()))
    key, _, value = word.partition("=")
    if key in ("modprobe.blacklist", "module_blacklist"):
        return bool(drivers.intersection(value.split(",")))
    return word == "nomodeset" or word in {f"{driver}.{setting}" for driver in drivers for setting in _STOPPING}


def lines(facts: HostFacts, shared: Mapping[str, SharedCard]) -> list[str]:
    """What a container gets, for the plan: a part for each card."""
    return [
        f"{', '.join(card['nodes']) or 'its nodes in /dev/dri'} of {facts.card(_slot(card['address']))}"
        for _, card in sorted(shared.items())
    ]


def remarks(facts: HostFacts, shared: Mapping[str, SharedCard]) -> list[str]:
    """What must not come as a surprise: a sentence each."""
    said = []
    for gpu, card in sorted(shared.items()):
        device = facts.by_address.get(card["address"])
        if device is not None and device.vfs:
            said.append(
                f"gpus.{gpu}: {device.address} has {device.vfs} virtual functions (SR-IOV) with nodes of their own; "
                "the container gets the card's own alone"
            )
    return said


def _slot(address: str) -> str:
    return address.rpartition(".")[0]
