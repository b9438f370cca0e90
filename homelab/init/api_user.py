"""The user of the Proxmox VE API that `homelab init` makes: the commands that make it with exactly the rights that the
settings need, and those that remove it.

The users' comments on the host say what init made, so that it can be undone from any machine.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from urllib.parse import unquote

from homelab import rights
from homelab.rights import Needs, Permissions

TOKEN = "pulumi"
# The form of the names that `name_for` gives. A user's comment alone proves nothing: others may write the same comment,
# and a user's name may have characters with a meaning for a shell, in which root runs the commands.
_NAME = re.compile(r"homelab\d*@pve")
_MARK = re.compile(r"homelab init, stack (?P<stack>[^,]+)(?:, role (?P<roles>[A-Za-z0-9]+(?: [A-Za-z0-9]+)*))?")


@dataclass(frozen=True)
class User:
    """A user of /etc/pve/user.cfg. `stack`: the stack that `homelab init` made it for, empty: init didn't make it;
    `roles`: those that it has and that init made, for this or another user.
    """

    name: str
    tokens: tuple[str, ...]
    stack: str = ""
    roles: tuple[str, ...] = ()


def users(config: str) -> list[User]:
    """The users in /etc/pve/user.cfg (PVE::AccessControl, write_user_config: texts are encoded as in an address)."""
    rows = [line.split(":") for line in config.splitlines()]
    tokens = [row[1].partition("!") for row in rows if row[0] == "token" and len(row) > 1]
    listed = []
    for row in rows:
        if row[0] == "user" and len(row) > 1:
            made_by_init = len(row) > 7 and _NAME.fullmatch(row[1])
            mark = _MARK.fullmatch(unquote(row[7])) if made_by_init else None
            own_tokens = tuple(token for name, _, token in tokens if name == row[1])
            listed.append(
                User(row[1], own_tokens, *((mark["stack"], tuple((mark["roles"] or "").split())) if mark else ()))
            )
    return listed


def name_for(stack: str, config: str) -> str:
    """The name of a stack's user: of the existing one, else the first free name."""
    existing = users(config)
    made = next((user.name for user in existing if user.stack == stack), None)
    taken = {user.name for user in existing}
    bases = (f"homelab{'' if number == 1 else number}@pve" for number in range(1, 999))
    return made or next(name for name in bases if name not in taken)


@dataclass(frozen=True)
class Making:
    """How a user is made. `name`: the user's; `commands`: for the host, in their order; `secret`: whether the last one
    prints the token's secret, so that its output isn't shown.
    """

    name: str
    commands: list[str]
    secret: bool

    @property
    def token(self) -> str:
        return f"{self.name}!{TOKEN}"


def making(stack: str, config: str, needs: Needs, *, has_secret: bool, pve: str) -> Making:
    """The commands that make a stack's user, or give it the rights that it lacks.

    :param config: /etc/pve/user.cfg.
    :param needs: the rights that the settings need.
    :param has_secret: whether the settings file has the token's secret.
    :param pve: the version of Proxmox VE.
    """
    name = name_for(stack, config)
    user = next((user for user in users(config) if user.name == name), None)
    access = Permissions.parse(config)
    wanted = {path: {rights.least(privileges.split("|"), pve) for privileges in names} for path, names in needs.items()}
    given = {path: access.has("user", name, path) or set() for path in wanted}
    lacking = rights.missing(wanted, given)
    own = user.roles if user else ()
    # A role isn't extended if another user has it, who would get more rights, nor if init didn't make it.
    kept = {entry.role for entry in access.entries if entry.subject != name} | (set(access.roles) - set(own))
    made = {role for other in users(config) for role in other.roles}
    granting = rights.commands(access, name, lacking, kept=kept, shared=sorted(made), own=own)
    # An undo removes what the comment names, so the comment is written before a role is made.
    added = [match[1] for command in granting if (match := re.match(r"pveum role add (\S+)", command))]
    given_now = [match[1] for command in granting if (match := re.search(r"--roles (\S+)$", command))]
    marked = list(dict.fromkeys([*own, *(role for role in given_now if role in {*added, *made})]))
    comment = shlex.quote(f"homelab init, stack {stack}" + (f", role {' '.join(marked)}" if marked else ""))
    commands: list[str] = []
    if user is None:
        commands.append(f"pveum user add {name} --comment {comment}")
    elif marked != [*own]:
        commands.append(f"pveum user modify {name} --comment {comment}")
    commands += granting
    has_token = user is not None and TOKEN in user.tokens
    if has_token and not has_secret:
        commands.append(f"pveum user token delete {name} {TOKEN}")
    if not has_token or not has_secret:
        commands.append(
            f"pveum user token add {name} {TOKEN} --privsep 0 --comment {shlex.quote(f'homelab init, stack {stack}')} "
            "--output-format json"
        )
    return Making(name, commands, not has_token or not has_secret)


@dataclass(frozen=True)
class Undoing:
    """How a user is removed. `commands`: for the host, in their order; `left`: a sentence for each thing that stays,
    with the reason.
    """

    commands: list[str]
    left: list[str]


def undoing(stack: str, config: str) -> Undoing:
    """Removes a stack's user, and its role if no other user has it. The user goes last, since its comment names what
    was made.
    """
    access = Permissions.parse(config)
    commands: list[str] = []
    left: list[str] = []
    own = [user for user in users(config) if user.stack == stack]
    names = {user.name for user in own}
    marked = {role for user in own for role in user.roles}
    entries = [entry for entry in access.entries if entry.kind == "user" and entry.subject in names]
    for user in own:
        commands += [f"pveum user token delete {user.name} {token}" for token in user.tokens]
    commands += [f"pveum acl delete {entry.path} --users {entry.subject} --roles {entry.role}" for entry in entries]
    # Marked roles count even if they aren't assigned: an interrupted undo may have removed the entries already.
    for role in sorted({*marked, *(entry.role for entry in entries)} & set(access.roles)):
        others = {
            entry.subject
            for entry in access.entries
            if entry.role == role and entry.subject.partition("!")[0] not in names
        }
        others |= {user.name for user in users(config) if role in user.roles and user.name not in names}
        if others:
            left.append(f"the role {role} stays: {', '.join(sorted(others))} has it, too")
        elif role in marked:
            commands.append(f"pveum role delete {role}")
        else:
            left.append(f"the role {role} stays: homelab init didn't make it")
    commands += [f"pveum user delete {name}" for name in sorted(names)]
    return Undoing(commands, left)
