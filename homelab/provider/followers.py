"""The containers that follow their host's driver, asked before that is replaced: a container's libraries must be of its
host's version, to the last digit, and one that can't have them would be without its card.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from homelab.errors import HomelabError, UnreachableError, raise_all
from homelab.nvidia.plan import all_refusals, packages_to_ask_for, plan_stack
from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import Request
from homelab.nvidia.state import facts_of, request_of
from homelab.nvidia.verification import Expected
from homelab.nvidia.versions import fits, parse
from homelab.provider.systems import Reached
from homelab.remote import nvidia_steps as steps
from homelab.settings import Container, Nvidia
from homelab.text import tell


def need(host: Reached, request: Request, system: SystemReading, containers: Mapping[str, Container]) -> None:
    """Asks each container, where the host's driver is to be replaced.

    :param request: the host's.
    :param system: what was read of the host.
    :param containers: the host's, by their names in the settings.
    :raises HomelabError: one of them can't have the libraries of the version that comes.
    """
    driver, there = request.driver, system.libraries
    stacks = {name: container for name, container in containers.items() if container.nvidia is not None}
    if not stacks or not there or driver is None or fits(parse(there), driver.version_or_branch):
        return
    plan = plan_stack(_with_offers(host, request))
    version = plan.version or plan.driver
    for name, container in stacks.items():
        inside = host.inside(container.ctid)
        try:
            found = inside.read()
        except UnreachableError:
            raise
        except HomelabError as error:  # it is off, or has no shell, say; its own stack fails by that
            tell(f"containers.{name} was not asked whether it can have the driver {version}: {error.found}")
            continue
        # One that has no libraries of this program's yet loses none.
        if container.nvidia is None or "driver" not in found.steps:
            continue
        facts = facts_of(found, "lxc")
        facts["host_driver"] = version
        try:
            _need(inside, request_of("lxc", f"containers.{name}", facts, container.nvidia))
        except UnreachableError:
            raise
        except HomelabError as error:
            raise error.retold(
                why=f"{error.why}; a container's libraries must be of its host's version, and {request.name} would get "
                f"{version} in place of {there}; nothing was changed"
            ) from None


def _need(inside: Reached, request: Request) -> None:
    request = _with_offers(inside, request)
    raise_all(all_refusals(request))
    # Whether its packages bring libraries alone, apt says.
    plan = plan_stack(request)
    wanted = steps.asked(plan, request.settings, Expected.of(request, plan).context)
    inside.ask("read", "nvidia_driver", wanted, proxy=_proxy(request.settings))


def _with_offers(reached: Reached, request: Request) -> Request:
    """The request with what NVIDIA's repositories have by now, and the system's."""
    settings, plan = request.settings, plan_stack(request)
    context = Expected.of(request, plan).context
    wanted = steps.repository(plan, settings, context, packages_to_ask_for(request))
    offered = reached.ask("read", "nvidia_repository", wanted, proxy=_proxy(settings))["offered"]
    offers = {package: tuple(versions) for package, versions in offered.items()}
    return dataclasses.replace(request, system=dataclasses.replace(request.system, offered=offers))


def _proxy(settings: Nvidia) -> str:
    return settings.proxy.get_secret_value() if settings.proxy else ""
