"""Says from inside a container whether the nodes of its cards are there and can be opened, by root, by an ordinary user
and, where a node is for a group, by a member of it. Changes nothing. In a container that is off nothing is opened.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from remote_scripts.shared import card_nodes, container_lines, handover, pmxcfs
from remote_scripts.shared.card_nodes import Node
from remote_scripts.shared.container_conf import conf_text
from remote_scripts.shared.container_drift import noted
from remote_scripts.shared.container_needs import need_container
from remote_scripts.shared.container_note import Cards
from remote_scripts.shared.container_system import need_running
from remote_scripts.shared.container_text import own_lines
from remote_scripts.shared.guests import container_runs
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.run import TIMED_OUT, Done
from remote_scripts.tools.system import System, changes

_NOBODY = 65534
#: For one opening, and for one program, in seconds.
_OPEN_SECONDS, _TRY_SECONDS = 60.0, 20.0
_BYTES = 1 << 20
#: What is told of programs, at most: so many of them, and of each so many bytes.
_TRIED, _TRIED_BYTES = 16, 1000
_OPENED = ""
_UNSAID = "nothing was said"
_ABOUT = re.compile(r"driver version|marketing name.*(radeon|instinct|graphics)", re.IGNORECASE)
_PLATFORM = re.compile(r"Platform #[0-9]*: *(.*)")
#: What a program that opens a node says -> what that means here.
_MEANINGS = {
    "No such file": "it is not there",
    "Permission denied": "its mode keeps it out",
    "not permitted": "no rule of the control group allows it",
    "No such device": "no driver is behind it",
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`cards`: as of container_cards.py; `uses`: what packages were installed for: with `video` vainfo has to work."""

    ctid: int
    cards: Cards = field(default_factory=Cards)
    uses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """`state`: running or stopped; `nodes`: paths that were opened; `tried`: in words, what programs that use a card
    say of it.
    """

    state: str
    nodes: list[str]
    tried: list[str]


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Opens each.

    :raises Failure: one can't be opened by whom it is for, video doesn't work that was asked for, or one of the host's
        cards is away.
    """
    ctid, cards = wanted.ctid, wanted.cards
    handover.need_rest(system)
    need_container(system, ctid)
    nodes = card_nodes.nodes_of(system, cards)
    card_nodes.need(system, ctid, cards, nodes)
    conf = conf_text(pmxcfs.text_of(system, f"{pmxcfs.PVE_LXC}/{ctid}.conf"))
    note = noted(system, ctid)
    others = own_lines(conf, note).others
    provided = container_lines.lines_for(system, others, cards, note.given.groups).provided
    if not container_runs(system, ctid):
        system.log.say(f"container {ctid} is off: nothing was opened")
        return Answer("stopped", [], [])
    given = [node for node in nodes.nodes if node.path in provided]
    if not given:
        return Answer("running", [], [])
    check = _DeviceCheck(system, ctid)
    check.open_all([node.path for node in given])
    if cards.cards:
        check.check_groups([(node, _option(provided[node.path], "gid")) for node in given if node.group])
    problems: list[str] = []
    opened = [node.path for node in given if _is_opened(system, node, provided[node.path], check, problems)]
    if problems:
        raise Failure(
            f"devices that can be opened in container {ctid}, by root and by an ordinary user",
            "\n".join(problems),
            "what uses the card inside would fail",
            f"compare with `pct config {ctid}`; was it changed by hand since its last start? then: `pct reboot {ctid}`",
        )
    if "video" in wanted.uses:
        _need_video(ctid, check.without_video)
    return Answer("running", opened, check.tried[:_TRIED])


class _DeviceCheck:
    """A look from inside a container that runs. What isn't answered is nowhere noted as opened."""

    def __init__(self, system: System, ctid: int) -> None:
        self._log = system.log
        self._ctid = ctid
        self._inside = need_running(system, ctid)
        # Who opens (root, user, member) and a path -> what kept it from that; empty: nothing did.
        self._errors: dict[tuple[str, str], str] = {}
        #: Path -> its numbers inside, in hexadecimal.
        self.numbers: dict[str, str] = {}
        self.tried: list[str] = []
        #: The path of a node on which video doesn't work -> what was tried.
        self.without_video: dict[str, str] = {}
        # BusyBox has no setpriv that takes a user.
        self._has_setpriv = self._hangs = False

    def error_of(self, who: str, path: str, default: str = _UNSAID) -> str:
        """What kept `who` from opening a node; empty: nothing did."""
        return self._errors.get((who, path), default)

    def open_all(self, paths: Iterable[str]) -> None:
        """Each of them, by root and by an ordinary user.

        :raises Failure: the container answers nothing at all.
        """
        try:
            self._has_setpriv = self._ask(*_as(_NOBODY), "true").status == 0
            for path in paths:
                self._errors["root", path] = self._opening((), path)
                self._errors["user", path] = self._opening_by_a_user(path)
                if self._hangs:
                    break
        except Failure as failure:
            if not self._errors:
                raise
            self._log.say(f"note: container {self._ctid} answers no more: {failure.found}")

    def check_groups(self, nodes: Iterable[tuple[Node, str]]) -> None:
        """What counts for the nodes of cards that aren't NVIDIA's.

        :param nodes: each with the group inside that may open it, as a number; empty: none.
        """
        try:
            for node, group in nodes:
                self.numbers[node.path] = self._ask("stat", "-c", "%t:%T", node.path).text
                if group and self._has_setpriv:
                    self._errors["member", node.path] = self._opening(_as(int(group)), node.path)
                program = _program(node.path)
                if program:
                    works, text = self._trial(program)
                    self._note_trial(node.path, text)
                    if program[0] == "vainfo" and not works:
                        self.without_video[node.path] = self.tried[-1]
            if self._inside.run.has("clinfo"):
                self._note_trial("OpenCL", self._platforms())
        except Failure as failure:
            self._log.say(f"note: container {self._ctid} answers no more: {failure.found}")

    def _ask(self, *words: str, seconds: float = _OPEN_SECONDS) -> Done:
        return self._inside.run.ask(*words, seconds=seconds, limit=_BYTES)

    def _opening(self, who: Sequence[str], path: str) -> str:
        done = self._ask(*who, *_dd(path))
        self._hangs = self._hangs or done.status == TIMED_OUT
        return _error_in(done)

    def _opening_by_a_user(self, path: str) -> str:
        if self._has_setpriv:
            return self._opening(_as(_NOBODY), path)
        done = self._ask("su", "nobody", "-s", "/bin/sh", "-c", shlex.join(_dd(path)))
        if done.status and "dd: " not in done.all_text:
            # Who can't be had in there is none of the card's concern.
            why = self._log.clean(done.all_text, _TRIED_BYTES) or f"exit status {done.status}"
            self._note_trial("not tried", f"whether an ordinary user can open {path}: {why}")
            return _OPENED
        return _error_in(done)

    def _trial(self, program: Sequence[str]) -> tuple[bool, str]:
        name = program[0]
        if not self._inside.run.has(name):
            return False, f"{name} is not installed in the container, so that it was not tried"
        done = self._ask("sh", "-c", 'exec "$@" 2>&1', "sh", *program, seconds=_TRY_SECONDS)
        lines = done.output.decode("utf-8", "replace").rstrip("\n").split("\n")
        if done.status:
            why = f"no end within {_TRY_SECONDS:g} s" if done.status == TIMED_OUT else lines[-1]
            return False, f"{name} fails: {why}"
        results = sorted({(line.partition(":")[2] or line).strip() for line in lines if _ABOUT.search(line)})
        return True, f"{name} works, {results[0] if results else ''}"

    def _platforms(self) -> str:
        lines = self._ask("clinfo", "-l", seconds=_TRY_SECONDS).output.decode("utf-8", "replace").split("\n")
        platforms = [match[1] for match in map(_PLATFORM.match, lines) if match]
        return f"clinfo finds {','.join(platforms[:4]) or 'no platform'}"

    def _note_trial(self, what: str, text: str) -> None:
        self.tried.append(self._log.clean(f"{what}: {text}", _TRIED_BYTES))


def _as(group: int) -> tuple[str, ...]:
    return "setpriv", "--reuid", str(_NOBODY), "--regid", str(group), "--clear-groups"


def _dd(path: str) -> tuple[str, ...]:
    """Opens a node for reading and writing, and makes nothing where there is nothing."""
    return "dd", f"if={path}", f"of={path}", "count=0", "conv=notrunc"


def _error_in(done: Done) -> str:
    """What kept dd from opening; empty: nothing did."""
    if done.status == 0:
        return _OPENED
    if done.status == TIMED_OUT:
        return f"no answer within {_OPEN_SECONDS:g} s"
    messages = [line.partition("dd: ")[2].strip() for line in done.all_text.split("\n") if "dd: " in line]
    return messages[0] if messages else done.all_text.rpartition("\n")[2] or f"exit status {done.status}"


def _program(path: str) -> tuple[str, ...]:
    """What uses a card by that node, and says whether it works."""
    if "/renderD" in path:
        return "vainfo", "--display", "drm", "--device", path
    return ("rocminfo",) if path == "/dev/kfd" else ()


def _option(given_by: str, name: str) -> str:
    """Of a dev[n] option's words."""
    parts = given_by.removeprefix("dev ").split(",")
    return next((part.partition("=")[2] for part in parts if part.startswith(f"{name}=")), "")


def _is_opened(system: System, node: Node, given_by: str, check: _DeviceCheck, problems: list[str]) -> bool:
    """Whether it was opened by all who may; otherwise why not is among the problems. Those that aren't for all,
    on the host or by their entry, have to be there.
    """
    path, device, before = node.path, system.files.device(node.path), len(problems)
    assert device  # it has a line, or is needed
    is_for_all = device.mode & 6 == 6
    if given_by.startswith("dev "):
        # The settings say who is to have it: a user or a group.
        is_chosen = bool(_option(given_by, "uid") or _option(given_by, "gid"))
        is_for_all = not is_chosen and int(_option(given_by, "mode") or "666", 8) & 6 == 6
    root, user = check.error_of("root", path), check.error_of("user", path)
    # Root is not above the mode where the node isn't its own: a bind mount in an unprivileged container.
    if not is_for_all and "Permission denied" in root:
        root = _OPENED
    if not is_for_all:
        user = _OPENED
    if root != _OPENED:
        problems.append(f"{path}: root: {_explained(root)}")
    if user not in (_OPENED, root):
        problems.append(f"{path}: an ordinary user: {_explained(user)}")
    if node.group:
        member, numbers = check.error_of("member", path, _OPENED), f"{device.major:x}:{device.minor:x}"
        if member != _OPENED:
            problems.append(f"{path}: a member of the group {_option(given_by, 'gid')}: {_explained(member)}")
        inside = check.numbers.get(path) or numbers
        if inside != numbers:
            problems.append(f"{path}: it is the device {inside} inside, and {numbers} on the host (in hexadecimal)")
    return len(problems) == before


def _explained(message: str) -> str:
    return next((f"{meaning} ({message})" for words, meaning in _MEANINGS.items() if words in message), message)


def _need_video(ctid: int, failed: Mapping[str, str]) -> None:
    """:raises Failure: VA-API doesn't work on a card whose driver was installed for that."""
    if failed:
        raise Failure(
            f"video (VA-API) on each Intel and AMD card of container {ctid}",
            "\n".join(failed.values()),
            "libraries: [video] is for that; a driver of the container's release that is older than the card doesn't "
            "know it",
            f"try `pct exec {ctid} -- vainfo --display drm --device {next(iter(failed))}`; a container of a "
            "newer release has newer drivers; or leave video out of libraries",
        )
