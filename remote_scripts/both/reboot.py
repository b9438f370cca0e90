"""What the layer reboot is asked, and what it answers."""

from dataclasses import dataclass
from typing import Literal

from remote_scripts.boot.wanted_boot import Boot
from remote_scripts.pve.guest_kinds import Running

#: For so long the cluster is waited for, each time, in seconds: a node that was verified a moment ago has its vote back
#: within a minute.
TURN_SECONDS = 180


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`policy`: whether the host is restarted by us; `boot`: what its next boot is to have; `rollback_after`: seconds
    from a boot's start until an unconfirmed trial is ended; `awaited`: for so many seconds an `up` waits for the
    boot; `keep_quorum`: in a cluster, restart only if the other nodes have a quorum without this one.
    """

    policy: Literal["auto", "manual"]
    boot: Boot
    rollback_after: int
    awaited: int
    keep_quorum: bool = True


@dataclass(frozen=True)
class Reason:
    """What the running kernel lacks, `said` in a sentence. `gets`, `loses`: words of its command line; `function`: one
    that comes to `driver`.
    """

    said: str
    gets: str = ""
    loses: str = ""
    function: str = ""
    driver: str = ""


@dataclass(frozen=True)
class Planned:
    """`guests`: what a reboot stops, `unlisted`: the same in words, where they can't be listed; `cluster`: why it
    waits: what runs here, or why the cluster can't do without this node now; `kernel`: that it starts, where another
    one runs now.
    """

    reboot: Literal["yes", "no", "manual"]
    boot_id: str
    reasons: tuple[Reason, ...] = ()
    guests: tuple[Running, ...] = ()
    unlisted: str = ""
    cluster: str = ""
    kernel: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer(Planned):
    """`turn`: whether it has a turn in the cluster, which is to end; `armed`: since when a trial is, in seconds
    since 1970, empty: none is. An `up` that has armed it anew confirms this boot anew.
    """

    turn: bool
    armed: str
