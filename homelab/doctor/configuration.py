"""Findings in a container's configuration: missing devices, lines without effect, rules, modes. Pure."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator

from homelab.doctor.devices import Case, Row, allowed_by, is_for_everybody, is_gpu, names
from homelab.findings import Finding, Stage
from homelab.vm import refusals
from remote_scripts.pve.container_conf import Entry, Rule
from remote_scripts.pve.guest_kinds import CONTAINER

# Majors that NVIDIA's driver and the kernel gave out for good (Documentation/admin-guide/devices.txt): NVIDIA's cards,
# dri.
_STATIC = {195, 226}


def findings(case: Case) -> list[Finding]:
    """What its configuration doesn't give it, as its owner or this program has it, or gives it in a way that has no
    effect.
    """
    judged = case.cards.judged.findings
    is_owners = not judged and not case.cards.is_set
    found = [
        *(_not_given(case) if is_owners else ()),
        *_without_effect(case),
        *_wrong_source(case),
        *_not_created(case),
        *_sourceless(case),
        *(_not_allowed(case) if is_owners else ()),
        *_read_only(case),
        *_for_root_only(case),
    ]
    # Whoever changes it by hand unlocks it first.
    lock = case.conf.options.get("lock") if found and not judged else None
    locked = refusals.locked(CONTAINER, case.container.id, case.name, lock)
    return [*judged, *Finding.of(*locked, stage=Stage.CONFIGURATION), *found]


def _finding(wanted: str, found: str, why: str, step: str) -> Finding:
    return Finding(wanted, found, why, step, Stage.CONFIGURATION)


def _into_file(case: Case, lines: list[str]) -> str:
    return "\n".join([f"put into /etc/pve/lxc/{case.container.id}.conf, above the first [section]:", *lines])


def _allow(majors: set[int]) -> list[str]:
    return [f"lxc.cgroup2.devices.allow: c {major}:* rwm" for major in sorted(majors)]


def _not_given(case: Case) -> Iterator[Finding]:
    # Without a driver that line would keep the container from starting.
    missing = [row for row in case.expected if row.entry is None and (row.host or case.reading.driver)]
    useful = [row for row in case.rows if row.path == "/dev/nvidia-uvm-tools" and row.entry is None and row.host]
    if missing:
        has = names(row for row, _ in case.given if is_gpu(row.path)) or "no such device"
        if case.of_nvidia and has.startswith("/") and "/dev/nvidia" not in has:
            has = f"no node of NVIDIA's, but {has}"
        guessed = " (or those of the cards that it is to have)" if case.cards.guessed else ""
        yield _finding(
            f"{case.name} given {names(missing)}{guessed}",
            f"its configuration gives it {has}",
            "a container has the devices that its configuration names, and no others",
            _give(case, [*missing, *useful]),
        )


def _give(case: Case, rows: list[Row]) -> str:
    """How to give devices, in commands or lines: as those that are there, else by dev[n]."""
    if {entry.method for _, entry in case.given} == {"mount-entry"}:
        lines = [f"lxc.mount.entry: {row.path} {row.path[1:]} none bind,optional,create=file" for row in rows]
        majors = {row.host.major for row in rows if row.host is not None}
        return _into_file(case, lines + _allow({one for one in majors if not case.conf.rule_for(one, 0, "rw")}))
    used = {entry.line.partition(":")[0] for entry in case.conf.entries if entry.method == "device"}
    free = (f"dev{number}" for number in range(256) if f"dev{number}" not in used)
    options = (f"--{key} {shlex.quote(f'{row.path},mode=0666')}" for key, row in zip(free, rows, strict=False))
    return f"`pct set {case.container.id} {' '.join(options)}`"


def _without_effect(case: Case) -> Iterator[Finding]:
    if case.conf.broken:
        yield _finding(
            "device lines that lxc and Proxmox VE understand",
            "; ".join(case.conf.broken),
            "such a line has no effect, or keeps the container from starting; a mount's target has no leading slash",
            f"correct or remove it in /etc/pve/lxc/{case.container.id}.conf",
        )


def _wrong_source(case: Case) -> Iterator[Finding]:
    wrong = {entry.line: entry for row, entry in case.given if row.source != row.path}
    if wrong:
        yield _finding(
            "each node inside to be the host's node of that name",
            "; ".join(dict.fromkeys(f"{entry.path} is the host's {entry.source}" for entry in wrong.values())),
            "programs inside find another device than the one whose name they open",
            f"correct the source in /etc/pve/lxc/{case.container.id}.conf: {'; '.join(wrong)}",
        )


def _not_created(case: Case) -> Iterator[Finding]:
    lines = dict.fromkeys(entry.line for _, entry in case.given if not entry.created)
    if lines:
        yield _finding(
            "mount entries below /dev with create=file (a folder: create=dir)",
            "; ".join(lines),
            "a container's /dev is empty at each start: there is nothing to mount over",
            "add create=file to the options",
        )


def _sourceless(case: Case) -> Iterator[Finding]:
    """Entries whose device the host lacks, other than the needed ones: those are the host's findings; and than this
    program's.
    """
    own = case.reading.facts.container_note(case.container.id).values
    lacking = [entry for row, entry in case.given if row.host is None and not row.needed and not entry.optional]
    gone = {entry.line: entry.source for entry in lacking if entry.line.partition(":")[0] not in own}
    if gone:
        yield _finding(
            "the devices that the configuration names, on the host",
            f"not there: {', '.join(dict.fromkeys(gone.values()))}",
            f"{case.name} doesn't start without them",
            f"make them, or take their lines out: {'; '.join(gone)}",
        )


def _not_allowed(case: Case) -> Iterator[Finding]:
    """Devices by raw lines without a rule for the numbers that they have now."""
    by_major: dict[int, list[Row]] = defaultdict(list)
    for row in case.rows:
        if row.host is not None and row.is_barred:
            by_major[row.host.major].append(row)
    if by_major:
        have = ", ".join(map(allowed_by, case.conf.rules)) or "none"
        stale = ", ".join(str(rule.major) for rule in unused_rules(case))
        yield _finding(
            "device rules for " + "; ".join(f"{major}:* ({names(rows)})" for major, rows in sorted(by_major.items())),
            f"rules: {have}" + (f"; no device of the host has the major {stale}" if stale else ""),
            "majors of nvidia-uvm and nvidia-caps come from the kernel and change with it; what no rule allows can't "
            "be opened",
            _into_file(case, _allow({*by_major})),
        )


def unused_rules(case: Case) -> list[Rule]:
    """Raw rules for majors that nothing on the host has."""
    majors = {*case.reading.majors.values(), *(node.major for node in case.reading.facts.nodes.values()), *_STATIC}
    if not case.reading.majors:
        return []
    return [rule for rule in case.conf.rules if rule.major is not None and rule.major not in majors]


def _read_only(case: Case) -> Iterator[Finding]:
    given = [(row, entry) for row, entry in case.given if entry.deny_write and is_for_everybody(row.path)]
    if given:
        yield _finding(
            f"{names(row for row, _ in given)} open for writing, too",
            "; ".join(entry.line for _, entry in given),
            "NVIDIA's libraries open a device for reading and writing, or not at all",
            _opening(case, given),
        )


def _for_root_only(case: Case) -> Iterator[Finding]:
    given = [(row, entry) for row, entry in case.given if is_for_everybody(row.path) and _is_closed(row, entry)]
    if given:
        by_options = [(row, entry) for row, entry in given if entry.method == "device"]
        paths = shlex.join(row.source for row, _ in given)
        yield _finding(
            f"{names(row for row, _ in given)} open to ordinary users in {case.name}",
            "; ".join(f"{row.path} has mode {row.mode:04o}" for row, _ in given),
            "programs inside that don't run as root find no card; dev[n] makes nodes of mode 0660 unless it says "
            "another",
            _opening(case, by_options)
            if by_options
            else f"on the host: `chmod 0666 {paths}`; a module option NVreg_DeviceFileMode in /etc/modprobe.d closes "
            "them again",
        )


def _opening(case: Case, given: list[tuple[Row, Entry]]) -> str:
    """How to open dev[n] options for everybody, and for writing, with all else as it is."""
    options = []
    for row, entry in given:
        key, _, properties = entry.line.partition(":")
        mode = ["mode=0666"] if _is_closed(row, entry) else []
        gone = ("deny-write=", *(["mode="] if mode else []))
        kept = [part for part in properties.strip().split(",") if not part.startswith(gone)]
        options.append(f"--{key} {shlex.quote(','.join([*kept, *mode]))}")
    return f"`pct set {case.container.id} {' '.join(options)}`"


def _is_closed(row: Row, entry: Entry) -> bool:
    """Does its mode keep out a user without groups? A node that was given to a user or a group on purpose is not
    closed.
    """
    has_owner = (entry.uid != 0 and row.mode & 0o600 == 0o600) or (entry.gid != 0 and row.mode & 0o060 == 0o060)
    return row.host is not None and row.mode & 0o006 != 0o006 and not has_owner
