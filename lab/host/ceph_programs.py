"""`ceph` at a node's shell: what scripts ask before a node's restart. It speaks as Ceph 19 does (MonCommands.h, OSDMonitor, Monitor, DaemonServer).

Where the monitors have no quorum it waits, as the real one does for five minutes.
"""

from __future__ import annotations

import json
import sys
import time

from .ceph import GROUPS, Ceph
from .program import Failure, UsageError
from .state import HostState

_TIMEOUT_SECONDS, _PIECE_SECONDS = 300.0, 0.05
_EINVAL, _EBUSY, _ETIMEDOUT = 22, 16, 110
_NOT_THERE = (
    "Error initializing cluster client: ObjectNotFound('RADOS object not found (error calling conf_read_file)')"
)


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One call of the command."""
    ceph = Ceph.of(host)
    if ceph is None:
        raise Failure(_NOT_THERE)
    _await_monitors(host)
    words = arguments[2:]
    if arguments[:2] == ["mon", "ok-to-stop"] and words:
        _monitors_may_stop(ceph, words)
    elif arguments[:2] == ["osd", "ok-to-stop"] and words:
        _osds_may_stop(ceph, _numbers(ceph, words))
    else:
        raise UsageError(f"the lab's ceph has no {' '.join(arguments)!r}")
    return 0


def _await_monitors(host: HostState) -> None:
    until = time.monotonic() + _TIMEOUT_SECONDS
    while (ceph := Ceph.of(host)) is not None and not ceph.quorum:
        if time.monotonic() >= until:
            raise Failure("[errno 110] RADOS timed out (error connecting to the cluster)", _ETIMEDOUT)
        time.sleep(_PIECE_SECONDS)


def _numbers(ceph: Ceph, words: list[str]) -> list[int]:
    found = []
    for word in words:
        number = word.removeprefix("osd.")
        if not number.isdigit():
            raise Failure(f"Error EINVAL: osd id {word} is invalid", _EINVAL)
        if int(number) not in ceph.osds:
            raise Failure(f"Error EINVAL: osd.{number} does not exist", _EINVAL)
        found.append(int(number))
    return found


def _monitors_may_stop(ceph: Ceph, names: list[str]) -> None:
    if unknown := [name for name in names if name not in ceph.monitors]:
        print(f"invalid mon(s) specified: [{','.join(unknown)}]", file=sys.stderr)
        return
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
