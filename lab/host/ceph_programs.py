"""`ceph` at a node's shell: what scripts ask before a node's restart. It speaks as Ceph 19 does (MonCommands.h, OSDMonitor, Monitor, DaemonServer).

Where the monitors have no quorum it fails at once, the real one after five minutes.
"""

from __future__ import annotations

import json
import sys

from .ceph import GROUPS, Ceph
from .program import Failure, UsageError
from .state import HostState

_EBUSY, _ETIMEDOUT = 16, 110
_NOT_THERE = (
    "Error initializing cluster client: ObjectNotFound('RADOS object not found (error calling conf_read_file)')"
)


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One call of the command."""
    ceph = Ceph.of(host)
    if ceph is None:
        raise Failure(_NOT_THERE)
    if not ceph.quorum:
        raise Failure("[errno 110] RADOS timed out (error connecting to the cluster)", _ETIMEDOUT)
    words = arguments[2:]
    if arguments[:2] == ["mon", "ok-to-stop"] and words:
        _monitors_may_stop(ceph, words)
    elif arguments[:2] == ["osd", "ok-to-stop"] and words:
        _osds_may_stop(ceph, [int(word) for word in words])
    else:
        raise UsageError(f"the lab's ceph has no {' '.join(arguments)!r}")
    return 0


def _monitors_may_stop(ceph: Ceph, names: list[str]) -> None:
    left = [name for name in ceph.quorum if name not in names]
    if len(left) < len(ceph.monitors) // 2 + 1:
        raise Failure(
            f"Error EBUSY: not enough monitors would be available ({','.join(left)}) after stopping mons [{','.join(names)}]",
            _EBUSY,
        )
    print(f"quorum should be preserved ({','.join(left)}) after stopping [{','.join(names)}]", file=sys.stderr)


def _osds_may_stop(ceph: Ceph, numbers: list[int]) -> None:
    offline = ceph.offline_without(numbers)
    if offline:
        raise Failure(
            f"Error EBUSY: unsafe to stop osd(s) at this time ({offline} PGs are or would become offline)", _EBUSY
        )
    about = {"ok_to_stop": True, "osds": numbers, "num_ok_pgs": GROUPS, "num_not_ok_pgs": 0}
    print(json.dumps(about, separators=(",", ":")))
