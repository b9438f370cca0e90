"""What gives a container packages for its Intel and AMD cards (remote_scripts/layers/card_libraries.py)."""

from __future__ import annotations

from collections.abc import Mapping

from homelab.container import libraries
from homelab.nvidia.plan import software
from homelab.settings import Container, Nvidia
from homelab.shapes import CardPlan
from remote_scripts.both.card_libraries import Wanted
from remote_scripts.both.symptoms import Context


def limits_of(container: Container) -> Nvidia:
    """The settings of apt's time limits and proxy in a container: those of its NVIDIA stack, or the defaults."""
    return container.nvidia or Nvidia()


def card_libraries(name: str, container: Container, gpus: Mapping[str, CardPlan]) -> Wanted:
    """What the layer is to do in the container.

    :param name: the container's in the settings.
    :param gpus: the host's cards by their names in the settings, as HostProbe puts them out.
    """
    return Wanted(
        software=software(limits_of(container), Context(f"containers.{name}", "lxc")),
        choices=libraries.choices(container.libraries, libraries.makers_of(container, gpus)),
    )
