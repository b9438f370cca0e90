"""`python -m lab`: start, stop and look at simulated Proxmox VE hosts."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab.client import Lab, default_state
from lab.state import LabError, is_running, read_lab_file

DEFAULT_SCENARIO = "rtx5090"


def _state(arguments: argparse.Namespace) -> Path:
    return arguments.state if arguments.state is not None else default_state(arguments.scenario or DEFAULT_SCENARIO)


def _show(arguments: argparse.Namespace, status: dict[str, Any], text: str) -> None:
    print(json.dumps(status, indent=2) if arguments.json else text)


def _describe(status: dict[str, Any], state: Path) -> str:
    ssh = status["ssh"]
    login = f"ssh -i {ssh['privateKeyFile']} -p {ssh['port']} {ssh['user']}@{ssh['host']}"
    vms = "".join(
        f"\n  VM {vmid}: ssh -i {vm['privateKeyFile']} -p {vm['port']} {vm['user']}@{vm['host']} <command>"
        for vmid, vm in sorted(status.get("guests", {}).items())
    )
    return (
        f"lab {status['scenario']} (node {status['node']}): {status['phase']}\n  {login} <command>{vms}\n"
        f"  {status['api']['url']}/api2/json\n  {state}"
    )


def _start(arguments: argparse.Namespace) -> int:
    state = _state(arguments)
    before = read_lab_file(state)
    already = is_running(before)
    scenario = arguments.scenario or (before.scenario if before is not None else DEFAULT_SCENARIO)
    lab = Lab.start(scenario, state, outlives_caller=True)
    if already:
        print(f"the lab in {lab.state} was already running", file=sys.stderr)
    status = lab.status()
    _show(arguments, status, _describe(status, lab.state))
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    state = _state(arguments)
    if not (state / "lab.json").exists():
        status: dict[str, Any] = {"running": False, "phase": "absent"}
        _show(arguments, status, f"no lab in {state}: nothing to stop")
        return 0
    lab = Lab.open(state)
    was_running = lab.running
    lab.stop()
    _show(arguments, lab.status(), f"the lab in {state} " + ("is stopped" if was_running else "was not running"))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    """Exit 0 when the lab runs, 3 when not (as systemctl status)."""
    state = _state(arguments)
    if not (state / "lab.json").exists():
        _show(arguments, {"running": False, "phase": "absent"}, f"no lab in {state}")
        return 3
    status = Lab.open(state).status()
    _show(arguments, status, _describe(status, state))
    return 0 if status["running"] else 3


def _reset(arguments: argparse.Namespace) -> int:
    lab = Lab.open(_state(arguments))
    lab.reset(arguments.scenario)
    status = lab.status()
    _show(arguments, status, _describe(status, lab.state))
    return 0


def _scenarios(arguments: argparse.Namespace) -> int:
    from lab.scenario import load_scenario, scenario_names

    titles = {name: load_scenario(name).title for name in scenario_names()}
    width = max(map(len, titles))
    _show(arguments, titles, "\n".join(f"{name:<{width}}  {title}" for name, title in titles.items()))
    return 0


def _fault(arguments: argparse.Namespace) -> int:
    try:
        value = json.loads(arguments.value)
    except ValueError:
        value = arguments.value
    Lab.open(_state(arguments)).fault(arguments.name, value)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    lab = Lab.open(_state(arguments))
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    # One argument is bash text; several are a command and its arguments as they are.
    text = command[0] if len(command) == 1 else shlex.join(command)
    if not arguments.unprotected:
        from lab import confined

        known = read_lab_file(lab.state)
        return confined.run(text, lab.state, lab.machine.environment(), known.control if known else "")
    done = subprocess.run(["bash", "-c", text], env=lab.machine.environment(), cwd=lab.root / "root", check=False)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _log(arguments: argparse.Namespace) -> int:
    from lab.history import history, line

    lab = Lab.open(_state(arguments))
    entries = history(lab)
    _show(arguments, {"events": entries}, "\n".join(map(line, entries)))
    return 0


_RUN = """\
The command can write in the lab's folder alone: this machine is read-only to it, has no devices and shows no processes, and the
lab's folders stand where a host has them. So look, and break what you like; `python -m lab reset` makes the host stock again.

  python -m lab run -- cat /etc/hostname                     the lab's
  python -m lab run -- lspci -nnk                            its cards, and the drivers that have them
  python -m lab run -- 'grep . /etc/default/grub.d/*'        what an `up` has written
  python -m lab run -- 'rm /etc/initramfs-tools/hooks/*; update-initramfs -u; reboot'
  python -m lab run -- 'sed -i s/iommu=pt// /etc/default/grub.d/*; update-grub'    then: pulumi up --refresh

$HOMELAB_ROOT is the host's tree by its own path, as the program's scripts name it; /proc and the programs are this machine's.
"""


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--scenario", metavar="FILE|NAME", help=f"default: {DEFAULT_SCENARIO}")
    common.add_argument("--state", type=Path, metavar="DIR", help="the lab's folder; default: .lab/<scenario>")
    common.add_argument("--json", action="store_true", help="print JSON")
    parser = argparse.ArgumentParser(prog="python -m lab", description="A simulated Proxmox VE host over real SSH.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(
        name: str, work: Callable[[argparse.Namespace], int], text: str, more: str | None = None
    ) -> argparse.ArgumentParser:
        verb = verbs.add_parser(
            name,
            parents=[common],
            help=text,
            description=text,
            epilog=more,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(work=work)
        return verb

    add("start", _start, "start a lab; says so when it already runs")
    add("stop", _stop, "stop a lab; its folder stays")
    add("status", _status, "say whether a lab runs and how to reach it (exit status 3: it doesn't)")
    add("reset", _reset, "the stock host again, booted; same port and keys")
    add("scenarios", _scenarios, "list the scenarios")
    fault = add("fault", _fault, "set a fault of a running lab; the value is JSON or text, null clears")
    fault.add_argument("name")
    fault.add_argument("value")
    run = add("run", _run, "run a command, or one argument of bash text, on the host, as at its console", _RUN)
    run.add_argument(
        "--unprotected", action="store_true", help="without namespaces: a path without $HOMELAB_ROOT is this machine's"
    )
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    add("log", _log, "what happened: boots, connections, commands, programs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status (1: it could not be done, 2: wrong usage)."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.work(arguments))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
