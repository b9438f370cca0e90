"""`homelab init 192.168.0.202`: from an address to a Pulumi project whose `pulumi up` gives the host's cards away.

Nothing is changed before the last question. Exit status: 0, done; 1, declined, nothing was done; 2, it couldn't be
done; 130, interrupted.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Sequence

from homelab.errors import Declined, HomelabError, Mistake
from homelab.init.ask import Ask, say, to_type
from homelab.later import later

# What it needs to read a host takes a second to import: the first line comes before that.
conversation, stack_options = later("homelab.cli.conversation"), later("homelab.cli.stack_options")

DECLINED, FAILED, INTERRUPTED = 1, 2, 130


def parser() -> argparse.ArgumentParser:
    """The command's arguments. No secret is one of them."""
    parser = argparse.ArgumentParser(
        prog="homelab init",
        description="Reads a Proxmox VE host, asks who gets its cards, and writes a Pulumi project into this folder, "
        "or adds to the one that is here. It changes nothing before your answer to the last question.",
        epilog="Secrets come from the environment or a question: HOMELAB_PASSWORD (the host's password, used once), "
        "PULUMI_CONFIG_PASSPHRASE.",
    )
    add = parser.add_argument
    add("address", metavar="[USER@]HOST[:PORT]", help="the host; or its name in the settings")
    stack = "write Pulumi.STACK.yaml (default: the stack that Pulumi has selected, else homelab)"
    add("--stack", type=_stack, help=stack)
    whom = (
        "rtx5090=103 (a VM), =901,950 (containers), =103,901 (in turn), =new-vm, =new-container, =vms, =host, =nobody"
    )
    add("--card", action="append", default=[], metavar="CARD=WHO", help=f"who gets a card: {whom}")
    setting = "any setting, such as vms.sandbox.nvidia.driver=580"
    add("--set", action="append", default=[], metavar="PATH=VALUE", help=setting)
    add("--nvidia", action="store_true", help="NVIDIA's driver in the VMs, too; it asks for the VMs' addresses")
    where = "for --nvidia: where a VM accepts SSH; 103=none: no driver there"
    add("--guest", action="append", default=[], metavar="VMID=[USER@]ADDRESS", help=where)
    add("--host-key", metavar="KEY", help="the host's key or its SHA256 fingerprint, as its console shows it")
    add("--identity", metavar="FILE", help="log in with this private key")
    add("--yes", action="store_true", help="ask nothing: take the preselected answers")
    add("--dry-run", action="store_true", help="show what would be done, and change nothing")
    return parser


def _stack(text: str) -> str:
    return str(stack_options.name(text))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = parser().parse_args(argv)
    done: list[str] = []
    try:
        say(f"Asking {arguments.address} ...")
        conversation.hold(arguments, Ask(arguments.yes), done)
        return 0
    except Declined as declined:
        say(str(declined))
        return DECLINED
    except KeyboardInterrupt:
        _say_where_it_stands("Interrupted.", done)
        return INTERRUPTED
    except (Mistake, HomelabError) as error:
        _say_where_it_stands(to_type(str(error)), done)
    except Exception as error:
        # Else its exit status would be the one of "declined". Another text than an OSError's may hold a secret.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error) if isinstance(error, OSError) else f"at line {frame.lineno} of {frame.filename}"
        _say_where_it_stands(f"Not foreseen: {type(error).__name__} {text}. If that is homelab's, report it.", done)
    return FAILED


def _say_where_it_stands(why: str, done: Sequence[str]) -> None:
    say(why, f"Done: {'; '.join(done)}. Run it again: it goes on from there." if done else "Nothing was changed.")
