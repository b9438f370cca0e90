"""A tree as the plan that a preview shows. Pure."""

from __future__ import annotations

from homelab.container import plan as container_plan
from homelab.host import plan
from homelab.judged.tree import Tree
from homelab.storage import files
from homelab.vm import preview


def of_plan(tree: Tree, follows: str = "") -> str:
    """The whole plan of a host for people.

    :param follows: as of `plan.describe`.
    """
    wanted, facts, of_host = tree.wanted, tree.facts, tree.told_host
    described = plan.describe(
        wanted.name, facts, wanted.host, tree.want, tree.reboot, tree.files, follows, [*of_host.remarks, *of_host.met]
    )
    return "\n".join([described, *of_guests(tree)])


def of_guests(tree: Tree) -> list[str]:
    """The plan's lines about guests, and what is installed for cards."""
    wanted, facts = tree.wanted, tree.facts
    lines = [files.describe(wanted.host)] if wanted.host.downloads else []
    restarted = [one.id for one in tree.reboot.guests] if tree.reboot and tree.reboot.reboot == "yes" else []
    for name, (wish, judged) in tree.vms.items():
        lines += preview.lines(name, wanted.vms[name], wish, tree.told(judged), facts, restarted)
    for container, (to_be, of_it) in tree.containers.items():
        lines += container_plan.lines(container, wanted.containers[container], to_be, tree.told(of_it), facts)
    for place, of_leaving in tree.leaving.items():
        lines += preview.leaving_lines(place, of_leaving, facts, "isn't in the settings any more")
    lines += [f"  {step}" for mapping in tree.mappings.values() for step in mapping.steps]
    parts = [*tree.mappings.values(), *tree.leaving.values(), *tree.systems.values()]
    lines += [f"  {line}" for part in map(tree.told, parts) for line in part.met]
    lines += [stack.text for stack in tree.stacks]
    return [*lines, *(f"  note: {remark}" for remark in tree.unread)]
