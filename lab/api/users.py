"""Users, tokens, roles and access control lists: /etc/pve/user.cfg and what belongs to it.

The rules are PVE::AccessControl's: of the entries on a path and the paths above it, the deepest one that has any for
the user counts; root@pam may everything; a token without privilege separation may what its user may, one with it only
what both it and its user may.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from lab.host.pve_packages import is_pve9
from lab.host.state import HostState

from .errors import not_allowed

_USERS = "/etc/pve/user.cfg"
_TOKENS = "/etc/pve/priv/token.cfg"
_PASSWORDS = "/etc/pve/priv/shadow.cfg"
_ITERATIONS = 1000  # the lab keeps no secret worth more

_MAPPING = ("Mapping.Audit", "Mapping.Use")
_STORE = ("Datastore.AllocateSpace", "Datastore.Audit")
_NETWORK = ("SDN.Audit", "SDN.Use")
_POOL = ("Pool.Allocate", "Pool.Audit")
_AGENT = tuple(f"VM.GuestAgent.{what}" for what in ("Audit", "FileRead", "FileSystemMgmt", "FileWrite"))
_VM_USER = ("VM.Audit", "VM.Backup", "VM.Config.CDROM", "VM.Config.Cloudinit", "VM.Console", *_AGENT, "VM.PowerMgmt")
_VM_ADMIN = (
    *_VM_USER,
    *("VM.Config." + what for what in ("CPU", "Disk", "HWType", "Memory", "Network", "Options")),
    *("VM." + what for what in ("Allocate", "Clone", "GuestAgent.Unrestricted", "Migrate", "Replicate", "Snapshot")),
    "VM.Snapshot.Rollback",
)
_SYSTEM_ADMIN = ("Sys.Audit", "Sys.Console", "Sys.Syslog")
_USER_ADMIN = ("Group.Allocate", "Realm.AllocateUser", "User.Modify")
_STORE_ADMIN = ("Datastore.Allocate", "Datastore.AllocateTemplate", *_STORE)
_ADMIN = (
    *_MAPPING, *_STORE_ADMIN, *_NETWORK, "SDN.Allocate", *_POOL, *_VM_ADMIN, *_SYSTEM_ADMIN, *_USER_ADMIN,
)  # fmt: skip
_ONLY_ADMINISTRATOR = (
    "Mapping.Modify", "Permissions.Modify", "Realm.Allocate", "Sys.AccessNetwork", "Sys.Incoming", "Sys.Modify",
    "Sys.PowerMgmt",
)  # fmt: skip
#: The roles that come with Proxmox VE 9, and what they allow.
BUILT_IN_ROLES: dict[str, frozenset[str]] = {
    name: frozenset(privileges)
    for name, privileges in {
        "Administrator": (*_ADMIN, *_ONLY_ADMINISTRATOR),
        "NoAccess": (),
        "PVEAdmin": _ADMIN,
        "PVEAuditor": (
            "Datastore.Audit", "Mapping.Audit", "Pool.Audit", "SDN.Audit", "Sys.Audit", "VM.Audit",
            "VM.GuestAgent.Audit",
        ),
        "PVEDatastoreAdmin": _STORE_ADMIN,
        "PVEDatastoreUser": _STORE,
        "PVEMappingAdmin": (*_MAPPING, "Mapping.Modify"),
        "PVEMappingUser": _MAPPING,
        "PVEPoolAdmin": _POOL,
        "PVEPoolUser": ("Pool.Audit",),
        "PVESDNAdmin": (*_NETWORK, "SDN.Allocate"),
        "PVESDNUser": _NETWORK,
        "PVESysAdmin": _SYSTEM_ADMIN,
        "PVETemplateUser": ("VM.Audit", "VM.Clone"),
        "PVEUserAdmin": _USER_ADMIN,
        "PVEVMAdmin": _VM_ADMIN,
        "PVEVMUser": _VM_USER,
    }.items()
}  # fmt: skip
# What Proxmox VE 8 has otherwise: one privilege for all of the agent, none for replication alone.
_ONLY_IN_9 = frozenset({*_AGENT, "VM.GuestAgent.Unrestricted", "VM.Replicate"})
_ONLY_IN_8 = "VM.Monitor"


@dataclass(frozen=True)
class Caller:
    """Who asks: a user by ticket, or by one of the user's tokens."""

    user: str
    token: str | None = None

    @property
    def identity(self) -> str:
        """`ops@pve`, or `ops@pve!tok` for a token."""
        return f"{self.user}!{self.token}" if self.token else self.user

    @property
    def is_root_ticket(self) -> bool:
        """Whether it is root@pam itself, for whom no check is made; a token of root@pam is not."""
        return self.identity == "root@pam"


ROOT = Caller("root@pam")


@dataclass
class User:
    """A user: `enabled`, when the account expires (0: never), a comment."""

    enabled: bool = True
    expires: int = 0
    comment: str = ""
    tokens: dict[str, Token] = field(default_factory=dict)


@dataclass
class Token:
    """A user's API token; `separated` is privilege separation."""

    separated: bool = True
    expires: int = 0
    comment: str = ""


@dataclass(frozen=True)
class Entry:
    """An access control list's entry; `kind` is user, group or token."""

    path: str
    propagate: bool
    kind: str
    who: str
    role: str


class Users:
    """The access configuration of a host, as read; `save` writes it.

    Args:
        host: whose /etc/pve it is.
    """

    def __init__(self, host: HostState) -> None:
        self._host = host
        self._is_9 = is_pve9(host)
        #: All privileges that this version of Proxmox VE knows.
        self.every_privilege = self.privileges_of_role("Administrator")
        self.users: dict[str, User] = {"root@pam": User()}
        self.roles: dict[str, frozenset[str]] = {}
        self.entries: list[Entry] = []
        for line in host.read(_USERS, "").splitlines():
            self._read(line.split(":"))

    @property
    def now(self) -> float:
        """The host's clock, in seconds since 1970, by which tickets and accounts expire."""
        return time.time() + float(self._host.fault("clock-ahead") or 0)

    def _read(self, fields: list[str]) -> None:
        if fields[0] == "user":
            self.users[fields[1]] = User(fields[2] == "1", int(fields[3] or 0), fields[7] if len(fields) > 7 else "")
        elif fields[0] == "token":
            name, _, token = fields[1].partition("!")
            self.users[name].tokens[token] = Token(fields[3] == "1", int(fields[2] or 0), fields[4])
        elif fields[0] == "role":
            self.roles[fields[1]] = frozenset(filter(None, fields[2].split(",")))
        elif fields[0] == "acl":
            for who in fields[3].split(","):
                kind = "group" if who.startswith("@") else "token" if "!" in who else "user"
                for role in fields[4].split(","):
                    self.entries.append(Entry(fields[2], fields[1] == "1", kind, who.removeprefix("@"), role))

    def save(self) -> None:
        """Write user.cfg, in the form that a node gives it."""
        lines = []
        for name, user in sorted(self.users.items()):
            lines.append(f"user:{name}:{int(user.enabled)}:{user.expires}::::{user.comment}::")
            for token, about in sorted(user.tokens.items()):
                lines.append(f"token:{name}!{token}:{about.expires}:{int(about.separated)}:{about.comment}:")
        lines.append("")
        lines += [f"role:{name}:{','.join(sorted(privileges))}:" for name, privileges in sorted(self.roles.items())]
        lines.append("")
        for entry in sorted(self.entries, key=lambda e: (e.path, e.who, e.role)):
            who = f"@{entry.who}" if entry.kind == "group" else entry.who
            lines.append(f"acl:{int(entry.propagate)}:{entry.path}:{who}:{entry.role}:")
        self._host.write(_USERS, "\n".join(lines) + "\n", 0o640)

    # -- secrets -----------------------------------------------------------------------------------------
    def set_password(self, user: str, password: str, salt: str | None = None) -> None:
        """Give a user a password, hashed with a salt that is new unless said otherwise."""
        salt = salt or secrets.token_hex(8)
        self._keep(_PASSWORDS, user, f"{user}:{salt}:{_hashed(password, salt)}:")

    def has_password(self, user: str, password: str) -> bool:
        """Whether that is the user's password."""
        for line in self._host.read(_PASSWORDS, "").splitlines():
            name, salt, hashed, *_ = line.split(":")
            if name == user:
                return secrets.compare_digest(hashed, _hashed(password, salt))
        return False

    def set_token_secret(self, identity: str, value: str | None = None) -> str:
        """Give a token its secret, a new one unless said otherwise; return it."""
        value = value or str(uuid.uuid4())
        self._keep(_TOKENS, identity, f"{identity} {value}")
        return value

    def has_token_secret(self, identity: str, value: str) -> bool:
        """Whether that is the token's secret."""
        lines = self._host.read(_TOKENS, "").splitlines()
        return any(secrets.compare_digest(line.encode(), f"{identity} {value}".encode()) for line in lines)

    def forget(self, identity: str) -> None:
        """Forget a user's password, or a token's secret; with a user, those of its tokens."""
        for path in (_TOKENS, _PASSWORDS):
            self._keep(path, identity, None)

    def _keep(self, path: str, identity: str, line: str | None) -> None:
        ends = (f"{identity} ", f"{identity}:", f"{identity}!") if line is None else (f"{identity} ", f"{identity}:")
        kept = [old for old in self._host.read(path, "").splitlines() if not old.startswith(ends)]
        self._host.write(path, "".join(f"{text}\n" for text in [*kept, *([line] if line else [])]), 0o600)

    # -- what somebody may -------------------------------------------------------------------------------
    def privileges_of_role(self, role: str) -> frozenset[str]:
        """What a role allows; nothing when there is none of that name."""
        if role not in BUILT_IN_ROLES:
            return self.roles.get(role, frozenset())
        built_in = BUILT_IN_ROLES[role]
        if self._is_9:
            return built_in
        return built_in - _ONLY_IN_9 | ({_ONLY_IN_8} if "VM.GuestAgent.Unrestricted" in built_in else set())

    def known_as(self, privileges: Iterable[str]) -> tuple[str, ...]:
        """Privileges as this version of Proxmox VE calls them."""
        names = (_ONLY_IN_8 if name in _ONLY_IN_9 and not self._is_9 else name for name in privileges)
        return tuple(dict.fromkeys(names))

    def privileges(self, caller: Caller, path: str) -> dict[str, bool]:
        """What a caller may on a path: privilege -> whether it goes on to the paths below."""
        of_user = (
            dict.fromkeys(self.every_privilege, True)
            if caller.user == "root@pam"
            else self._of("user", caller.user, path)
        )
        token = self.users[caller.user].tokens.get(caller.token or "") if caller.user in self.users else None
        if not caller.token or (token is not None and not token.separated):
            return of_user
        of_token = self._of("token", caller.identity, path)
        return {name: on and of_user[name] for name, on in of_token.items() if name in of_user}

    def _of(self, kind: str, who: str, path: str) -> dict[str, bool]:
        roles: dict[str, bool] = {}
        for above in _paths_to(path):
            here = {
                e.role: e.propagate
                for e in self.entries
                if e.path == above and e.kind == kind and e.who == who and (e.propagate or above == path)
            }
            roles = here or roles
        if "NoAccess" in roles:
            return {}
        found: dict[str, bool] = {}
        for role, propagate in roles.items():
            for name in self.privileges_of_role(role):
                found[name] = found.get(name, False) or propagate
        return found

    def may(self, caller: Caller, path: str, wanted: Iterable[str], *, any_of: bool = False) -> bool:
        """Whether a caller has all of some privileges on a path, or any of them."""
        has = self.privileges(caller, path)
        return (
            caller.is_root_ticket
            or caller.user not in self.users
            or (any if any_of else all)(name in has for name in wanted)
        )

    def require(self, caller: Caller, path: str, *wanted: str, any_of: bool = False) -> None:
        """Refuse a caller that hasn't some privileges on a path.

        Raises:
            ApiError: 403, which names path and privileges.
        """
        if not self.may(caller, path, wanted, any_of=any_of):
            raise not_allowed(f"{path}, {'|'.join(wanted)}")

    def paths(self) -> list[str]:
        """The paths that /access/permissions tells about: the fixed ones, and those with an entry."""
        fixed = ["/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms"]
        return [*fixed, *sorted({entry.path for entry in self.entries} - set(fixed))]


def _paths_to(path: str) -> list[str]:
    """`/`, `/vms`, `/vms/100` for the last."""
    parts = [part for part in path.split("/") if part]
    return ["/", *("/" + "/".join(parts[: n + 1]) for n in range(len(parts)))]


def _hashed(password: str, salt: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), _ITERATIONS).hex()


# PVE::AccessControl::check_path: what an entry can be for.
_NAME = r"[A-Za-z0-9._-]+"
_PATH = re.compile(
    rf"/|/access(?:/groups(?:/{_NAME})?|/realm(?:/{_NAME})?)?|/nodes(?:/{_NAME})?|/pool(?:/{_NAME}){{0,3}}|"
    rf"/sdn(?:/(?:controllers|dns|fabrics|ipams|prefix-lists|route-maps|zones)(?:/{_NAME})?)?|"
    rf"/sdn/zones/{_NAME}/{_NAME}(?:/[1-9][0-9]{{0,3}})?|/storage(?:/{_NAME})?|/vms(?:/[1-9][0-9]{{2,}})?|"
    rf"/mapping(?:/{_NAME}(?:/{_NAME})?)?"
)


def normal_path(path: str) -> str | None:
    """An access path without doubled or final slashes; None when there is nothing of that kind."""
    path = "/" + "/".join(part for part in path.split("/") if part)
    return path if _PATH.fullmatch(path) else None
