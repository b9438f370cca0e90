"""`homelab init 192.168.0.202`: from an address to a settings file, a stack and a preview.

Nothing is done before the last question, where ? shows each line of it. Exit status: 0, done, or there was nothing to
do; 1, refused or declined, nothing was done; 2, it couldn't be done; 130, interrupted: what was done by then is said.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from homelab.cli import stack_options
from homelab.cli.conversation import Conversation
from homelab.cli.output import Declined, Output, ended_as_by_ctrl_c
from homelab.cli.questions import Preselected, Questions, questions
from homelab.errors import HomelabError
from homelab.settings.paths import text_of

DONE, NOTHING, FAILED, INTERRUPTED = 0, 1, 2, 130


def words(argv: Sequence[str], *, windows: bool = os.name == "nt") -> list[str]:
    """The command line's words, each `@FILE` as the words in that file: as a shell takes them, with comments.

    :param windows: a backslash is a part of a path, and stays.
    :raises SystemExit: a file can't be read.
    """
    result: list[str] = []
    for word in argv:
        if not word.startswith("@"):
            result.append(word)
            continue
        try:
            lexer = shlex.shlex(text_of(Path(word[1:])), posix=True)
            lexer.whitespace_split = True
            if windows:
                lexer.escape = ""
            result += lexer
        except (OSError, ValueError) as error:
            parser().error(f"{word}: {error}")
    return result


def parser() -> argparse.ArgumentParser:
    """The command's arguments. No secret is one of them."""
    parser = argparse.ArgumentParser(
        prog="homelab init",
        description="Reads a Proxmox VE host, asks who should get its cards, and writes a stack's settings. It changes "
        "nothing before your answer to the last question; answer ? there to see every change.",
        epilog="Each question can be answered by an option. @FILE reads options from a file, quoted as in a shell, "
        "with comments after #. Secrets come from standard input or the environment: HOMELAB_PASSWORD (the host's "
        "password), PULUMI_CONFIG_PASSPHRASE. A second run on a stack adds to its settings, or changes them.",
    )
    parser.add_argument(
        "address", nargs="?", help="the host's IP address or name; not needed if the stack's settings have it"
    )
    parser.add_argument(
        "--stack", type=stack_options.name, default="homelab", help="writes Pulumi.STACK.yaml (default: homelab)"
    )
    host = parser.add_argument_group("the host")
    host.add_argument("--port", type=int, help="port of its SSH server (default: 22)")
    host.add_argument("--user", help="user who logs in (default: root)")
    host.add_argument(
        "--host-key", metavar="KEY", help="the host's public key, or its SHA256 fingerprint, as its console shows it"
    )
    host.add_argument("--identity", metavar="FILE", help="log in with this private key")
    host.add_argument("--agent", action="store_true", help="log in with the SSH agent")
    host.add_argument(
        "--install-key",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="copy your public key to the host after a login with the password, so that later runs need no password "
        "(default); otherwise the settings keep the password, encrypted",
    )
    cards = parser.add_argument_group("cards and what they run")
    cards.add_argument(
        "--card",
        action="append",
        default=[],
        metavar="CARD=USE",
        help="who gets a card, which you name by name, slot or id: rtx5090=vm:103, =new-vm, =new-vm:110, "
        "=lxc:901,950, =shared:103,901 (in turn), =host, =none; may be repeated",
    )
    cards.add_argument(
        "--driver",
        metavar="BRANCH",
        help="branch of NVIDIA's driver on the host, such as 580; none: install none, and leave the host's as it is",
    )
    cards.add_argument("--cuda", metavar="RELEASE", help="release of CUDA's toolkit, such as 12.8; or none")
    cards.add_argument(
        "--container-toolkit",
        choices=["docker", "containerd", "podman", "none"],
        help="set up NVIDIA's container toolkit for this engine",
    )
    cards.add_argument(
        "--guest-address", metavar="ADDRESS", help="also install NVIDIA's software in the VM, over SSH at this address"
    )
    cards.add_argument(
        "--guest-port", type=int, default=22, metavar="PORT", help="port of the VM's SSH server (default: 22)"
    )
    cards.add_argument(
        "--guest-user", metavar="USER", help="root, or a user with sudo without a password (default: root)"
    )
    cards.add_argument("--guest-host-key", metavar="KEY", help="the VM's host key, or its SHA256 fingerprint")
    cards.add_argument("--vm-name", metavar="NAME", help="name of a new VM (default: gpu)")
    cards.add_argument("--storage", help="storage for a new VM's disk (default: the first one that takes disks)")
    cards.add_argument("--disk", type=int, metavar="GIB", help="size of a new VM's disk (default: 64)")
    cards.add_argument(
        "--image",
        metavar="VOLUME",
        help="cloud image of a new VM: a volume, such as local:import/noble.qcow2, or one that the host downloads, "
        "such as ubuntu-24.04; or none",
    )
    cards.add_argument(
        "--iso", metavar="VOLUME", help="CD of a new VM with an empty disk, such as local:iso/debian.iso"
    )
    cards.add_argument("--cloud-user", metavar="USER", help="user whom cloud-init creates in a new VM")
    cards.add_argument(
        "--cloud-key", metavar="FILE", help="file of the key that may log in to a new VM (default: yours)"
    )
    cards.add_argument("--cloud-ip", metavar="IP/PREFIX", help="address of a new VM, or dhcp (default: dhcp)")
    cards.add_argument("--cloud-gateway", metavar="IP", help="gateway of a new VM")
    cards.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="any setting, such as vms.sandbox.machine=q35"
    )
    pulumi = parser.add_argument_group("Pulumi")
    pulumi.add_argument(
        "--backend",
        metavar="URL",
        help="where Pulumi keeps the state, such as file://~ (default: where you are logged in)",
    )
    pulumi.add_argument(
        "--preview", action=argparse.BooleanOptionalAction, default=True, help="run `pulumi preview` at the end"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--yes", action="store_true", help="no questions: accept the preselected answers")
    how.add_argument("--dry-run", action="store_true", help="show what would be done, and change nothing")
    how.add_argument(
        "--json", action="store_true", help="print the result as JSON and ask nothing; without --yes, change nothing"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = parser().parse_args(words(sys.argv[1:] if argv is None else argv))
    output = Output(sys.stderr if arguments.json else sys.stdout)
    if arguments.json and not arguments.yes:
        arguments.dry_run = True
    result: dict[str, object] = {}
    with ended_as_by_ctrl_c():
        status = _carry_out(arguments, output, result)
    if arguments.json:
        with suppress(BrokenPipeError):
            print(json.dumps({**result, "done": output.done}, indent=2), flush=True)
    return status


def _carry_out(arguments: argparse.Namespace, output: Output, result: dict[str, object]) -> int:
    """Runs the command, reports the steps however it ends, and returns its exit status.

    :param result: gets the keys of `--json`.
    """
    try:
        _refuse_lab_shell()
        ask: Questions = Preselected() if arguments.yes or arguments.json else questions()
        conversation = Conversation(arguments, output, ask)
        try:
            conversation.hold()
        finally:
            result |= conversation.result
    except Declined as declined:
        output.say(str(declined))
        result["declined"] = str(declined)
        return NOTHING
    except KeyboardInterrupt:
        _say_where_it_stands(output, "\nInterrupted.")
        result["error"] = "interrupted"
        return INTERRUPTED
    except Exception as error:
        # Without this, its exit status would be the one of "nothing was done".
        message = str(error if isinstance(error, HomelabError) else _unforeseen(error))
        _say_where_it_stands(output, message, errors=True)
        result["error"] = message
        return FAILED
    return DONE


def _refuse_lab_shell() -> None:
    """Refuses a shell that has a simulated host's environment (lab/deploy.py).

    :raises HomelabError: it has.
    """
    if lab := os.environ.get("HOMELAB_LAB"):
        raise HomelabError(
            wanted="a shell for your own host",
            found=f"HOMELAB_LAB={lab}: in this shell Pulumi keeps its state in the simulated host's folder, with an "
            "empty passphrase",
            why="your host's state and secrets would be stored there, readable by anyone, and be removed together "
            "with the simulated host",
            next="open another shell, in which that folder's env file wasn't read, and run the same command there",
        )


def _say_where_it_stands(output: Output, why: str, *, errors: bool = False) -> None:
    """Reports an error and the steps; on standard error where standard output is closed."""
    with suppress(OSError):  # the terminal is gone
        print(why, file=sys.stderr if errors else output.stream, flush=True)
    try:
        output.say_where_it_stands()
    except OSError:
        output.stream = sys.stderr
        with suppress(OSError):
            output.say_where_it_stands()


def _unforeseen(error: Exception) -> HomelabError:
    """An unexpected error as a HomelabError. Only an OSError's text is shown: another's might hold a password."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = f": {error}" if isinstance(error, OSError) else f" in {frame.filename}, line {frame.lineno}"
    return HomelabError(
        wanted="homelab init to finish",
        found=f"{type(error).__name__}{text}",
        why="nothing after that was done",
        next="mend what it names, and run it again; if it names a line of homelab's code, please report it",
    )
