"""/access: logging in, users, tokens, roles, access control lists."""

from __future__ import annotations

from typing import Any

from .auth import Authenticator
from .call import Call
from .errors import Died, bad_parameters, not_allowed
from .formats import split_list
from .quorum import require_cluster_lock
from .users import BUILT_IN_ROLES, Caller, Entry, Token, User, normal_path

_LOCK = "file-user_cfg"
_REALMS = frozenset({"pam", "pve"})
# What the web interface shows or hides by; the path that each stands for.
_CAPABILITIES = {
    "access": "/access", "dc": "/", "mapping": "/mapping", "nodes": "/nodes", "sdn": "/sdn", "storage": "/storage",
    "vms": "/vms",
}  # fmt: skip


def log_in(call: Call, authenticator: Authenticator) -> dict[str, Any]:
    """POST /access/ticket."""
    name = call.parameters["username"]
    if "@" not in name:
        name = f"{name}@{call.parameters.get('realm', 'pam')}"
    login = authenticator.log_in(call.users, name, call.parameters["password"])
    can = {
        name_: {privilege: 1 for privilege in sorted(call.users.privileges(Caller(name), path))}
        for name_, path in _CAPABILITIES.items()
    }
    return {"username": name, "ticket": login.ticket, "CSRFPreventionToken": login.csrf, "cap": can}


def permissions(call: Call) -> dict[str, dict[str, int]]:
    """GET /access/permissions: what the caller may, or with Sys.Audit somebody else."""
    who = call.caller
    if asked := call.parameters.get("userid"):
        user, _, token = asked.partition("!")
        who = Caller(user, token or None)
        if who != call.caller:
            call.require("/access", "Sys.Audit")
    wanted = call.parameters.get("path")
    found = {}
    for path in [wanted] if wanted else call.users.paths():
        if has := call.users.privileges(who, path):
            found[path] = {name: int(propagate) for name, propagate in has.items()}
    return found


# -- access control lists --------------------------------------------------------------------------------------
def entries(call: Call) -> list[dict[str, Any]]:
    """GET /access/acl: the entries that the caller may see."""
    everything = call.may("/access", "Sys.Audit")
    return [
        {"path": e.path, "propagate": int(e.propagate), "roleid": e.role, "type": e.kind, "ugid": e.who}
        for e in call.users.entries
        if everything or call.may(e.path, "Permissions.Modify")
    ]


def change_entries(call: Call) -> None:
    """PUT /access/acl: give roles on a path to users, groups and tokens, or take them away."""
    path = normal_path(call.parameters["path"])
    if path is None:
        raise bad_parameters({"path": f"invalid ACL path '{call.parameters['path']}'"})
    call.require(path, "Permissions.Modify")
    kinds = {"user": "users", "group": "groups", "token": "tokens"}
    if not any(name in call.parameters for name in kinds.values()):
        raise bad_parameters(dict.fromkeys(kinds.values(), "either 'users', 'groups' or 'tokens' is required."))
    for kind, name in kinds.items():
        for who in split_list(call.parameters.get(name, "")):
            require_cluster_lock(call.host, _LOCK, "ACL update failed")
            _require_known(call, kind, who)
            for role in split_list(call.parameters["roles"]):
                _change_entry(call, Entry(path, bool(call.parameters.get("propagate", 1)), kind, who, role))
    call.users.save()


def _require_known(call: Call, kind: str, who: str) -> None:
    user, _, token = who.partition("!")
    known = user in call.users.users and (not token or token in call.users.users[user].tokens)
    if kind == "group" or known:
        return
    if token and user in call.users.users:
        raise Died(f"ACL update failed: no such token '{token}' for user '{user}'")
    raise Died(f"ACL update failed: user '{user}' does not exist")


def _change_entry(call: Call, entry: Entry) -> None:
    if entry.role not in BUILT_IN_ROLES and entry.role not in call.users.roles:
        raise Died(f"ACL update failed: role '{entry.role}' does not exist")
    same = (entry.path, entry.kind, entry.who, entry.role)
    call.users.entries = [e for e in call.users.entries if (e.path, e.kind, e.who, e.role) != same]
    if not call.parameters.get("delete"):
        call.users.entries.append(entry)


# -- roles -----------------------------------------------------------------------------------------------------
def roles(call: Call) -> list[dict[str, Any]]:
    """GET /access/roles."""
    every = {**dict.fromkeys(BUILT_IN_ROLES, 1), **dict.fromkeys(call.users.roles, 0)}
    return [
        {"roleid": name, "privs": ",".join(sorted(call.users.privileges_of_role(name))), "special": special}
        for name, special in every.items()
    ]


def role(call: Call) -> dict[str, int]:
    """GET /access/roles/{roleid}: what it allows.

    Raises:
        ApiError: 500, there is none of that name.
    """
    name = call.parameters["roleid"]
    if name not in BUILT_IN_ROLES and name not in call.users.roles:
        raise Died(f"role '{name}' does not exist")
    return dict.fromkeys(sorted(call.users.privileges_of_role(name)), 1)


def create_role(call: Call) -> None:
    """POST /access/roles."""
    name, privileges = call.parameters["roleid"], _privileges(call)
    if name.lower().startswith("pve"):
        raise bad_parameters({"roleid": "cannot use role ID starting with the (case-insensitive) 'PVE' namespace"})
    require_cluster_lock(call.host, _LOCK, "create role failed")
    if name in BUILT_IN_ROLES or name in call.users.roles:
        raise Died(f"create role failed: role '{name}' already exists")
    call.users.roles[name] = privileges
    call.users.save()


def change_role(call: Call) -> None:
    """PUT /access/roles/{roleid}."""
    name, privileges = call.parameters["roleid"], _privileges(call)
    require_cluster_lock(call.host, _LOCK, "update role failed")
    if name not in call.users.roles:
        why = "auto-generated role cannot be modified" if name in BUILT_IN_ROLES else f"role '{name}' does not exist"
        raise Died(f"update role failed: {why}")
    kept = call.users.roles[name] if call.parameters.get("append") else frozenset[str]()
    call.users.roles[name] = kept | privileges
    call.users.save()


def _privileges(call: Call) -> frozenset[str]:
    """The privileges that a request names.

    Raises:
        ApiError: 400, this version of Proxmox VE has none of that name.
    """
    wanted = split_list(call.parameters.get("privs", ""))
    for name in wanted:
        if name not in call.users.every_privilege:
            raise bad_parameters({"privs": f"invalid format - invalid privilege '{name}'\n"})
    return frozenset(wanted)


def delete_role(call: Call) -> None:
    """DELETE /access/roles/{roleid}."""
    name = call.parameters["roleid"]
    require_cluster_lock(call.host, _LOCK, "delete role failed")
    if name in BUILT_IN_ROLES:
        raise Died(f"delete role failed: auto-generated role '{name}' cannot be deleted")
    if name not in call.users.roles:
        raise Died(f"delete role failed: role '{name}' does not exist")
    del call.users.roles[name]
    call.users.entries = [entry for entry in call.users.entries if entry.role != name]
    call.users.save()


# -- users and tokens ------------------------------------------------------------------------------------------
def users(call: Call) -> list[dict[str, Any]]:
    """GET /access/users: all, or without the right to see them the caller's own."""
    everything = call.may("/access/groups", "User.Modify", "Sys.Audit", any_of=True)
    found = []
    for name, user in call.users.users.items():
        if not everything and name != call.caller.user:
            continue
        entry: dict[str, Any] = {"userid": name, "enable": int(user.enabled), "expire": user.expires}
        if (realm := name.partition("@")[2]) in _REALMS:
            entry["realm-type"] = realm
        if user.comment:
            entry["comment"] = user.comment
        if call.parameters.get("full"):
            entry["tokens"] = [{"tokenid": token, **_token_info(about)} for token, about in user.tokens.items()]
        if call.parameters.get("enabled") in (None, entry["enable"]):
            found.append(entry)
    return found


def user(call: Call) -> dict[str, Any]:
    """GET /access/users/{userid}."""
    about = call.users.users[_modified_user(call)]
    found: dict[str, Any] = {"enable": int(about.enabled), "expire": about.expires, "groups": []}
    found |= {"comment": about.comment} if about.comment else {}
    return found | (
        {"tokens": {name: _token_info(token) for name, token in about.tokens.items()}} if about.tokens else {}
    )


def domains(_: Call) -> list[dict[str, str]]:
    """GET /access/domains: the two that every node has."""
    return [
        {"comment": "Proxmox VE authentication server", "realm": "pve", "type": "pve"},
        {"comment": "Linux PAM standard authentication", "realm": "pam", "type": "pam"},
    ]


def create_user(call: Call) -> None:
    """POST /access/users."""
    asked = call.parameters
    name = asked["userid"]
    call.require(f"/access/realm/{name.partition('@')[2]}", "Realm.AllocateUser")
    call.require("/access/groups", "User.Modify")
    require_cluster_lock(call.host, _LOCK, "create user failed")
    if name in call.users.users:
        raise Died(f"create user failed: user '{name}' already exists")
    call.users.users[name] = User(bool(asked.get("enable", 1)), asked.get("expire", 0), asked.get("comment", ""))
    if "password" in asked:
        call.users.set_password(name, asked["password"])
    call.users.save()


def delete_user(call: Call) -> None:
    """DELETE /access/users/{userid}."""
    name = str(call.parameters["userid"])
    if not call.caller.is_root_ticket:
        _modified_user(call)  # for root@pam nothing is looked up, so that one who isn't there is no mistake
    require_cluster_lock(call.host, _LOCK, "delete user failed")
    if name == "root@pam":
        raise Died("delete user failed: unable to delete root@pam")
    call.users.users.pop(name, None)
    call.users.forget(name)
    call.users.entries = [e for e in call.users.entries if e.who != name and not e.who.startswith(f"{name}!")]
    call.users.save()


def _modified_user(call: Call) -> str:
    """The user that the path names, whom the caller is or may modify."""
    name = str(call.parameters["userid"])
    if call.caller.identity != name:
        call.require("/access/groups", "User.Modify")
    if name not in call.users.users:
        raise Died(f"no such user ('{name}')")
    return name


def tokens(call: Call) -> list[dict[str, Any]]:
    """GET /access/users/{userid}/token."""
    about = call.users.users[_modified_user(call)].tokens
    return [{"tokenid": name, **_token_info(token)} for name, token in about.items()]


def _token_info(token: Token) -> dict[str, Any]:
    found: dict[str, Any] = {"privsep": int(token.separated), "expire": token.expires}
    return {**found, "comment": token.comment} if token.comment else found


def _token(call: Call, user: str) -> Token:
    token = call.users.users[user].tokens.get(call.parameters["tokenid"])
    if token is None:
        raise Died(f"no such token '{call.parameters['tokenid']}' for user '{user}'")
    return token


def token(call: Call) -> dict[str, Any]:
    """GET /access/users/{userid}/token/{tokenid}."""
    return _token_info(_token(call, _modified_user(call)))


def create_token(call: Call) -> dict[str, Any]:
    """POST /access/users/{userid}/token/{tokenid}: the one moment at which its secret is shown."""
    user, name, asked = _modified_user(call), call.parameters["tokenid"], call.parameters
    if name in call.users.users[user].tokens:
        raise bad_parameters({"tokenid": "Token already exists."})
    require_cluster_lock(call.host, _LOCK, "generating token failed")
    made = Token(bool(asked.get("privsep", 1)), asked.get("expire", 0), asked.get("comment", ""))
    call.users.users[user].tokens[name] = made
    call.users.save()
    identity = f"{user}!{name}"
    # The flags come back as they were sent, that is as texts; the default is a number.
    info = {key: str(asked[key]) for key in ("comment", "expire", "privsep") if key in asked}
    secret = call.users.set_token_secret(identity)
    return {"full-tokenid": identity, "value": secret, "info": {"privsep": int(made.separated), **info}}


def change_token(call: Call) -> dict[str, Any]:
    """PUT /access/users/{userid}/token/{tokenid}."""
    user, asked = _modified_user(call), call.parameters
    token = _token(call, user)
    if asked.get("regenerate") and call.caller.token:
        raise not_allowed("a token can't make a token's secret anew")
    token.separated = bool(asked.get("privsep", token.separated))
    token.expires = asked.get("expire", token.expires)
    token.comment = "" if "comment" in split_list(asked.get("delete", "")) else asked.get("comment", token.comment)
    call.users.save()
    found = _token_info(token)
    if asked.get("regenerate"):
        found["value"] = call.users.set_token_secret(f"{user}!{asked['tokenid']}")
    return found


def delete_token(call: Call) -> None:
    """DELETE /access/users/{userid}/token/{tokenid}."""
    user = _modified_user(call)
    _token(call, user)
    name = call.parameters["tokenid"]
    del call.users.users[user].tokens[name]
    call.users.forget(f"{user}!{name}")
    call.users.entries = [entry for entry in call.users.entries if entry.who != f"{user}!{name}"]
    call.users.save()
