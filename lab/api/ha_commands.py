"""`ha-manager` at a node's shell (PVE::CLI::ha_manager, PVE::API2::HA::Resources); what it asks for, a manager's round does."""

from __future__ import annotations

from lab.host.state import HostState

from . import ha_config
from .errors import Died, bad_parameters
from .guests import all_ids, exclusively
from .ha_manager import HaManager
from .quorum import require_cluster_lock, require_cluster_ready

_SETTINGS = ("state", "comment", "group", "max_restart", "max_relocate", "failback")
_LOCK = "domain-ha"


class Unknown(Exception):
    """A verb that the lab's ha-manager hasn't."""


def only_asks(arguments: list[str]) -> bool:
    """Whether it changes nothing."""
    return arguments[:1] in (["status"], ["config"])


def ha_manager(host: HostState, arguments: list[str]) -> None:
    """One call of the command, which prints what a node's prints.

    Raises:
        ApiError: it is refused.
        Unknown: the lab hasn't what it was asked for.
    """
    verb, words = (arguments or [""])[0], arguments[1:]
    with exclusively(host):
        if verb == "status" and not words:
            print("\n".join(HaManager(host).described()))
        elif verb == "config" and not words:
            _show(host)
        elif verb in ("add", "set") and words:
            _change(host, verb, ha_config.normal_sid(words[0], host), words[1:])
        elif verb == "remove" and len(words) == 1:
            _remove(host, ha_config.normal_sid(words[0], host))
        elif verb in ("migrate", "relocate") and len(words) == 2:
            _move(host, verb, *words)
        elif verb == "crm-command" and words[:1] in (["migrate"], ["relocate"]) and len(words) == 3:
            _move(host, *words)
        else:
            raise Unknown(f"the lab's ha-manager has no {' '.join(arguments)!r}")


def _show(host: HostState) -> None:
    for sid, settings in sorted(ha_config.read(host).items()):
        lines = {"state": "started", **settings}
        print(sid, *(f"\t{key} {value}" for key, value in sorted(lines.items())), "", sep="\n")


def _settings(words: list[str]) -> dict[str, str]:
    found = {}
    queue = list(words)
    while queue:
        name, equals, value = queue.pop(0).lstrip("-").partition("=")
        if name not in _SETTINGS or not (equals or queue):
            raise Unknown(f"the lab's ha-manager knows {', '.join(_SETTINGS)}, not {name!r}")
        found[name] = value if equals else queue.pop(0)
    if found.get("state", "started") not in ha_config.STATES:
        raise bad_parameters(
            {
                "state": f"value '{found['state']}' does not have a value in the enumeration '{', '.join(ha_config.STATES)}'"
            }
        )
    return found


def _change(host: HostState, verb: str, sid: str, words: list[str]) -> None:
    given, services = _settings(words), ha_config.read(host)
    if verb == "add":
        require_cluster_ready(host)
        if ha_config.kind_of(sid)[1] not in all_ids(host):
            raise Died(f"resource '{sid}' does not exist in cluster")
        if sid in services:
            raise Died(f"create resource failed: resource ID '{sid}' already defined")
        services[sid] = {"state": "started", **given}
    else:
        require_cluster_lock(host, _LOCK, "update resources config failed")
        if sid not in services:
            raise Died(f"update resources config failed: no such resource '{sid}'")
        if given.get("state") != "disabled":
            _require_no_error(host, sid)
        services[sid] |= given
    ha_config.write(host, services)


def _remove(host: HostState, sid: str) -> None:
    require_cluster_lock(host, _LOCK)
    services = ha_config.read(host)
    if services.pop(sid, None) is None:
        raise Died(f"cannot delete service '{sid}', not HA managed!")
    ha_config.write(host, services)


def _move(host: HostState, verb: str, given: str, node: str) -> None:
    sid = ha_config.normal_sid(given, host)
    _require_node(host, node)
    if ha_config.wanted(ha_config.read(host).get(sid, {"state": "ignored"})) == "ignored":
        raise Died(f"resource '{sid}' is not HA managed")
    _require_no_error(host, sid)
    _queue(host, f"{verb} {sid} {node}")


def _require_node(host: HostState, node: str) -> None:
    if node not in HaManager(host).members.nodes:
        raise Died(f"no such cluster node '{node}'")


def _require_no_error(host: HostState, sid: str) -> None:
    if f"{sid} " in "".join(line[8:] for line in HaManager(host).described() if line.endswith(", error)")):
        raise Died(f"service '{sid}' in error state, must be disabled and fixed first")


def _queue(host: HostState, command: str) -> None:
    require_cluster_lock(host, _LOCK)
    ha_config.queue(host, command)
