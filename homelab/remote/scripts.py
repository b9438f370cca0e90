"""The bash that runs on a host: composed of arguments, the library and one script, and run as standard input.

No value is ever part of a command line. For commands the host keeps scripts (homelab/remote/kept_scripts.py); what else
runs there is sent whole. What is sent is what a script does, without comments and without functions that it doesn't
reach: only a change of that changes a resource.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from homelab.errors import HomelabError
from homelab.remote import bash_source

# In an installed package beside its modules, in the repository at the top.
_PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = next(folder for folder in (_PACKAGE / "remote_scripts", _PACKAGE.parent / "remote_scripts") if folder.is_dir())

# By its name the test VM of a run that was killed is known to the next one, and removed.
PASSTHROUGH_TEST_NAME = "homelab-passthrough-test"
PASSTHROUGH_TEST_FOLDER = "/run/homelab-passthrough-test"

# After its start until the dead man's switch looks at a boot, in seconds; the settings' default.
ROLLBACK_SECONDS = 600
# How long a boot's confirmation waits for another run on the host, in seconds.
CONFIRM_LOCK_SECONDS = 45
# For so long a node that has restarted waits until its cluster can be told, in seconds: pmxcfs and corosync start after
# the network.
CLUSTER_SECONDS = 120
# For so long a node that is to restart waits for its cluster, each time, and for guests that HA moves to other nodes
# (reboot_host.sh has the same).
TURN_SECONDS = 180
MOVE_SECONDS = 1800
# For so long a node waits for guests that HA brings back to it.
RETURN_SECONDS = 600
# A VM that takes a shared card waits in its hookscript for another handover (handover_host.sh: twice START_SECONDS for
# the host, RETURN_SECONDS between), and then for the containers that are shut down for it, each in its own time.
HANDOVER_SECONDS = 2 * 180 + 900 + 600
# The line of a file's header that names the parts of the library which it takes functions or variables of.
_ARGUMENT = re.compile(r"[A-Z][A-Z0-9_]*")
_NEEDS = re.compile(r"^# Needs: (.+)$", re.MULTILINE)


@functools.cache
def _text(name: str) -> str:
    # Text mode turns CRLF, which a Windows checkout may have, into the LF that bash needs.
    return (FOLDER / name).read_text(encoding="utf-8")


@functools.cache
def _code(name: str) -> str:
    return bash_source.stripped(_text(name))


@functools.cache
def _program(script: str) -> str:
    return bash_source.needed([_code(f"lib/{name}.sh") for name in library_of(script)], _code(script))


@functools.cache
def file(name: str) -> str:
    """A file that a script installs on the host, without its last newline (the script adds it).

    :raises FileNotFoundError: there is no remote_scripts/files/<name>.
    """
    return _text(f"files/{name}").removesuffix("\n")


def compose(script: str, **arguments: str) -> str:
    """The standard input for `bash -s -- VERB`.

    :param script: a file name in remote_scripts/.
    :param arguments: what the script's header lists; each becomes a quoted assignment.
    :raises FileNotFoundError: there is no such script.
    :raises ValueError: a name can't be one of an argument, and would be a part of the script.
    """
    if wrong := [name for name in arguments if not _ARGUMENT.fullmatch(name)]:
        raise ValueError(f"{script}: no names of arguments: {wrong}")
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(arguments.items()))
    return assignments + _program(script)


def library_of(script: str) -> tuple[str, ...]:
    """The parts of the library that a script, or a part (`lib/boot.sh`), needs, each after those that it needs
    itself."""
    found: dict[str, None] = {}

    def add(file: str) -> None:
        named = _NEEDS.search(_text(file))
        for name in named[1].split(", ") if named else ():
            if name not in found:
                add(f"lib/{name}.sh")
                found[name] = None

    add(script)
    return tuple(found)


# Of an answer: what it says of this one run.
_OF_THIS_RUN = frozenset(("why", "changed", "restarted"))


def nothing_new(old: Any, new: Any) -> bool:
    """Do answers say the same of a system, and the new ones of no restart? So a script answers that was run again
    because its text has changed.

    :param old: an answer, a text that ends with one, or a list of these and of other values.
    :param new: the same, which a preview may not know yet.
    """
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(nothing_new, old, new))
    if not isinstance(old, str) or not isinstance(new, str) or "{" not in old or "{" not in new:
        return bool(old == new)
    (about, _, had), (now, _, has) = old.partition("{"), new.partition("{")
    try:
        before, after = answer("{" + had), answer("{" + has)
    except HomelabError:  # no answers
        return old == new
    same = {**before, **dict.fromkeys(_OF_THIS_RUN)} == {**after, **dict.fromkeys(_OF_THIS_RUN)}
    return about == now and same and (after.get("restarted") != "yes" or old == new)


def answer(output: str) -> dict[str, Any]:
    """What a script answers: the JSON of its last line. A login may print something of its own before.

    :raises HomelabError: it is none.
    """
    line = output.strip().rpartition("\n")[2]
    try:
        found = json.loads(line)
        if isinstance(found, dict):
            # Half a surrogate pair, which JSON can escape, can't be written anywhere.
            return found if "\\ud" not in line.lower() else dict(_writable(found))
        problem = "it is no object"
    except ValueError as error:
        problem = str(error)
    raise HomelabError(
        wanted="one line of JSON from a script",
        found=f"{line[:200]!r} ({problem})",
        why="nothing follows from an answer that can't be read",
        next="log in and see whether root's shell prints something of its own for non-interactive sessions (~/.bashrc)",
    )


def _writable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_writable(key): _writable(one) for key, one in value.items()}
    return [_writable(one) for one in value] if isinstance(value, list) else value


# Bytes, not characters; in blocks, which of bash's means only -N does. Its status is that of the end of the input.
_AT_ONCE = 'LC_ALL=C; IFS= read -rN 99999999 SENT; eval "$SENT"'


def command(verb: str, user: str, *, at_once: bool = False) -> str:
    """The command line that runs a composed script: as root, through sudo for any other user.

    :param at_once: all of standard input is taken before anything runs. From a pipe `bash -s` takes one byte after the
        other, which for 60 kB is two thirds of the script's processor time. What is cut off on its way does nothing in
        either way: `main` is a script's last line.
    """
    bash = f"bash -c {shlex.quote(_AT_ONCE)} bash {verb}" if at_once else f"bash -s -- {verb}"
    return bash if user == "root" else f"sudo -n {bash}"


# What a step says that had no end; the script itself says more where it still can (lib/common.sh).
_OVERDUE = (
    "wanted: this step done within {seconds} s\\n"
    "found:  it has not ended; it was killed, with all that it had started\\n"
    "why:    something on this system hangs: a disk, a share, a card, a script of a package. What is half done is "
    "noted there\\n"
    "next:   log in, see what hangs (`dmesg` may tell) and mend it; then run `pulumi up` again, which finishes the "
    "step. "
    "What takes longer by nature: timeouts.script\\n"
)
# bash takes this line alone from standard input, byte by byte; the script's own bash has the rest.
_LIMITED = (
    '{{ timeout -s KILL {seconds} bash -c {at_once} bash "$1" 2>&3 3>&-; }} 3>&2 2>/dev/null; STATUS=$?; '
    "[[ $STATUS != 137 ]] || ((SECONDS < {seconds})) || {{ printf {overdue}; STATUS=1; }}; exit $STATUS\n"
)


def limited(text: str, seconds: int) -> str:
    """`text`, for `bash -s -- VERB`, as a step that ends in that time on the system where it runs, whatever becomes of
    who sent it: pulumi-command keeps no limit. By then its process group is killed; what it starts in groups of their
    own (`within`) ends by itself before. The last tenth is for the script: to say what hung, and to put back.
    """
    overdue = shlex.quote(_OVERDUE.format(seconds=seconds))
    first = _LIMITED.format(seconds=seconds, at_once=shlex.quote(_AT_ONCE), overdue=overdue)
    return f"{first}TIME_LIMIT={seconds}\n{text}"


def _switch(rollback_after: int) -> dict[str, str]:
    # What the dead man's switch is made of, for whoever arms it.
    program = compose(
        "rollback.sh", ROLLBACK_AFTER=str(rollback_after), ENTRY_SYSTEMD_BOOT=file("systemd_boot_entry.sh")
    ).removesuffix("\n")
    about = (
        "# Written by homelab: gives back a boot configuration that nobody confirmed. Gone once the boot is confirmed."
    )
    return {"ROLLBACK_AFTER": str(rollback_after), "ROLLBACK": f"#!/bin/bash\n{about}\n{program}"}


def cmdline(
    name: str,
    words: str,
    generation: int,
    *,
    entry: bool = False,
    rollback_after: int = ROLLBACK_SECONDS,
) -> str:
    """Standard input of cmdline.sh: `words` on the kernel command line under `name`.

    :param generation: has no part in what happens; a new one makes Pulumi run the script again.
    :param entry: the second boot entry.
    :param rollback_after: seconds after a boot's start until the dead man's switch, which this arms, looks at it.
    """
    return compose(
        "cmdline.sh",
        NAME=name,
        WORDS=words,
        ENTRY="yes" if entry else "no",
        ENTRY_GRUB=file("grub_entry.sh"),
        ENTRY_SYSTEMD_BOOT=file("systemd_boot_entry.sh"),
        NOTICE="the running kernel keeps its command line until the next reboot",
        GENERATION=str(generation),
        **_switch(rollback_after),
    )


def iommu_cmdline(words: str, generation: int = 0, *, rollback_after: int = ROLLBACK_SECONDS) -> str:
    """The layer of the IOMMU, as of `cmdline`."""
    return cmdline("iommu", words, generation, rollback_after=rollback_after)


def vfio_cmdline(words: str, generation: int = 0, *, rollback_after: int = ROLLBACK_SECONDS) -> str:
    """The layer of the binding, as of `cmdline`."""
    return cmdline("vfio", words, generation, entry=True, rollback_after=rollback_after)


def vfio_initramfs(needed: bool, generation: int = 0, *, rollback_after: int = ROLLBACK_SECONDS) -> str:
    """Standard input of vfio_initramfs.sh.

    :param needed: False where nothing is bound by this program.
    :param rollback_after: as of `cmdline`.
    """
    return compose(
        "vfio_initramfs.sh",
        NEEDED="yes" if needed else "no",
        INIT_TOP=file("init_top.sh"),
        HOOK=file("initramfs_hook.sh"),
        GENERATION=str(generation),
        **_switch(rollback_after),
    )


def reboot_host(
    policy: str,
    words: str,
    functions: Sequence[str],
    rollback_after: int,
    driver: str = "",
    flavour: str = "",
    source: str = "either",
    *,
    awaited: int = 3 * ROLLBACK_SECONDS,
    keep_quorum: bool = True,
    guests: Literal["shutdown", "maintenance"] = "shutdown",
) -> str:
    """Standard input of reboot_host.sh, with the verb `apply`, or `plan`, which decides the same and changes nothing.

    :param rollback_after: as of `cmdline`.
    :param driver: NVIDIA's that the host's own cards are to have: the installed version; for `plan` also the branch
        that is to be installed. Empty:
        it doesn't matter.
    :param flavour: of its modules.
    :param source: where it is installed from.
    :param awaited: seconds for which an `up` waits for the boot.
    :param keep_quorum: of a cluster: it restarts only if the others have a quorum without it.
    :param guests: what becomes of them, as of the setting guestsAtReboot.
    """
    return compose(
        "reboot_host.sh",
        POLICY=policy,
        WORDS=words,
        FUNCTIONS=" ".join(functions),
        DRIVER=driver,
        FLAVOUR=flavour,
        SOURCE=source,
        AWAITED=str(awaited),
        QUORUM="keep" if keep_quorum else "lose",
        HA_MODE="keep" if guests == "shutdown" else guests,
        TURN_END=_turn_end(),
        RAN_PROGRAM=_ran_program(),
        **_switch(rollback_after),
    )


def read_host(
    *,
    guests: bool = False,
    lspci: bool = False,
    acs: bool = False,
    signs: str = "",
    systems: Sequence[str] = (),
    read_system: str = "",
) -> str:
    """Standard input of read_host.sh.

    :param guests: also lists what runs, which takes a real host a second or two.
    :param acs: also reads which devices isolate what is behind them, where there are IOMMU groups already.
    :param signs: an extended regular expression; lines of the kernel's log that it finds are passed on.
    :param systems: `host` and ids of containers, which are read as well, each by the composed script `read_system`.
    """
    return compose(
        "read_host.sh",
        GUESTS="yes" if guests else "no",
        LSPCI="yes" if lspci else "no",
        ACS="yes" if acs else "no",
        SIGNS=signs,
        SYSTEMS=" ".join(systems),
        READ_SYSTEM=read_system,
    )


def passthrough_test(
    functions: Mapping[str, str], *, vmid: int | None = None, timeout: int = 180, folder: str = PASSTHROUGH_TEST_FOLDER
) -> str:
    """Standard input of passthrough_test.sh, with the verbs `apply`, or `build` and `report` for any QEMU.

    :param functions: PCI address -> vendor:device of what the test VM gets: whole cards.
    :param vmid: the VM's id; None: the next free one.
    :param timeout: seconds from the VM's start until it has said what it sees.
    :param folder: where the test's files are; for `apply` below /run, since it is removed.
    """
    return compose(
        "passthrough_test.sh",
        FUNCTIONS=" ".join(f"{address}={ids}" for address, ids in sorted(functions.items())),
        VMID="" if vmid is None else str(vmid),
        TIMEOUT=str(timeout),
        NAME=PASSTHROUGH_TEST_NAME,
        FOLDER=folder,
        INIT=file("passthrough_init.sh"),
    )


def nvidia_nodes(generation: int = 0, *, needed: bool = True) -> str:
    """Standard input of nvidia_nodes.sh.

    :param needed: False where no container has a card of NVIDIA's.
    """
    about = "# Written by homelab, which takes it away again (pulumi destroy)."
    program = bash_source.needed([_code("lib/lines.sh"), _code("lib/nvidia.sh")], "make_nvidia_nodes")
    return compose(
        "nvidia_nodes.sh",
        NEEDED="yes" if needed else "no",
        NODES=f"#!/bin/bash\n{about}\nset -eu\nROOT=${{ROOT:-}}\n{program}",
        UNIT=file("homelab-nvidia-nodes.service"),
        GENERATION=str(generation),
    )


# For the cards' drivers at a boot, and for a cluster's quorum, in seconds from the start of the service.
CARD_SECONDS, QUORUM_SECONDS = 20, 60


def card_nodes(needed: bool = True, generation: int = 0, *, wait: int = CARD_SECONDS) -> str:
    """Standard input of card_nodes.sh.

    :param needed: False where no container has a card.
    :param wait: for how many seconds a boot waits for the cards' drivers.
    """
    about = "# Written by homelab, which takes it away again (pulumi destroy)."
    program = compose("card_nodes_boot.sh", WAIT=str(wait), QUORUM=str(QUORUM_SECONDS)).removesuffix("\n")
    return compose(
        "card_nodes.sh",
        NEEDED="yes" if needed else "no",
        PROGRAM=f"#!/bin/bash\n{about}\n{program}",
        UNIT=file("homelab-card-nodes.service"),
        GENERATION=str(generation),
    )


def handover(cards: Sequence[str], generation: int = 0) -> str:
    """Standard input of handover.sh.

    :param cards: of those that are handed over, a line each: its name, its functions (address=vendor:device, the
        graphics function first, joined by commas), the ids of the VMs that may take it (joined by commas). None:
        nothing of it is needed.
    """
    about = "# Written by homelab, which takes it away again (pulumi destroy)."
    program = compose("handover_host.sh", CARDS="\n".join(cards)).removesuffix("\n")
    return compose(
        "handover.sh",
        NEEDED="yes" if cards else "no",
        PROGRAM=f"#!/bin/bash\n{about}\n{program}",
        UNIT=file("homelab-handover.service"),
        TIMER=file("homelab-handover.timer"),
        HOOK=file("handover_hook.sh"),
        GENERATION=str(generation),
    )


def handover_hook(vmid: int, generation: int = 0, *, holder: str = "") -> str:
    """Standard input of handover_hook.sh.

    :param holder: which entry of the settings wants it.
    """
    return compose("handover_hook.sh", VMID=str(vmid), HOLDER=holder, GENERATION=str(generation))


def rehearse_card(cards: Sequence[str], name: str, vmid: int) -> str:
    """Standard input of rehearse_card.sh.

    :param cards: as of `handover`.
    :param name: of the one that VM `vmid` would take.
    """
    return compose("rehearse_card.sh", CARDS="\n".join(cards), CARD_NAME=name, VMID=str(vmid))


def switch_card(name: str, vmid: int, seconds: int, since: int = 0, *, cut: bool = False) -> str:
    """Standard input of switch_card.sh.

    :param seconds: for a shutdown.
    :param cut: the VM's power is cut after that.
    :param since: how much of the story is known already, in bytes.
    """
    return compose(
        "switch_card.sh",
        CARD=name,
        VMID=str(vmid),
        SECONDS_OFF=str(seconds),
        CUT="yes" if cut else "no",
        FROM=str(since),
    )


def card_values(values: Sequence[str], generation: int = 0) -> str:
    """Standard input of card_values.sh.

    :param values: lines of address, vendor:device, attribute and value.
    """
    return compose("card_values.sh", VALUES="\n".join(values), GENERATION=str(generation))


def container_gpus(
    ctid: int,
    devices: Mapping[str, str],
    shutdown: Mapping[str, Any],
    generation: str,
    *,
    keep: bool = False,
    guest: str = "",
) -> str:
    """Standard input of container_gpus.sh.

    :param devices: `METHOD`, `MINORS`, `FUNCTIONS` and, where there are such, `CARDS`, as the script's header has them.
    :param shutdown: `timeout` in seconds, `otherwise`.
    :param generation: has no part in what happens; a new one makes Pulumi run the script again.
    :param keep: the container goes with the stack, so that nothing is taken out of it.
    :param guest: its name in the settings; a revert under another name than the last one's leaves the container as it
        is.
    """
    return compose(
        "container_gpus.sh",
        CTID=str(ctid),
        **_given(devices),
        **_shutdown(shutdown),
        KEEP="yes" if keep else "no",
        GUEST=guest,
        GENERATION=generation,
    )


def container_record(ctid: int, record: str = "") -> str:
    """Standard input of container_record.sh.

    :param record: for the verb `take`, as `give` answers it.
    """
    return compose("container_record.sh", CTID=str(ctid), NOTES=record)


def container_restart(ctid: int, devices: Mapping[str, str], shutdown: Mapping[str, Any], power: str) -> str:
    """Standard input of container_restart.sh; other arguments as of `container_gpus`.

    :param power: keep, running or stopped.
    """
    return compose("container_restart.sh", CTID=str(ctid), **_given(devices), **_shutdown(shutdown), POWER=power)


def container_verification(ctid: int, devices: Mapping[str, str]) -> str:
    """Standard input of container_verification.sh; arguments as of `container_gpus`, with `USES` where programs that
    use the cards are to work."""
    return compose("container_verification.sh", CTID=str(ctid), USES=devices.get("USES", ""), **_given(devices))


def _given(devices: Mapping[str, str]) -> dict[str, str]:
    # By name: what else a resource's inputs have is no argument, and sets no variable of bash.
    return {name: devices[name] for name in ("METHOD", "MINORS", "FUNCTIONS")} | {"CARDS": devices.get("CARDS", "")}


def _shutdown(policy: Mapping[str, Any]) -> dict[str, str]:
    # Numbers come back from the state as floating-point ones.
    return {"TIMEOUT": str(int(policy["timeout"])), "OTHERWISE": str(policy["otherwise"])}


def ledger(name: str, note: str, *, keep: bool = False) -> str:
    """Standard input of ledger.sh.

    :param note: one line of JSON; empty: what is noted is forgotten.
    :param keep: what is noted already stays, and is answered.
    :raises ValueError: the name leads out of the ledger.
    """
    if {"", ".", ".."} & {*name.split("/")}:
        raise ValueError(f"no name of a note: {name!r}")
    return compose("ledger.sh", NAME=name, NOTE=note, KEEP="yes" if keep else "no")


def start_log(vmid: int, since: int, *, boot: str = "", ours: str = "", off: bool = False) -> str:
    """Standard input of start_log.sh, with the verb `started` or, with the rest, `owed`.

    :param since: in seconds since 1970.
    :param boot: the node's boot when it was noted that the VM ran.
    :param ours: the user as which it is shut down.
    :param off: was it off already when that was noted?
    """
    off_word = "yes" if off else "no"
    return compose("start_log.sh", VMID=str(vmid), SINCE=str(since), BOOT=boot, OURS=ours, OFF=off_word)


def said_by(command: Sequence[str], seconds: int) -> str:
    """What runs one command of the host as root: its output is what the command said, and in its last line its exit
    status.

    :param seconds: how long it may take.
    """
    # English, and no letter of a value lost: Proxmox VE's commands read what they are given by the locale
    # (PVE::JSONSchema, get_options).
    line = f"LC_ALL=C.UTF-8 timeout -k 5 {seconds} {shlex.join(command)} 2>&1 </dev/null"
    return f"{line} && status=0 || status=$?\nprintf '\\n%s\\n' \"$status\"\n"


def read_log(lines: int) -> str:
    """Standard input of read_log.sh, with the verb `read_system`.

    :param lines: how many of the end.
    """
    return compose("read_log.sh", LINES=str(lines))


def confirm_boot(unless: str = "", *, told: bool = False) -> str:
    """Standard input of confirm_boot.sh.

    :param unless: the id of a boot that is not to be confirmed, as the host is about to leave it.
    :param told: that the host has judged a boot itself was said, and is no news any more.
    """
    return _confirm_boot(unless, told=told)


def start_guests(later: Sequence[int], unwanted: Sequence[int]) -> str:
    """Standard input of confirm_boot.sh, with the verb `start_guests`.

    :param later: ids of guests that this run starts itself.
    :param unwanted: of those that it wants off.
    """
    return _confirm_boot(later=later, unwanted=unwanted)


def _confirm_boot(
    unless: str = "", *, told: bool = False, later: Sequence[int] = (), unwanted: Sequence[int] = ()
) -> str:
    return compose(
        "confirm_boot.sh",
        LOCK_TIMEOUT=str(CONFIRM_LOCK_SECONDS),
        UNLESS=unless,
        JUDGED_TOLD="yes" if told else "no",
        LATER=" ".join(map(str, later)),
        UNWANTED=" ".join(map(str, unwanted)),
    )


def _ran_program() -> str:
    # What a host runs to start the guests that ran before its restart.
    about = "# Written by homelab: starts the guests again that ran before its restart of this host. Gone then."
    return f"#!/bin/bash\n{about}\n{_confirm_boot().removesuffix(chr(10))}"


def cluster_turn(node: str = "") -> str:
    """Standard input of cluster_turn.sh.

    :param node: another one, for the verb `lift`.
    """
    return compose(
        "cluster_turn.sh",
        LOCK_TIMEOUT=str(CONFIRM_LOCK_SECONDS),
        OVER_SECONDS=str(CLUSTER_SECONDS),
        RETURN_SECONDS=str(RETURN_SECONDS),
        NODE=node,
    )


def _turn_end() -> str:
    # What a node runs that nobody has told of the end of its turn.
    about = "# Written by homelab: ends this node's turn to restart, if no `pulumi up` has. Gone then."
    return f"#!/bin/bash\n{about}\n{cluster_turn().removesuffix(chr(10))}"


def diagnose(containers: Sequence[int] = ()) -> str:
    """Standard input of diagnose.sh, with the verb `diagnose`.

    :param containers: ids of those to look into, should they be there.
    """
    return compose("diagnose.sh", IDS=" ".join(str(ctid) for ctid in containers), INSIDE=file("inspect_inside.sh"))


def storage_file(*, url: str = "", volume: str = "") -> str:
    """Standard input of storage_file.sh: with the verb `sums` and a URL, or `users` and a volume."""
    return compose("storage_file.sh", URL=url, VOLUME=volume)
