"""Errors of the Proxmox VE API, by type and with the four parts for users. The patterns match a node's own texts
(recorded exchanges).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from homelab.errors import ApiError, ChangedMeanwhileError, LockHeldError, NoQuorumError, NotThereError
from homelab.text import clean

# Longer than any reason of a node; texts that a guest can make longer, such as a log, have limits of their own.
_REASON_CHARACTERS = 2000


def plain(text: str, secrets: Iterable[str] = ()) -> str:
    """A node's text as it may be shown: without control characters and secrets, cut to a length."""
    for secret in secrets:
        if len(secret) > 3:
            text = text.replace(secret, "***")
    safe = clean(text)
    return safe if len(safe) <= _REASON_CHARACTERS else f"{safe[:_REASON_CHARACTERS]} …"


def explained(wanted: str, found: str, status: int, reason: str) -> ApiError:
    """The error for a refused request, or for a task that ended with `reason`.

    :param found: the error's part of that name.
    :param status: HTTP's.
    :param reason: the node's own words.
    """
    _, kind, why, next_step = next(known for known in _KNOWN if re.search(known[0], reason))
    return kind(wanted=wanted, found=found, why=why, next=next_step, status=status, reason=reason)


# A node's own words -> the error; the last takes any.
_KNOWN: tuple[tuple[str, type[ApiError], str, str], ...] = (
    (
        r"Configuration file '.*' does not exist|pci ID '.*' does not exist|^mapping '.*' not found"
        r"|^unable to find configuration file for (?:VM|CT) \d+",
        NotThereError,
        "it is the one that the stack's configuration names",
        "correct its id, or bring it back",
    ),
    # Waiting for the lock of a guest's configuration, or of a file of the whole cluster, failed: nothing was begun.
    (
        r"^(?:[\w ]+ failed: )?"
        r"(?:can't lock file '[^']+' - got timeout|cfs-lock '[^']+' error: got lock request timeout)",
        LockHeldError,
        "Proxmox VE changes a guest under a lock, and another process had it all that time; nothing was done",
        "see the node's running tasks (`pvenode task list --source active`), or `qm cleanup` after a stop; wait until "
        "that has ended, then run `pulumi up` again",
    ),
    # One condition, three texts: for mappings and the like, for what starts a task, and for a guest's configuration,
    # whose file can't be made because pmxcfs has made itself read-only.
    (
        r"no quorum|'/etc/pve/[^']*' - (?:Permission denied|Read-only file system)",
        NoQuorumError,
        "without a quorum /etc/pve can only be read: nothing can be changed or started; nothing was changed by this "
        "request",
        "see `pvecm status` on the host; bring the missing nodes back, or wait until they are, then run `pulumi up` "
        "again. Only if they are switched off for good: `pvecm expected 1` lets this node go on alone; while one of "
        "them runs, both may start the same guest",
    ),
    (
        "checksum mismatch|detected modified configuration",
        ChangedMeanwhileError,
        "it was changed between reading and writing; nothing was overwritten",
        "see who else configures it (another pulumi, the web interface), then run `pulumi up` again",
    ),
    # Where /etc/pve isn't mounted.
    (
        "RPCEnvironment init request failed",
        ApiError,
        "without Proxmox VE's file system, /etc/pve, nothing of it can be read or changed",
        "see `systemctl status pve-cluster` on the host; when it runs, run the same command again",
    ),
    (
        "is locked",
        ApiError,
        "another task works on it, such as a backup, a clone, a migration, or died while it did",
        'wait for it (one that died: docs/troubleshooting.md, "A guest is locked"), then run `pulumi up` again',
    ),
    (
        "",
        ApiError,
        "the node refused it; nothing was changed by this request",
        "correct what it names, then run `pulumi up` again",
    ),
)
