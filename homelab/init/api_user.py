"""The user of the Proxmox VE API that `homelab init` makes: the commands that make it with exactly the rights that settings take, and those
that take it away.

Who made what stands in the comments of the users on the host, so that it can be undone from any machine.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from urllib.parse import unquote

from homelab import rights
from homelab.rights import Needs, Permissions

TOKEN = "pulumi"
# The names that `name_for` gives. Who may change a user on the host may give any of them a comment such as ours, and a name may be one that
# a shell would obey; commands are root's.
_NAME = re.compile(r"homelab\d*@pve")
_MARK = re.compile(r"homelab init, stack (?P<stack>[^,]+)(?:, role (?P<roles>[A-Za-z0-9]+(?: [A-Za-z0-9]+)*))?")


@dataclass(frozen=True)
class User:
    """A user of /etc/pve/user.cfg. `stack`: the one that `homelab init` made it for, empty: it didn't; `roles`: those that it has and that
    init made, for it or for another one's user.
    """

    name: str
    tokens: tuple[str, ...]
    stack: str = ""
    roles: tuple[str, ...] = ()


def users(config: str) -> list[User]:
    """The users in /etc/pve/user.cfg (PVE::AccessControl, write_user_config: texts are encoded as in an address)."""
    rows = [line.split(":") for line in config.splitlines()]
    tokens = [row[1].partition("!") for row in rows if row[0] == "token" and len(row) > 1]
    found = []
    for row in rows:
        if row[0] == "user" and len(row) > 1:
            ours = len(row) > 7 and _NAME.fullmatch(row[1])
            mark = _MARK.fullmatch(unquote(row[7])) if ours else None
            mine = tuple(token for name, _, token in tokens if name == row[1])
            found.append(User(row[1], mine, *((mark["stack"], tuple((mark["roles"] or "").split())) if mark else ())))
    return found


def name_for(stack: str, config: str) -> str:
    """The name of a stack's user: the one that was made for it, else the first that nobody has."""
    there = users(config)
    made = next((user.name for user in there if user.stack == stack), None)
    taken = {user.name for user in there}
    bases = (f"homelab{'' if number == 1 else number}@pve" for number in range(1, 999))
    return made or next(name for name in bases if name not in taken)


@dataclass(frozen=True)
class Making:
    """`name`: the user's; `commands`: to be run in their order on the host, the last of them without its answer being shown; `secret`:
    whether that one prints the token's secret.
    """

    name: str
    commands: list[str]
    secret: bool

    @property
    def token(self) -> str:
        return f"{self.name}!{TOKEN}"


def making(stack: str, config: str, needs: Needs, *, has_secret: bool, pve: str) -> Making:
    """What makes a stack's user, or gives it what it lacks.

    :param config: /etc/pve/user.cfg.
    :param needs: what the settings take.
    :param has_secret: does the settings file have the token's secret?
    :param pve: the version of Proxmox VE.
    """
    name = name_for(stack, config)
    user = next((one for one in users(config) if one.name == name), None)
    access = Permissions.parse(config)
    wanted = {path: {rights.least(one.split("|"), pve) for one in names} for path, names in needs.items()}
    given = {path: access.has("user", name, path) or set() for path in wanted}
    lacking = rights.missing(wanted, given)
    own = user.roles if user else ()
    # A role that somebody else has, too, isn't extended: it would give them more. Nor is one that a person made.
    kept = {entry.role for entry in access.entries if entry.who != name} | (set(access.roles) - set(own))
    made = {role for one in users(config) for role in one.roles}
    granting = rights.commands(access, name, lacking, kept=kept, shared=sorted(made), own=own)
    # By the comment an undo knows what is init's: it is written before a role is made.
    added = [found[1] for one in granting if (found := re.match(r"pveum role add (\S+)", one))]
    given_now = [found[1] for one in granting if (found := re.search(r"--roles (\S+)$", one))]
    marked = list(dict.fromkeys([*own, *(role for role in given_now if role in {*added, *made})]))
    comment = shlex.quote(f"homelab init, stack {stack}" + (f", role {' '.join(marked)}" if marked else ""))
    commands: list[str] = []
    if user is None:
        commands.append(f"pveum user add {name} --comment {comment}")
    elif marked != [*own]:
        commands.append(f"pveum user modify {name} --comment {comment}")
    commands += granting
    there = user is not None and TOKEN in user.tokens
    if there and not has_secret:
        commands.append(f"pveum user token delete {name} {TOKEN}")
    if not there or not has_secret:
        commands.append(
            f"pveum user token add {name} {TOKEN} --privsep 0 --comment {shlex.quote(f'homelab init, stack {stack}')} --output-format json"
        )
    return Making(name, commands, not there or not has_secret)


@dataclass(frozen=True)
class Undoing:
    """`commands`: to be run in their order; `left`: what stays, and why, a sentence each."""

    commands: list[str]
    left: list[str]


def undoing(stack: str, config: str) -> Undoing:
    """What takes a stack's user away, and its role where nobody else has it. The user, whose comment says what was made, goes last."""
    access = Permissions.parse(config)
    commands: list[str] = []
    left: list[str] = []
    mine = [user for user in users(config) if user.stack == stack]
    names = {user.name for user in mine}
    marked = {role for user in mine for role in user.roles}
    entries = [entry for entry in access.entries if entry.kind == "user" and entry.who in names]
    for user in mine:
        commands += [f"pveum user token delete {user.name} {token}" for token in user.tokens]
    commands += [f"pveum acl delete {entry.path} --users {entry.who} --roles {entry.role}" for entry in entries]
    # What was marked, and not what is assigned: of an undo that ended halfway, the entries may be gone already.
    for role in sorted({*marked, *(entry.role for entry in entries)} & set(access.roles)):
        others = {one.who for one in access.entries if one.role == role and one.who.partition("!")[0] not in names}
        others |= {one.name for one in users(config) if role in one.roles and one.name not in names}
        if others:
            left.append(f"the role {role} stays: {', '.join(sorted(others))} has it, too")
        elif role in marked:
            commands.append(f"pveum role delete {role}")
        else:
            left.append(f"the role {role} stays: homelab init didn't make it")
    commands += [f"pveum user delete {name}" for name in sorted(names)]
    return Undoing(commands, left)
