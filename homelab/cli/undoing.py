"""`homelab init --undo`: the API's user, its token and its role taken away, as far as `homelab init` made them."""

from __future__ import annotations

import argparse

from homelab.cli.access import access_to
from homelab.cli.output import Declined, Output
from homelab.cli.questions import Questions
from homelab.cli.settings_file import read_settings
from homelab.doctor.stack import path_of
from homelab.init.api_user import undoing
from homelab.init.proposal import existing
from homelab.remote import first_contact, ssh


def undo(arguments: argparse.Namespace, output: Output, ask: Questions) -> dict[str, object]:
    """Shows the commands, asks, and runs them on the host.

    :raises HomelabError: the host can't be reached or refuses one of them.
    :raises Declined: the person doesn't want it, or there is nothing.
    """
    file = path_of(arguments.stack)
    before = existing(read_settings(file), file.name)
    arguments.install_key = False  # nothing is left on the host by an undo
    access = access_to(arguments, before, output, ask)
    facts = ssh.read(access.host, guests=True)
    plan = undoing(arguments.stack, facts.cluster.users)
    result: dict[str, object] = {"commands": plan.commands, "left": plan.left}
    if not plan.commands:
        raise Declined(
            f"homelab init has made no user for the stack {arguments.stack} on this host; there is nothing to undo."
        )
    output.show("On the host:", *(f"  {command}" for command in plan.commands))
    output.say(*plan.left)
    output.say(
        "After this, the stack can't change any VM; if it is to give its cards back, run `pulumi destroy` first."
    )
    if arguments.dry_run:
        return result
    if not ask.confirm("Do it?", default=bool(arguments.yes)):
        raise Declined("Nothing was done.")
    output.steps(plan.commands, f"homelab init --undo --stack {arguments.stack}")
    first_contact.carry_out(access.host, plan.commands, lambda command, _: output.did(command))
    output.say(f"Undone. {file.name} stays; its token no longer works, and homelab init makes a new one.")
    return result
