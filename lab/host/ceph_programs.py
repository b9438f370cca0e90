"""`ceph` at a node's shell: what scripts ask before and after a node's restart. It speaks as Ceph 19 does (MonCommands.h, OSDMonitor, Monitor, DaemonServer).

Where the monitors have no quorum it waits, as the real one does for five minutes.
"""

from __future__ import annotations

import json
import sys
import time

from .ceph import GROUPS, Ceph
from .program import Failure, UsageError, logged
from .state import HostState

_TIMEOUT_SECONDS, _PIECE_SECONDS = 300.0, 0.05
_EINVAL, _EBUSY, _ETIMEDOUT = 22, 16, 110
_FLAGS = "sortbitwise,recovery_deletes,purged_snapdirs,pglog_hardlimit"
_NOT_THERE = (
    "Error initializing cluster client: ObjectNotFound('RADOS object not found (error calling conf_read_file)')"
)


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One call of the command."""
    ceph = Ceph.of(host)
    if ceph is None:
        raise Failure(_NOT_THERE)
    _await_monitors(host)
    words = arguments
    if words[:2] in (["osd", "add-noout"], ["osd", "rm-noout"]) and words[2:]:
        return logged(host, name, arguments, lambda: _change(ceph, words[1], words[2:]))
    if words[:2] == ["mon", "ok-to-stop"] and words[2:]:
        _monitors_may_stop(ceph, words[2:])
    elif words[:2] == ["osd", "ok-to-stop"] and words[2:]:
        _osds_may_stop(ceph, _numbers(ceph, words[2:]))
    elif words == ["osd", "dump"]:
        print("\n".join(_dump(ceph)))
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


def _change(ceph: Ceph, verb: str, words: list[str]) -> int:
    for number in _numbers(ceph, words):
        flags = [flag for flag in ceph.flags_of.get(number, []) if flag != "noout"]
        ceph.flags_of[number] = [*flags, *["noout"] * (verb == "add-noout")]
    ceph.save()
    return 0


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


def _dump(ceph: Ceph) -> list[str]:
    up = ceph.up
    head = [
        f"epoch {ceph.epoch}", f"fsid {ceph.fsid}", "created 2026-11-02T09:14:07.412283+0000", "modified 2026-11-21T03:29:24.118402+0000",
        f"flags {_FLAGS}", "crush_version 9", "full_ratio 0.95", "backfillfull_ratio 0.9", "nearfull_ratio 0.85",
        "require_min_compat_client luminous", "min_compat_client jewel", "require_osd_release squid", "stretch_mode_enabled false",
        f"pool 2 'vms' replicated size {ceph.size} min_size {ceph.min_size} crush_rule 0 object_hash rjenkins pg_num {GROUPS - 1} pgp_num {GROUPS - 1}"
        " autoscale_mode on last_change 41 flags hashpspool,selfmanaged_snaps stripe_width 0 application rbd",
        f"max_osd {max(ceph.osds) + 1}",
    ]  # fmt: skip
    for number in sorted(ceph.osds):
        states = ["exists", *(["up"] if number in up else []), *ceph.flags_of.get(number, [])]
        address = f"[v2:192.168.0.{201 + number}:6800/1101,v1:192.168.0.{201 + number}:6801/1101]"
        head.append(
            f"osd.{number} {'up  ' if number in up else 'down'} in  weight 1 up_from 52 up_thru 55 down_at 50 last_clean_interval [12,49)"
            f" {address} {address} {','.join(states)} 5d1f0b6e-3f5c-4d0a-9b36-0c4f6d8a{number:04x}"
        )
    return head
