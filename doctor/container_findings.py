"""What is wrong with a container's devices, from the host up to its libraries, in the order in which it must be mended. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from doctor.devices import Cards, Row, card_number, is_for_everybody, is_gpu, names
from doctor.reading import OK, Container, Reading
from doctor.report import Finding, Stage
from host.container_conf import Entry, Rule
from host.facts import NVIDIA

# pve-container's changelog.
FIRST_WITH_DEVICES = "5.0.7"
NOT_PERMITTED = "Operation not permitted"
NO_DRIVER = "No such device or address"
# Majors that NVIDIA's driver and the kernel gave out for good (Documentation/admin-guide/devices.txt): NVIDIA's cards, dri.
_STATIC = {195, 226}


@dataclass(frozen=True)
class Case:
    """All that is judged: a container on a host, the cards that it is to have, and its table."""

    reading: Reading
    container: Container
    cards: Cards
    rows: list[Row]

    @property
    def name(self) -> str:
        return f"container {self.container.id}"

    @property
    def needed(self) -> list[Row]:
        return [row for row in self.rows if row.needed]

    @property
    def given(self) -> list[Row]:
        return [row for row in self.rows if row.entry is not None]

    @property
    def method(self) -> str:
        """How a further device is best given: as those that are there, else by dev[n] where this Proxmox VE has it."""
        used = {row.entry.method for row in self.given if row.entry is not None}
        if len(used) == 1:
            return used.pop()
        return "device" if has_devices(self.reading) else "mount-entry"

    @property
    def up(self) -> str:
        """What gives a container of the settings what they want."""
        return "`pulumi up --refresh` gives it what the stack's settings want"


def has_devices(reading: Reading) -> bool:
    """Does this pve-container know dev[n]? One whose version isn't known counts as new."""
    found = [int(part) for part in re.findall(r"\d+", reading.extra.pve_container)[:3]]
    return not found or found >= [int(part) for part in FIRST_WITH_DEVICES.split(".")]


def findings(case: Case) -> list[Finding]:
    """Every one, the host's first."""
    return [*_host(case), *_configuration(case), *_restart(case), *_inside(case), *_libraries(case)]


# -- the host --------------------------------------------------------------------------------------------------------
def _host(case: Case) -> list[Finding]:
    if not case.needed:
        return []
    if not case.reading.driver:
        return [_no_driver(case)]
    return [*_missing_cards(case), *_missing_nodes(case), *_stale_nodes(case)]


def _no_driver(case: Case) -> Finding:
    cards = [device for device in case.reading.facts.display_devices if device.vendor == NVIDIA]
    on = "; ".join(f"{device.address} is on {device.driver or 'no driver'}" for device in cards)
    if cards and all(device.driver == "vfio-pci" for device in cards):
        step = "leave a card to the host: `use: lxc` in the settings for one of them, `pulumi up`; or take it out of the VM that has it"
    elif cards:
        step = (
            "install NVIDIA's driver on the host; if it is installed: `modprobe nvidia`, then `dmesg | grep -i nvrm` says why it "
            "isn't loaded (another kernel than the module's, Secure Boot, nouveau in its place)"
        )
    else:
        step = "see whether the card is in `lspci -nn`; if not, look at its power and its slot"
    return Finding(
        "NVIDIA's driver loaded on the host",
        f"no /sys/module/nvidia; {on or 'no NVIDIA card among the PCI devices'}",
        f"containers have no driver of their own: {case.name} uses the host's",
        step,
    )


def _missing_cards(case: Case) -> list[Finding]:
    """Cards that the container is to have and the driver doesn't."""
    missing = [number for number in case.cards.numbers if number in _unknown(case)]
    if not missing:
        return []
    facts = case.reading.facts
    has = ", ".join(f"{number} is {address}" for number, address in case.reading.cards.items())
    away = []
    for device in facts.display_devices:
        if device.vendor == NVIDIA and device.address not in case.reading.cards.values():
            users = ", ".join(str(user) for user in facts.guests.users_of(device.slot, case.reading.node))
            away.append(
                f"{device.address} is on {device.driver or 'no driver'}{f', given to {users}' if users else ''}"
            )
    return [
        Finding(
            f"{', '.join(f'/dev/nvidia{number}' for number in missing)} on the host, for {case.name} ({case.cards.by})",
            f"cards that the driver has: {has or 'none'}" + "".join(f"; {one}" for one in away),
            "the numbers are the driver's own, in its order; a card on vfio-pci has none",
            "give the container a card that the host has, or give that card back to the host",
        )
    ]


def _missing_nodes(case: Case) -> list[Finding]:
    """Nodes of what the driver has, which nothing has made."""
    missing = [row for row in case.needed if row.host is None and card_number(row.path) not in _unknown(case)]
    if not missing:
        return []
    loaded = "nvidia_uvm" in case.reading.facts.modules
    uvm = any(row.path == "/dev/nvidia-uvm" for row in missing) and not loaded
    return [
        Finding(
            f"{names(missing)} on the host",
            f"the driver is loaded, and nothing has made {'them' if len(missing) > 1 else 'it'}"
            + ("; the module nvidia_uvm isn't loaded" if uvm else ""),
            "nodes of NVIDIA's driver are made by programs, after each boot; what isn't on the host can't be in a container, and a "
            "dev[n] entry for it keeps the container from starting",
            f"`{' && '.join(dict.fromkeys(_made_by(row.path) for row in missing))}`",
        )
    ]


def _unknown(case: Case) -> set[int | None]:
    """Cards that the driver hasn't got; none of them while there is no driver at all."""
    if not case.reading.driver:
        return set()
    return {number for number in case.cards.numbers if number not in case.reading.cards}


def _made_by(path: str) -> str:
    """The command that makes a node. -u and -c in one call make only what -u is for."""
    number = card_number(path)
    if number is not None:
        return f"nvidia-modprobe -c {number}"
    return "nvidia-modprobe -u -c 0" if "uvm" in path else "nvidia-modprobe -c 255"


def _stale_nodes(case: Case) -> list[Finding]:
    """Nodes of an earlier boot's numbers."""
    majors = case.reading.majors
    wrong = []
    for row in case.rows:
        driver = "nvidia-caps" if "/nvidia-caps/" in row.path else "nvidia-uvm" if "-uvm" in row.path else ""
        if row.host and row.host.path == row.path and driver in majors and row.host.major != majors[driver]:
            wrong.append((row.path, row.host.major, majors[driver]))
    if not wrong:
        return []
    return [
        Finding(
            "nodes on the host with the majors that the driver has now",
            "; ".join(f"{path} has {found}, /proc/devices says {major}" for path, found, major in wrong),
            "the driver gets its numbers anew from the kernel; an old node leads to nothing, or to another driver",
            f"`rm {' '.join(path for path, _, _ in wrong)}`, then `nvidia-modprobe -u -c 0`",
        )
    ]


# -- the configuration -----------------------------------------------------------------------------------------------
def _configuration(case: Case) -> list[Finding]:
    return [
        *_locked(case), *_not_given(case), *_without_effect(case), *_wrong_source(case), *_not_created(case), *_sourceless(case),
        *_version_1(case), *_not_allowed(case), *_for_root_only(case),
    ]  # fmt: skip


def _finding(wanted: str, found: str, why: str, step: str) -> list[Finding]:
    return [Finding(wanted, found, why, step, Stage.CONFIGURATION)]


def _locked(case: Case) -> list[Finding]:
    lock = case.container.parsed.options.get("lock")
    if lock is None:
        return []
    return _finding(
        f"{case.name} free to be changed",
        f"it is locked ({lock})",
        "a task works on it, or died while it did; Proxmox VE changes and starts nothing meanwhile",
        f"wait for the task; if there is none any more: `pct unlock {case.container.id}`",
    )


def _not_given(case: Case) -> list[Finding]:
    # A card that the host hasn't got is the host's finding.
    missing = [row for row in case.needed if row.entry is None and card_number(row.path) not in _unknown(case)]
    if not missing:
        return []
    gives = f"its configuration gives it {names([row for row in case.given if is_gpu(row.path)]) or 'no such device'}"
    sections = [
        name for name, lines in case.container.parsed.elsewhere.items() if any("nvidia" in one for one in lines)
    ]
    if sections:
        gives += (
            f"; lines in the snapshot section{'s' if len(sections) > 1 else ''} {', '.join(sections)} have no effect"
        )
    wanted = f"{case.name} given {names(missing)}"
    if case.cards.guessed:
        wanted += " (or those of the cards that it is to have)"
    return _finding(
        wanted,
        gives,
        "a container has the devices that its configuration names, and no others",
        case.up if case.cards.managed else _give(case, [*missing, *_useful(case)]),
    )


def _useful(case: Case) -> list[Row]:
    return [row for row in case.rows if row.path == "/dev/nvidia-uvm-tools" and row.entry is None and row.host]


def _give(case: Case, rows: list[Row]) -> str:
    """How to give devices, in commands or lines."""
    ctid = case.container.id
    if case.method == "device":
        used = {entry.line.partition(":")[0] for entry in case.container.parsed.entries if entry.method == "device"}
        free = (f"dev{number}" for number in range(256) if f"dev{number}" not in used)
        options = " ".join(f"--{key} {row.path},mode=0666" for key, row in zip(free, rows, strict=False))
        return f"`pct set {ctid} {options}`"
    lines = [f"lxc.mount.entry: {row.path} {row.path[1:]} none bind,optional,create=file" for row in rows]
    majors = sorted({row.host.major for row in rows if row.host is not None})
    have = case.container.parsed
    lines += [
        f"lxc.cgroup2.devices.allow: c {major}:* rwm"
        for major in majors
        if not any(rule.covers(major, 0, "rw") for rule in have.in_force)
    ]
    return "\n".join([f"put into /etc/pve/lxc/{ctid}.conf, above the first [section]:", *lines])


def _without_effect(case: Case) -> list[Finding]:
    conf = case.container.parsed
    old = [row.entry.line for row in case.given if row.entry and row.entry.method == "device"]
    if old and not has_devices(case.reading):
        return _finding(
            f"a pve-container that knows dev[n] ({FIRST_WITH_DEVICES} or later)",
            f"{case.reading.extra.pve_container}; {'; '.join(old)}",
            "this release passes such lines over",
            "`apt update && apt install pve-container`, or give the devices by lxc.mount.entry lines",
        )
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
    """Entries whose device the host lacks, other than the needed ones: those are the host's findings."""
    needed = {row.path for row in case.needed}
    folders = {entry.path for entry in case.container.parsed.entries if entry.folder}
    gone = [
        row.entry
        for row in case.given
        if row.entry and row.host is None and row.path not in needed | folders and not _may_be_missing(row.entry)
    ]
    if not gone:
        return []
    return _finding(
        "the devices that the configuration names, on the host",
        f"not there: {', '.join(dict.fromkeys(entry.source for entry in gone))}",
        f"{case.name} doesn't start without them",
        "make them, or take their lines out: " + "; ".join(dict.fromkeys(entry.line for entry in gone)),
    )


def _may_be_missing(entry: Entry) -> bool:
    return entry.method == "mount-entry" and entry.optional


def _version_1(case: Case) -> list[Finding]:
    conf = case.container.parsed
    old = [rule for rule in conf.rules if rule.version == 1]
    if not old or not any(row.allowed is False for row in case.given):
        return []
    return _finding(
        "device rules for control groups of version 2 (lxc.cgroup2.devices.allow)",
        "; ".join(rule.line for rule in old),
        "Proxmox VE 7 and later have version 2 only: rules for version 1 do nothing",
        f"write lxc.cgroup2 for lxc.cgroup in /etc/pve/lxc/{case.container.id}.conf",
    )


def _not_allowed(case: Case) -> list[Finding]:
    """Devices by raw lines without a rule for the numbers that they have now. What is open inside, is allowed: by lxc's own
    configuration of unprivileged containers, or by a rule that this program can't see."""
    rows = [row for row in case.given if row.allowed is False and not (row.seen and row.seen.root == OK)]
    by_major: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row.host is not None and not _is_in_version_1(case, row):
            by_major[row.host.major].append(row)
    if not by_major:
        return []
    conf = case.container.parsed
    have = ", ".join(rule.line.partition("allow")[2].lstrip(" :=") for rule in conf.in_force) or "none"
    stale = [str(rule.major) for rule in unused_rules(case)]
    lines = [f"lxc.cgroup2.devices.allow: c {major}:* rwm" for major in sorted(by_major)]
    return _finding(
        "device rules for " + "; ".join(f"{major}:* ({names(found)})" for major, found in sorted(by_major.items())),
        f"rules: {have}" + (f"; no device of the host has the major {', '.join(stale)}" if stale else ""),
        "majors of nvidia-uvm and nvidia-caps come from the kernel and change with it; what no rule allows can't be opened",
        case.up
        if case.cards.managed
        else "\n".join([f"put into /etc/pve/lxc/{case.container.id}.conf, above the first [section]:", *lines]),
    )


def _is_in_version_1(case: Case, row: Row) -> bool:
    """Would a rule for version 1 do, if it were one for version 2?"""
    old = [rule for rule in case.container.parsed.rules if rule.version == 1 and rule.verb == "allow"]
    return row.host is not None and any(rule.covers(row.host.major, row.host.minor, row.access) for rule in old)


def unused_rules(case: Case) -> list[Rule]:
    """Raw rules for majors that nothing on the host has."""
    known = {*case.reading.majors.values(), *(node.major for node in case.reading.nodes.values()), *_STATIC}
    if not case.reading.majors:
        return []
    return [rule for rule in case.container.parsed.in_force if rule.major is not None and rule.major not in known]


def _for_root_only(case: Case) -> list[Finding]:
    rows = [row for row in case.given if is_for_everybody(row.path) and _is_closed(row)]
    if not rows:
        return []
    own = [row for row in rows if row.entry and row.entry.method == "device"]
    modes = "; ".join(f"{row.path} has mode {_mode(row):04o}" for row in rows)
    if own:
        keys = " ".join(_opened(row.entry.line) for row in own if row.entry is not None)
        step = case.up if case.cards.managed else f"`pct set {case.container.id} {keys}`"
    else:
        step = "`chmod 0666` these nodes on the host; a module option NVreg_DeviceFileMode in /etc/modprobe.d closes them again"
    return _finding(
        f"{names(rows)} open to ordinary users in {case.name}",
        modes,
        "programs inside that don't run as root find no card; dev[n] makes nodes of mode 0660 unless it says another",
        step,
    )


def _opened(line: str) -> str:
    """A dev[n] line as an option of pct, with mode 0666 and all else as it is."""
    key, _, value = line.partition(":")
    kept = [part for part in value.strip().split(",") if not part.startswith("mode=")]
    return f"--{key} {','.join([*kept, 'mode=0666'])}"


def _mode(row: Row) -> int:
    if row.entry is not None and row.entry.mode is not None:
        return row.entry.mode
    return row.host.mode if row.host else 0


def _is_closed(row: Row) -> bool:
    """Can't somebody in no group open it, by its mode? A user or a group that it is given to on purpose is an answer, too."""
    if row.host is None or row.entry is None:
        return False
    given = (row.entry.uid != 0 and _mode(row) & 0o600 == 0o600) or (row.entry.gid != 0 and _mode(row) & 0o060 == 0o060)
    return _mode(row) & 0o006 != 0o006 and not given


# -- the restart -----------------------------------------------------------------------------------------------------
def _restart(case: Case) -> list[Finding]:
    """What the configuration gives and the container, which runs with an older one, hasn't."""
    if not case.container.was_seen:
        return []
    said = []
    for row in case.given:
        if row.host is None or not row.entry or not row.entry.created or row.allowed is False:
            continue
        if row.seen is None:
            said.append(f"{row.path} isn't inside")
        elif row.seen.node.numbers != row.host.numbers:
            said.append(f"{row.path} is {row.seen.node.numbers} inside, {row.host.numbers} on the host")
        elif row.seen.root == NOT_PERMITTED and row.access in ("rw", "r"):
            said.append(f"{row.path}: {NOT_PERMITTED}, although a rule allows it")
    if not said:
        return []
    return [
        Finding(
            f"{case.name} running with its configuration",
            "; ".join(said),
            "devices and rules are taken from the configuration at the start: it runs since before they were as they are now",
            restart_step(case),
            Stage.RESTART,
        )
    ]


def restart_step(case: Case) -> str:
    """The command that gives a running container its configuration."""
    return f"restart it: `pct reboot {case.container.id}`"


# -- inside ----------------------------------------------------------------------------------------------------------
def _inside(case: Case) -> list[Finding]:
    if case.container.problem:
        return [
            Finding(
                f"to look into {case.name}",
                f"`pct exec`: {case.container.problem}",
                "whether its devices can be opened is only seen there",
                f"try `pct exec {case.container.id} -- true` on the host, and restart the container if it hangs",
                Stage.INSIDE,
            )
        ]
    found = []
    dead = [row for row in case.rows if row.seen and row.seen.root == NO_DRIVER]
    if dead:
        found.append(
            Finding(
                f"a driver behind {names(dead)}",
                NO_DRIVER,
                "the node is there, and no card of NVIDIA's driver has its number: it is on another driver, or has failed",
                "see `dmesg | grep -iE 'nvrm|vfio'` on the host",
            )
        )
    closed = [row for row in case.given if row.seen and row.seen.root not in (OK, NO_DRIVER, NOT_PERMITTED, "")]
    closed = [row for row in closed if is_for_everybody(row.path)]
    if closed:
        found.append(
            Finding(
                f"root of {case.name} to open {names(closed)}",
                "; ".join(f"{row.path}: {row.seen.root}" for row in closed if row.seen),
                "in an unprivileged container the host's nodes belong to nobody, and their mode counts for root, too",
                "give the device by dev[n] with mode=0666, or open its mode on the host",
                Stage.INSIDE,
            )
        )
    return found


# -- libraries -------------------------------------------------------------------------------------------------------
def _libraries(case: Case) -> list[Finding]:
    driver, container = case.reading.driver, case.container
    if not driver or not container.was_seen or not case.needed or container.library_versions == [driver]:
        return []
    versions = container.library_versions
    if driver in versions:
        found = "; ".join(f"{path}: {version or 'of no version'}" for path, version in container.libraries.items())
        why = "which of them a program gets depends on its search path; the wrong ones end in `Driver/library version mismatch`"
    elif container.libraries:
        found = f"{', '.join(versions) or 'libraries that say no version'} ({', '.join(container.libraries)})"
        why = "driver and libraries must be equal to the last digit: `Driver/library version mismatch` otherwise"
    else:
        found = "none (no libnvidia-ml.so.1, no libcuda.so.1)"
        why = "without the libraries nothing inside can talk to the driver, and nvidia-smi isn't there"
    return [
        Finding(
            f"NVIDIA's libraries of version {driver} in {case.name}, as the driver on the host",
            found,
            why,
            f"install NVIDIA's userspace of exactly {driver} inside, without kernel modules, once its devices are there",
            Stage.INSIDE,
        )
    ]
