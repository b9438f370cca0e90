"""Findings in a container's configuration: missing devices, lines without effect, rules, modes. Pure."""

from __future__ import annotations

import shlex
from collections import defaultdict

from homelab.doctor.case import Case
from homelab.doctor.devices import Row, is_for_everybody, is_gpu, names
from homelab.findings import Finding, Stage
from homelab.vm import refusals
from remote_scripts.pve.container_conf import Rule
from remote_scripts.pve.guest_kinds import CONTAINER

# Majors that NVIDIA's driver and the kernel gave out for good (Documentation/admin-guide/devices.txt): NVIDIA's cards,
# dri.
_STATIC = {195, 226}


def findings(case: Case) -> list[Finding]:
    """What its configuration doesn't give it, as its owner or this program has it, or gives it in a way that has no
    effect.
    """
    judged = case.cards.judged.findings
    lacks = [[], []] if judged or case.cards.is_set else [_not_given(case), _not_allowed(case)]
    return [
        *judged, *lacks[0], *_without_effect(case), *_wrong_source(case), *_not_created(case), *_sourceless(case),
        *lacks[1], *_read_only(case), *_for_root_only(case),
    ]  # fmt: skip


def _finding(wanted: str, found: str, why: str, step: str) -> list[Finding]:
    return [Finding(wanted, found, why, step, Stage.CONFIGURATION)]


def _not_given(case: Case) -> list[Finding]:
    missing = [row for row in case.expected if row.entry is None]
    if not missing:
        return []
    gives = f"its configuration gives it {names([row for row in case.given if is_gpu(row.path)]) or 'no such device'}"
    wanted = f"{case.name} given {names(missing)}"
    if case.cards.guessed:
        wanted += " (or those of the cards that it is to have)"
    useful = [row for row in case.rows if row.path == "/dev/nvidia-uvm-tools" and row.entry is None and row.host]
    why = "a container has the devices that its configuration names, and no others"
    locked = refusals.locked(CONTAINER, case.container.id, case.name, case.container.parsed.options.get("lock"))
    first = Finding.of(*locked, stage=Stage.CONFIGURATION)
    return [*first, *_finding(wanted, gives, why, _give(case, [*missing, *useful]))]


def _give(case: Case, rows: list[Row]) -> str:
    """How to give devices, in commands or lines."""
    ctid = case.container.id
    if case.method == "device":
        used = {entry.line.partition(":")[0] for entry in case.container.parsed.entries if entry.method == "device"}
        free = (f"dev{number}" for number in range(256) if f"dev{number}" not in used)
        options = " ".join(
            f"--{key} {shlex.quote(f'{row.path},mode=0666')}" for key, row in zip(free, rows, strict=False)
        )
        return f"`pct set {ctid} {options}`"
    lines = [f"lxc.mount.entry: {row.path} {row.path[1:]} none bind,optional,create=file" for row in rows]
    majors = sorted({row.host.major for row in rows if row.host is not None})
    have = case.container.parsed
    lines += [
        f"lxc.cgroup2.devices.allow: c {major}:* rwm"
        for major in majors
        if not any(rule.covers(major, 0, "rw") for rule in have.rules)
    ]
    return "\n".join([f"put into /etc/pve/lxc/{ctid}.conf, above the first [section]:", *lines])


def _without_effect(case: Case) -> list[Finding]:
    conf = case.container.parsed
    if not conf.broken:
        return []
    return _finding(
        "device lines that lxc and Proxmox VE understand",
        "; ".join(conf.broken),
        "such a line has no effect, or keeps the container from starting; a mount's target has no leading slash",
        f"correct or remove it in /etc/pve/lxc/{case.container.id}.conf",
    )


def _wrong_source(case: Case) -> list[Finding]:
    wrong = [row.entry for row in case.given if row.entry and row.entry.source_of(row.path) != row.path]
    if not wrong:
        return []
    return _finding(
        "each node inside to be the host's node of that name",
        "; ".join(dict.fromkeys(f"{entry.path} is the host's {entry.source}" for entry in wrong)),
        "programs inside find another device than the one whose name they open",
        f"correct the source in /etc/pve/lxc/{case.container.id}.conf: "
        + "; ".join(dict.fromkeys(entry.line for entry in wrong)),
    )


def _not_created(case: Case) -> list[Finding]:
    entries = {row.entry.line: row.entry for row in case.given if row.entry and not row.entry.created}
    if not entries:
        return []
    return _finding(
        "mount entries below /dev with create=file (a folder: create=dir)",
        "; ".join(entries),
        "a container's /dev is empty at each start: there is nothing to mount over",
        "add create=file to the options",
    )


def _sourceless(case: Case) -> list[Finding]:
    """Entries whose device the host lacks, other than the needed ones: those are the host's findings; and than this
    program's.
    """
    needed = {row.path for row in case.needed}
    folders = {entry.path for entry in case.container.parsed.entries if entry.folder}
    stays = [row.entry for row in case.given if row.entry and row.host is None and row.path not in needed | folders]
    own = case.reading.facts.container_note(case.container.id).values
    needed_entries = [one for one in stays if one.method != "mount-entry" or not one.optional]
    gone = [one for one in needed_entries if one.line.partition(":")[0] not in own]
    if not gone:
        return []
    return _finding(
        "the devices that the configuration names, on the host",
        f"not there: {', '.join(dict.fromkeys(entry.source for entry in gone))}",
        f"{case.name} doesn't start without them",
        "make them, or take their lines out: " + "; ".join(dict.fromkeys(entry.line for entry in gone)),
    )


def _not_allowed(case: Case) -> list[Finding]:
    """Devices by raw lines without a rule for the numbers that they have now."""
    rows = [row for row in case.given if row.is_barred]
    by_major: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row.host is not None:
            by_major[row.host.major].append(row)
    if not by_major:
        return []
    conf = case.container.parsed
    have = ", ".join(rule.line.partition("allow")[2].lstrip(" :=") for rule in conf.rules) or "none"
    stale = [str(rule.major) for rule in unused_rules(case)]
    lines = [f"lxc.cgroup2.devices.allow: c {major}:* rwm" for major in sorted(by_major)]
    return _finding(
        "device rules for " + "; ".join(f"{major}:* ({names(rows)})" for major, rows in sorted(by_major.items())),
        f"rules: {have}" + (f"; no device of the host has the major {', '.join(stale)}" if stale else ""),
        "majors of nvidia-uvm and nvidia-caps come from the kernel and change with it; what no rule allows can't be "
        "opened",
        "\n".join([f"put into /etc/pve/lxc/{case.container.id}.conf, above the first [section]:", *lines]),
    )


def unused_rules(case: Case) -> list[Rule]:
    """Raw rules for majors that nothing on the host has."""
    majors = {*case.reading.majors.values(), *(node.major for node in case.reading.facts.nodes.values()), *_STATIC}
    if not case.reading.majors:
        return []
    return [rule for rule in case.container.parsed.rules if rule.major is not None and rule.major not in majors]


def _read_only(case: Case) -> list[Finding]:
    rows = [row for row in case.given if row.entry and row.entry.deny_write and is_for_everybody(row.path)]
    if not rows:
        return []
    return _finding(
        f"{names(rows)} open for writing, too",
        "; ".join(row.entry.line for row in rows if row.entry is not None),
        "NVIDIA's libraries open a device for reading and writing, or not at all",
        _opening(case, rows),
    )


def _for_root_only(case: Case) -> list[Finding]:
    rows = [row for row in case.given if is_for_everybody(row.path) and _is_closed(row)]
    if not rows:
        return []
    device_rows = [row for row in rows if row.entry and row.entry.method == "device"]
    modes = "; ".join(f"{row.path} has mode {row.mode:04o}" for row in rows)
    if device_rows:
        step = _opening(case, device_rows)
    else:
        paths = shlex.join(row.source for row in rows if row.host)
        step = (
            f"on the host: `chmod 0666 {paths}`; a module option NVreg_DeviceFileMode in /etc/modprobe.d closes "
            "them again"
        )
    return _finding(
        f"{names(rows)} open to ordinary users in {case.name}",
        modes,
        "programs inside that don't run as root find no card; dev[n] makes nodes of mode 0660 unless it says another",
        step,
    )


def _opening(case: Case, rows: list[Row]) -> str:
    """How to open dev[n] options for everybody, and for writing, with all else as it is."""
    options = []
    for row in rows:
        key, _, properties = row.entry.line.partition(":") if row.entry else ("", "", "")
        mode = ["mode=0666"] if _is_closed(row) else []
        gone = ("deny-write=", *(["mode="] if mode else []))
        kept = [part for part in properties.strip().split(",") if not part.startswith(gone)]
        options.append(f"--{key} {shlex.quote(','.join([*kept, *mode]))}")
    return f"`pct set {case.container.id} {' '.join(options)}`"


def _is_closed(row: Row) -> bool:
    """Does its mode keep out a user without groups? A node that was given to a user or a group on purpose is not
    closed.
    """
    if row.host is None or row.entry is None:
        return False
    has_owner = (row.entry.uid != 0 and row.mode & 0o600 == 0o600) or (row.entry.gid != 0 and row.mode & 0o060 == 0o060)
    return row.mode & 0o006 != 0o006 and not has_owner
