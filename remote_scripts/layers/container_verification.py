"""Says from inside a container whether the nodes of its cards are there and can be opened, by root, by an ordinary user
and, where a node is for a group, by a member of it. Changes nothing. In a container that is off nothing is opened.
"""

from __future__ import annotations

from collections.abc import Sequence

from remote_scripts.both.container_verification import Answer, Wanted
from remote_scripts.cards import host_nodes
from remote_scripts.containers.card_nodes import Node, nodes_of
from remote_scripts.containers.container_system import need_container, need_running
from remote_scripts.containers.container_text import decided
from remote_scripts.notes import guest_notes, handover
from remote_scripts.pve import pmxcfs
from remote_scripts.pve.container_conf import conf_text
from remote_scripts.pve.guests import power_of
from remote_scripts.pve.properties import parse
from remote_scripts.tools.device import as_nobody
from remote_scripts.tools.done import TIMED_OUT, Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes

#: For one opening, and for vainfo, in seconds.
_OPEN_SECONDS = 60.0
_BYTES = 1 << 20
#: What a program that opens a node says -> what that means here.
_MEANINGS = {
    "No such file": "it is not there",
    "Permission denied": "its mode keeps it out",
    "not permitted": "no rule of the control group allows it, or a later one denies it",
    "No such device": "no driver is behind it",
}


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Opens each.

    :raises Failure: one can't be opened by whom it is for, video doesn't work that was asked for, or one of the host's
        cards is away; the container doesn't answer.
    """
    ctid, cards = wanted.ctid, wanted.cards
    handover.need_rest(system)
    need_container(system, ctid)
    there = host_nodes.of(system, cards)
    nodes = nodes_of(there, cards)
    host_nodes.need(system, ctid, there, nodes)
    conf = conf_text(system.files.need_text(f"{pmxcfs.PVE_LXC}/{ctid}.conf"))
    note = guest_notes.of_container(system, ctid)
    provided = decided(there, conf, note, cards, note.given.groups).lines.provided
    power = power_of(system, "pct", str(ctid))
    if power == "unknown":  # which says nothing of a card
        return Answer("unknown", {}, ["whether it runs isn't known (pct status gave no answer): nothing was opened"])
    if power != "on":
        system.log.say(f"container {ctid} is off: nothing was opened")
        return Answer("stopped", {}, [])
    given = [node for node in nodes.nodes if node.path in provided]
    if not given:
        return Answer("running", {}, [])
    inside = need_running(system, ctid)
    # BusyBox has no setpriv that takes a user.
    has_user = _ask(inside, *as_nobody(), "true").status == 0
    tried = [] if has_user else ["it has no setpriv: whether an ordinary user can open them was not tried"]
    opened: dict[str, str] = {}
    for node in given:
        by, problem = _opened(system, inside, node, provided[node.path], has_user=has_user)
        if problem:
            raise Failure(
                f"devices that can be opened in container {ctid}, by root and by an ordinary user",
                f"{node.path}: {problem}",
                "what uses the card inside would fail",
                f"compare with `pct config {ctid}`; was it changed by hand since its last start? then: `pct reboot "
                f"{ctid}`",
            )
        if by:
            opened[node.path] = " and by ".join(by)
        else:
            tried.append(f"{node.path}: not opened: its mode keeps root out, and whom it is for wasn't tried")
    if "video" in wanted.uses:
        tried += [_need_video(inside, ctid, node.path) for node in given if "/renderD" in node.path and node.group]
    return Answer("running", opened, tried)


def _opened(system: System, inside: System, node: Node, given_by: str, *, has_user: bool) -> tuple[list[str], str]:
    """Who has opened a node, of those whom it is for, and what kept one of them from it. One that isn't for all, on the
    host or by its entry, has to be there.

    :param has_user: whether another one than root can be had in there.
    """
    path, device = node.path, system.files.device(node.path)
    assert device  # it has a line, or is needed
    given = parse("dev", given_by.removeprefix("dev "))
    uid, gid, mode = (given.get(name, "") for name in ("uid", "gid", "mode"))
    is_for_all = device.mode & 6 == 6
    if given_by.startswith("dev "):
        # The settings say who is to have it: a user or a group.
        is_for_all = not uid and not gid and int(mode or "666", 8) & 6 == 6
    who: dict[str, Sequence[str]] = {"root": ()}
    if has_user and is_for_all:
        who["an ordinary user"] = as_nobody()
    elif has_user and node.group and gid:
        who[f"a member of the group {gid}"] = as_nobody(int(gid))
    opened = []
    for name, words in who.items():
        if not (error := _error(inside, words, path)):
            opened.append(name)
        # Root is not above the mode where the node isn't its own: a bind mount in an unprivileged container.
        elif words or is_for_all or "Permission denied" not in error:
            return [], f"{name}: {_explained(error)}"
    numbers = f"{device.major:x}:{device.minor:x}"
    there = _ask(inside, "stat", "-c", "%t:%T", path).text if node.group else numbers
    another = f"it is the device {there} inside, and {numbers} on the host (in hexadecimal)"
    return opened, "" if there in ("", numbers) else another


def _ask(inside: System, *words: str) -> Done:
    return inside.run.ask(*words, seconds=_OPEN_SECONDS, limit=_BYTES)


def _error(inside: System, who: Sequence[str], path: str) -> str:
    """What keeps `who` from opening a node for reading and writing, which makes nothing where there is nothing; empty:
    nothing does.
    """
    done = _ask(inside, *who, "dd", f"if={path}", f"of={path}", "count=0", "conv=notrunc")
    if done.status == 0:
        return ""
    if done.status == TIMED_OUT:
        return f"no answer within {_OPEN_SECONDS:g} s"
    messages = [line.partition("dd: ")[2].strip() for line in done.all_text.split("\n") if "dd: " in line]
    return messages[0] if messages else done.all_text.rpartition("\n")[2] or f"exit status {done.status}"


def _explained(message: str) -> str:
    return next((f"{meaning} ({message})" for words, meaning in _MEANINGS.items() if words in message), message)


def _need_video(inside: System, ctid: int, path: str) -> str:
    """What vainfo says of a card.

    :raises Failure: VA-API doesn't work on it.
    """
    done = _ask(inside, "vainfo", "--display", "drm", "--device", path)
    if done.status == TIMED_OUT:
        return f"{path}: vainfo gave no answer within {_OPEN_SECONDS:g} s: whether video works isn't known"
    lines = inside.log.clean(done.all_text).split("\n")
    if done.status:
        raise Failure(
            f"video (VA-API) on each Intel and AMD card of container {ctid}",
            f"{path}: vainfo fails (exit status {done.status}): {lines[-1]}",
            "libraries: [video] is for that; a driver of the container's release that is older than the card doesn't "
            "know it",
            f"try `pct exec {ctid} -- vainfo --display drm --device {path}`; a container of a newer release has newer "
            "drivers; or leave video out of libraries",
        )
    return f"{path}: vainfo works, {next((line.partition(': ')[2] for line in lines if 'river version' in line), '')}"
