"""The containers that follow their host's driver, asked before that is replaced: a container's libraries must be of its
host's version, to the last digit, and one that can't have them would be without its card. Preview and `up` ask, and
nothing is changed by that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from homelab.errors import HomelabError, UnreachableError, raise_all
from homelab.nvidia import reading
from homelab.nvidia.plan import all_refusals, packages_to_ask_for, plan_stack
from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import Request
from homelab.nvidia.state import facts_of, request_of
from homelab.nvidia.verification import Expected
from homelab.nvidia.versions import fits, parse
from homelab.remote import nvidia_steps as steps
from homelab.remote import ssh
from homelab.settings import Container
from homelab.text import tell
from remote_scripts.both import read_system

# Lists are fetched over the owner's line.
_SECONDS = 900.0


def refused(
    session: ssh.Session,
    request: Request,
    system: SystemReading,
    containers: Mapping[str, Container],
    readings: Mapping[str, SystemReading] | None = None,
) -> list[HomelabError]:
    """Where the host's driver is to be replaced, what each container says that can't have the version that comes.

    :param request: the host's.
    :param system: what was read of the host.
    :param containers: the host's, by their names in the settings.
    :param readings: of its containers, by their ids; by default they are read.
    :raises UnreachableError: the connection was lost.
    """
    driver, there, errors = request.driver, system.libraries, []
    stacks = {name: (one.ctid, one.nvidia) for name, one in containers.items() if one.nvidia is not None}
    if not stacks or not there or driver is None or fits(parse(there), driver.version_or_branch):
        return []
    plan = plan_stack(_with_offers(session, 0, request))
    version = plan.version or plan.driver
    for name, (ctid, nvidia) in stacks.items():
        inside = readings.get(str(ctid)) if readings is not None else _read(session, ctid)
        if inside is None:  # it is off, or has no shell, say; its own stack fails by that
            tell(f"containers.{name} was not asked whether it can have the driver {version}: it could not be read")
        # One that has no libraries of this program's yet loses none.
        if inside is None or "driver" not in inside.steps:
            continue
        facts = facts_of(inside, "lxc")
        facts["host_driver"] = version
        try:
            _need(session, ctid, request_of("lxc", f"containers.{name}", facts, nvidia))
        except UnreachableError:
            raise
        except HomelabError as error:
            why = (
                f"{error.why}; a container's libraries must be of its host's version, and {request.name} would get "
                f"{version} in place of {there}; nothing was changed"
            )
            errors.append(error.retold(why=why))
    return errors


def _read(session: ssh.Session, ctid: int) -> SystemReading | None:
    try:
        return reading.parse(session.ask("read", "read_system", read_system.Wanted(), ctid=ctid))
    except UnreachableError:
        raise
    except HomelabError:
        return None


def _need(session: ssh.Session, ctid: int, request: Request) -> None:
    request = _with_offers(session, ctid, request)
    raise_all(all_refusals(request))
    # Whether its packages bring libraries alone, apt says.
    plan = plan_stack(request)
    wanted = steps.asked(plan, request.settings, Expected.of(request, plan).context)
    session.ask("read", "nvidia_driver", wanted, _SECONDS, ctid=ctid, proxy=request.settings.proxy_address)


def _with_offers(session: ssh.Session, ctid: int, request: Request) -> Request:
    """The request with what NVIDIA's repositories have by now, and the system's."""
    settings, plan = request.settings, plan_stack(request)
    context = Expected.of(request, plan).context
    wanted = steps.repository(plan, settings, context, packages_to_ask_for(request))
    answer = session.ask("read", "nvidia_repository", wanted, _SECONDS, ctid=ctid, proxy=settings.proxy_address)
    offers = {package: tuple(versions) for package, versions in answer["offered"].items()}
    return dataclasses.replace(request, system=dataclasses.replace(request.system, offered=offers))
