"""The summary of an `up`: for each card its guests and what was verified; what is changed on the host, and how it is
undone.

Made from a stack's outputs alone, so that `pulumi stack output result` says the same at any time. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from homelab.facts import names
from homelab.show.cards import of_outputs


def lines(outputs: Mapping[str, Any], words: Mapping[str, str], kept: Collection[str] = ()) -> list[str]:
    """Lines of at most some 90 characters, for a display of 100 columns.

    :param outputs: homelab/contract.py, without nulls.
    :param words: host -> words that its kernel command line is to have, by this program where nobody else has set them.
    :param kept: where NVIDIA's stack stays when the Pulumi stack goes, such as `vms.sandbox`.
    """
    summary: list[str] = []
    for name, host in outputs["hosts"].items():
        for card in of_outputs(outputs, name):
            guests_of_card = ", ".join(str(guest) for guest in card.guests) or "nobody yet"
            summary.append(f"{card.name} → {guests_of_card}")
        models = names.models_of_outputs(host["gpus"])
        for gpu in sorted(models, key=lambda gpu: str(host["gpus"][gpu]["slot"])):
            if host["gpus"][gpu].get("test"):
                summary.append(f"  {models[gpu]}: a test VM has seen it, with its memory ranges")
        guests = [(f"VM {int(vm['vmid'])}", vm) for vm in outputs["vms"].values()]
        guests += [(f"container {int(one['ctid'])}", one) for one in outputs.get("containers", {}).values()]
        for title, guest in guests:
            if guest["host"] == name and guest.get("nvidia"):
                summary += _stack(f"{title} ({guest['name']})", guest["nvidia"])
            elif guest["host"] == name and guest.get("nodes"):
                summary.append(f"  {title} ({guest['name']}): {len(guest['nodes'])} devices were opened from inside")
        if host.get("nvidia"):
            summary += _stack(f"host {name}", host["nvidia"])
        summary += _changed(name, host, words.get(name, "").strip())
    summary += [
        "To undo it: `pulumi destroy` gives back every file, VM and container as it was",
        "  `homelab show --undo` lists what it undoes",
        '  "delete" there undoes a change: no guest is deleted but those that homelab made',
        "  running guests with a card restart; the host doesn't: its next boot is as before",
    ]
    if kept:
        summary.append(f"  NVIDIA's software stays in {', '.join(kept)}, unless nvidia.onDestroy is purge there")
    return summary


def _stack(who: str, stack: Mapping[str, Any]) -> list[str]:
    flavour = f" ({stack['flavour']} modules)" if stack.get("flavour") else ""
    more = [f"CUDA {stack['cuda']}"] if stack.get("cuda") else []
    unchecked = [str(check) for check in stack.get("unchecked") or []]
    more += ["container toolkit"] if stack.get("container") is not None or unchecked else []
    verified = ["nvidia-smi"]
    verified += ["a CUDA program"] if stack.get("program") else []
    verified += ["a container"] if stack.get("container") else []
    verified += ["an ordinary user"] if stack.get("uvm") else []
    return [
        f"  {who}: NVIDIA driver {stack['driver']}{flavour}",
        *([f"    {', '.join(more)}"] if more else []),
        f"    verified inside by {', '.join(verified)}",
        *(f"    not checked: {check}" for check in unchecked),
    ]


def _changed(name: str, host: Mapping[str, Any], words: str) -> list[str]:
    host_line = f"{name}: kernel {host['kernel']}, {int(host['iommu']['groups'])} IOMMU groups"
    if not words:
        return [host_line, "  nothing of its boot is changed"]
    if "homelab.vfio=" not in words:
        return [host_line, f"  on its kernel command line, by homelab if not by you: {words}"]
    return [
        host_line,
        "  changed there: kernel command line (iommu, vfio-pci), initramfs",
        '  to boot once without passthrough: pick "without GPU passthrough" in the boot menu',
    ]
