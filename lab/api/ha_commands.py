"""`ha-manager` at a node's shell (PVE::CLI::ha_manager, PVE::API2::HA::Resources): how HA is asked, and which guests are given to it."""

from __future__ import annotations

from lab.host.state import HostState

from . import ha_config
from .errors import Died
from .guests import all_ids, exclusively
from .ha_manager import HaManager
from .quorum import require_cluster_lock, require_cluster_ready


class Unknown(Exception):
    """What the lab's ha-manager hasn't."""


def only_asks(arguments: list[str]) -> bool:
    """Whether it changes nothing."""
    return arguments[:1] == ["status"]


def ha_manager(host: HostState, arguments: list[str]) -> None:
    """`status`, `add SID` and `set SID --state STATE`, which print what a node's prints.

    Raises:
        ApiError: it is refused.
        Unknown: the lab hasn't what it was asked for.
    """
    with exclusively(host):
        match arguments:
            case ["status"]:
                print("\n".join(HaManager(host).described()))
            case ["add", sid]:
                _add(host, sid)
            case ["set", sid, "--state", state] if state in ha_config.STATES:
                _set(host, sid, state)
            case _:
                raise Unknown(f"the lab's ha-manager has no {' '.join(arguments)!r}")


def _add(host: HostState, sid: str) -> None:
    services = ha_config.read(host)
    require_cluster_ready(host)
    if ha_config.kind_of(sid)[1] not in all_ids(host):
        raise Died(f"resource '{sid}' does not exist in cluster")
    if sid in services:
        raise Died(f"create resource failed: resource ID '{sid}' already defined")
    ha_config.write(host, services | {sid: {"state": "started"}})


def _set(host: HostState, sid: str, state: str) -> None:
    services = ha_config.read(host)
    require_cluster_lock(host, "domain-ha", "update resources config failed")
    if sid not in services:
        raise Died(f"update resources config failed: no such resource '{sid}'")
    services[sid]["state"] = state
    ha_config.write(host, services)
