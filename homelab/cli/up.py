"""`homelab up --all` and `homelab preview --all`: several stacks at once, side by side where their hosts differ.

First each stack's preview, then one yes for all of them, then each `pulumi up`. Exit status: 0, all is well; 1, one of them was refused or
failed, or the answer was no; 2, nothing was begun; 130, interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from homelab.all_stacks import order, progress
from homelab.all_stacks.members import Member, members
from homelab.all_stacks.progress import Operation, Progress, in_time
from homelab.cli import stack_options
from homelab.cli.board import Board
from homelab.cli.output import Declined, Output, ended_as_by_ctrl_c
from homelab.cli.pulumi import Pulumi
from homelab.cli.questions import Preselected, Questions, questions
from homelab.cli.runs import run_all
from homelab.errors import HomelabError
from homelab.settings import project
from homelab.show import terminal

WELL, NOT_ALL, NOTHING, INTERRUPTED = 0, 1, 2, 130
PASSPHRASE = "PULUMI_CONFIG_PASSPHRASE"
# A run takes some 300 MB, and waits for its host most of the time.
MOST = 4


def _number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100:
        raise argparse.ArgumentTypeError("a number from 1 to 100")
    return int(text)


def parser(operation: Operation) -> argparse.ArgumentParser:
    """The command's arguments. No secret is one of them."""
    found = argparse.ArgumentParser(
        prog=f"homelab {operation}",
        description=f"`pulumi {operation}` of several stacks: side by side where their hosts differ, one after the other where they don't.",
        epilog=f"Secrets come from the environment: {PASSPHRASE} or {PASSPHRASE}_FILE, for all stacks that have a passphrase. "
        "Exit status: 0 all is well, 1 not all of it, 2 nothing was begun, 130 interrupted.",
    )
    which = found.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="each Pulumi.STACK.yaml of the project that is a stack")
    which.add_argument(
        "--stack", type=stack_options.name, action="append", default=[], help="this one; may be repeated"
    )
    found.add_argument(
        "--parallel", type=_number, default=MOST, metavar="N", help=f"stacks at the same time (default: {MOST})"
    )
    found.add_argument("--refresh", action="store_true", help="read the hosts first: what has drifted is corrected")
    found.add_argument(
        "--policy-pack",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="like Pulumi's option of that name",
    )
    if operation == "up":
        found.add_argument("--yes", action="store_true", help="don't ask after the previews")
        found.add_argument("--skip-preview", action="store_true", help="no previews; needs --yes")
    return found


def up(argv: Sequence[str] | None = None) -> int:
    """`homelab up`; its exit status."""
    return _carried_out("up", argv)


def preview(argv: Sequence[str] | None = None) -> int:
    """`homelab preview`; its exit status."""
    return _carried_out("preview", argv)


def _carried_out(operation: Operation, argv: Sequence[str] | None) -> int:
    parsed = parser(operation)
    arguments = parsed.parse_args(argv)
    if operation == "up" and arguments.skip_preview and not arguments.yes:
        parsed.error("--skip-preview leaves nothing to be asked about: give --yes, too")
    output = Output(sys.stdout)
    folder = Path(tempfile.mkdtemp(prefix="homelab-"))
    together = _Together(arguments, operation, output, folder)
    try:
        with ended_as_by_ctrl_c():
            return together.run()
    except Declined as declined:
        output.say(str(declined))
        return NOT_ALL
    except HomelabError as error:
        print(error, file=sys.stderr)
        return NOTHING
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal is gone
            output.say("", "Interrupted." if together.begun else "Interrupted. Nothing was changed.")
        return INTERRUPTED
    finally:
        # What failed keeps what it printed.
        if not any(folder.iterdir()):
            folder.rmdir()


class _Together:
    """One run of the command."""

    def __init__(self, arguments: argparse.Namespace, operation: Operation, output: Output, folder: Path) -> None:
        self.arguments, self.operation, self.output, self.folder = arguments, operation, output, folder
        self.ask: Questions = Preselected() if getattr(arguments, "yes", False) else questions()
        self.pulumi: dict[str, Pulumi] = {}
        self.members: list[Member] = []
        self.shared: dict[str, set[str]] = {}
        self.begun = False

    def run(self) -> int:
        """All of it; the exit status.

        :raises HomelabError: something is wrong with what was given: nothing was begun.
        :raises Declined: the person says no.
        """
        first = Pulumi.find(project(), "")
        url = first.backend()
        if url is None:
            raise HomelabError(
                wanted="a backend that Pulumi is logged in to",
                found="none",
                why="it keeps the list of stacks, and what was done",
                next="pulumi login URL, such as file://~; or set PULUMI_BACKEND_URL",
            )
        self.members, left = members(self.arguments.stack, first.stacks())
        self._passphrase(url)
        self.shared = order.shared(self.members)
        self.output.say(*left, *order.said(self.members))
        if self.operation == "up" and self.arguments.skip_preview:
            return self._summed_up(self._run("up", self.members))
        previews = self._run("preview", self.members)
        status = self._summed_up(previews)
        if self.operation == "preview" or status == INTERRUPTED:
            return status
        going = {one.stack for one in previews if one.state == "done" and one.has_changes}
        if not going:
            self.output.say("There is nothing to do." if status == WELL else "Nothing was done.")
            return status
        refused = [one for one in previews if one.state != "done"]
        self.output.say(*(f"{one.stack} is left out: its preview was refused." for one in refused))
        names = [member.name for member in self.members if member.name in going]
        if not self.ask.confirm(f"Do this ({', '.join(names)})?", default=bool(self.arguments.yes)):
            raise Declined("Nothing was done.")
        runs = self._run("up", [member for member in self.members if member.name in going])
        return max(status, self._summed_up(runs))

    def _passphrase(self, url: str) -> None:
        """One for all stacks that need one, asked for in a terminal where the environment has none.

        :raises HomelabError: nobody gives it.
        """
        folder = project()
        self.pulumi = {member.name: Pulumi.find(folder, member.name) for member in self.members}
        needing = [one.name for one in self.members if self.pulumi[one.name].needs_passphrase(url, one.text)]
        file = os.environ.get(f"{PASSPHRASE}_FILE")
        if file and PASSPHRASE not in os.environ and not os.access(file, os.R_OK):
            raise HomelabError(
                wanted=f"the passphrase in {file} ({PASSPHRASE}_FILE)",
                found="no such file, or it can't be read",
                why="the stacks' secrets can't be read without it",
                next=f"correct {PASSPHRASE}_FILE, or set {PASSPHRASE}",
            )
        if not needing:
            return
        if isinstance(self.ask, Preselected) or not sys.stdin.isatty():
            raise HomelabError(
                wanted=f"the passphrase of {', '.join(needing)}",
                found=f"neither {PASSPHRASE} nor {PASSPHRASE}_FILE is set",
                why="the stacks' secrets can't be read without it",
                next=f"set one of them; stacks with other passphrases have runs of their own: --stack {needing[0]}",
            )
        given = self.ask.secret(f"Passphrase of {', '.join(needing)}")
        for name in needing:
            self.pulumi[name].more[PASSPHRASE] = given

    def _run(self, operation: Operation, of: Sequence[Member]) -> list[Progress]:
        """Runs them all, shown on a board."""
        self.begun = self.begun or operation == "up"
        runs = [Progress(member.name, member.shown_hosts, operation) for member in of]
        options = [
            *(["--refresh"] if self.arguments.refresh else []),
            *(word for pack in self.arguments.policy_pack for word in ("--policy-pack", str(pack.absolute()))),
        ]
        first = ["up", "--yes", "--skip-preview"] if operation == "up" else ["preview"]
        commands = {one.name: (self.pulumi[one.name], [*first, *options, "--stack", one.name]) for one in of}
        board = Board(self.output.stream, runs)
        with board.shown():
            run_all(runs, self.shared, self.arguments.parallel, commands, self.folder, board)
        return runs

    def _summed_up(self, runs: Sequence[Progress]) -> int:
        """The summary; what failed in full; the exit status."""
        rows = [(one.stack, one.hosts, one.result, in_time(one.seconds) if one.seconds else "") for one in runs]
        head = ("Stack", "Hosts", "Preview" if runs[0].operation == "preview" else "Result", "Time")
        said: list[str] = []
        for one in runs:
            printed = self.folder / f"{one.stack.replace('/', '_')}.{one.operation}.txt"
            if one.state in ("failed", "interrupted") and one.errors:
                said += ["", f"{one.stack}:", *one.errors, f"Its whole output: {printed}"]
            elif one.state != "interrupted":
                printed.unlink(missing_ok=True)
        status = progress.status(runs)
        if status == INTERRUPTED:
            said += ["", "Interrupted.", *(line for one in runs for line in one.where_it_stands)]
        with suppress(OSError):  # a terminal that is gone
            self.output.show("", *terminal.table(head, rows).splitlines())
            self.output.say(*said)
        return status
