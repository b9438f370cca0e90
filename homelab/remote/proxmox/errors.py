"""What a node refuses, as kinds of errors with words for people. The texts are a node's own (recorded exchanges)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from homelab.errors import HomelabError
from homelab.text import clean

# pveproxy's own codes for a node, or a daemon behind it, that it couldn't ask: while connecting, sending, receiving;
# anything else.
PROXY_FAILED = (595, 596, 597, 599)
# Of these, those after which the request certainly wasn't carried out: AnyEvent::HTTP's "errors during connection
# establishment".
PROXY_UNSENT = (595,)

# Longer than any reason of a node; what a guest can make longer, such as a log, has limits of its own.
_REASON_CHARACTERS = 2000

_PERMISSION = re.compile(r"Permission check failed(?: \((?P<path>/[^,]*), (?P<privileges>[^)]*)\))?")
_NOT_THERE = re.compile(
    r"Configuration file '.*' does not exist|pci ID '.*' does not exist|^mapping '.*' not found"
    r"|^unable to find configuration file for (?:VM|CT) \d+"
)
_TAKEN_ELSEWHERE = re.compile(r"(?:VM|CT) \d+ already exists on node '(?P<node>[^']+)'")
# Waiting for a lock failed: nothing was begun. Of a guest's configuration, or a file of the whole cluster.
_LOCK_HELD = re.compile(
    r"^(?:[\w ]+ failed: )?(?:can't lock file '[^']+' - got timeout|cfs-lock '[^']+' error: got lock request timeout)"
)
# One condition, three texts: for mappings and the like, for what starts a task, and for a guest's configuration, whose
# file can't be made because pmxcfs has made itself read-only.
_NO_QUORUM = re.compile(r"no quorum|'/etc/pve/[^']*' - (?:Permission denied|Read-only file system)")


class ApiError(HomelabError):
    """The API refused a request, or a task failed. `status` is HTTP's (0: no answer), `reason` the node's own words."""

    def __init__(self, *, wanted: str, found: str, why: str, next: str, status: int, reason: str) -> None:
        super().__init__(wanted=wanted, found=found, why=why, next=next)
        self.status, self.reason = status, reason


class NotThereError(ApiError):
    """What was asked for doesn't exist: a guest's configuration, a mapping."""


class ElsewhereError(ApiError):
    """The guest is there, on another node of the cluster: `node`."""

    node = ""


class ChangedMeanwhileError(ApiError):
    """The digest of what was read is no longer the one of what is there."""


class UnansweredError(ApiError):
    """No answer, or none from the node. `sent`: a change may have been carried out; else it certainly was not."""

    sent = True


class LockHeldError(ApiError):
    """Another process holds the lock of what is to be changed; nothing was done."""


class NoQuorumError(ApiError):
    """The cluster's nodes that are left may not write; nothing was done."""


class ForbiddenError(ApiError):
    """A right is missing. `path`: where, None: not said; `privileges`: each of them, or with `either` one of them,
    would do."""

    path: str | None = None
    privileges: tuple[str, ...] = ()
    either = False


class TaskFailedError(ApiError):
    """A task ended badly; `reason` is its exit status."""


class StillRunsError(ApiError):
    """A task hasn't ended in its time. `upid`: whose id is that."""

    upid = ""


def plain(text: str, secrets: Iterable[str] = ()) -> str:
    """A node's text as it may be shown: nothing that a terminal would obey, no secret, not without end."""
    for secret in secrets:
        if len(secret) > 3:
            text = text.replace(secret, "***")
    shown = clean(text)
    return shown if len(shown) <= _REASON_CHARACTERS else f"{shown[:_REASON_CHARACTERS]} …"


def explained(wanted: str, found: str, who: str, status: int, reason: str) -> ApiError:
    """The error for a refused request, or for a task that ended with `reason`.

    :param who: who we are to the node.
    """
    if status == 401:
        return ApiError(
            wanted=wanted,
            found=f"401 {reason or 'Unauthorized'}",
            why=f"the node doesn't know {who} by these credentials",
            next="correct api.token and api.tokenSecret "
            f"(`pveum user token list {shlex.quote(who.partition('!')[0])}` on the host lists the tokens; a "
            "secret is shown only "
            "once, when its token is made), or api.user and api.password",
            status=status,
            reason=reason,
        )
    if match := _PERMISSION.search(reason):
        return _forbidden(wanted, found, who, status, reason, match["path"], match["privileges"])
    for text, kind, why, step in (
        (_TAKEN_ELSEWHERE, ElsewhereError, *_ELSEWHERE),
        (_NOT_THERE, NotThereError, *_GONE),
        (_LOCK_HELD, LockHeldError, *_HELD),
        (_NO_QUORUM, NoQuorumError, *_UNWRITABLE),
        (_STALE, ChangedMeanwhileError, *_OVERTAKEN),
    ):
        if text.search(reason):
            return kind(wanted=wanted, found=found, why=why, next=step, status=status, reason=reason)
    if status in PROXY_FAILED:
        why, step = _NODE_AWAY
        error = UnansweredError(wanted=wanted, found=found, why=why, next=step, status=status, reason=reason)
        error.sent = status not in PROXY_UNSENT
        return error
    why, step = _other(who, status, reason)
    return ApiError(wanted=wanted, found=found, why=why, next=step, status=status, reason=reason)


_STALE = re.compile("checksum mismatch|detected modified configuration")
_GONE = ("it is the one that the stack's configuration names", "correct its id, or bring it back")
_ELSEWHERE = (
    "an id belongs to one guest in the whole cluster",
    "choose another id; or, if it is the guest that is meant, migrate it to this node, or name the node that it is "
    "on as a host",
)
_HELD = (
    "Proxmox VE changes a guest under a lock, and another process had it all that time; nothing was done",
    "wait until that process has ended, then run `pulumi up` again",
)
_UNWRITABLE = (
    "without a quorum /etc/pve can only be read: nothing can be changed or started; nothing was changed by this "
    "request",
    "see `pvecm status` on the host; bring the missing nodes back, or wait until they are, then run `pulumi up` "
    "again. Only if they "
    "are switched off for good: `pvecm expected 1` lets this node go on alone; while one of them runs, both may "
    "start the same guest",
)
_OVERTAKEN = (
    "it was changed between reading and writing; nothing was overwritten",
    "see who else configures it (another pulumi, the web interface), then run `pulumi up` again",
)
_NODE_AWAY = (
    "the node that the guest lives on doesn't answer to its cluster",
    "bring the node back (`pvecm status`), then run `pulumi up` again: it continues from what is there",
)


def _forbidden(
    wanted: str, found: str, who: str, status: int, reason: str, path: str | None, privileges: str | None
) -> ForbiddenError:
    names = tuple((privileges or "").split("|")) if privileges else ()
    error = ForbiddenError(
        wanted=wanted,
        found=found,
        why=f"{who} lacks the right, and nothing was changed by this request",
        next=f"give {who} the rights that docs/settings.md#rights lists",
        status=status,
        reason=reason,
    )
    error.path, error.either = path, len(names) > 1
    error.privileges = names if error.either else tuple((privileges or "").replace(",", " ").split())
    return error


def _other(who: str, status: int, reason: str) -> tuple[str, str]:
    """Why it matters, and what to do next."""
    if "only root can set" in reason or "only root@pam can" in reason.replace("\\", ""):
        return (
            "in Proxmox VE only root@pam with a password may do that, and no token; this program is logged in as "
            f"{who}",
            "leave out what it names, or give api.user: root@pam and api.password",
        )
    if "hostname lookup" in reason:
        return (
            "no node of that name is known",
            "correct hosts.<name>.node: the name that `hostname` prints on the host",
        )
    if "is locked" in reason:
        return (
            "another task works on it, such as a backup, a clone, a migration, or died while it did",
            "wait for it, then run `pulumi up` again",
        )
    if status == 501:
        return "this Proxmox VE doesn't know the operation", "PCI mappings need Proxmox VE 8 or later: upgrade"
    return (
        "the node refused it; nothing was changed by this request",
        "correct what it names, then run `pulumi up` again",
    )
