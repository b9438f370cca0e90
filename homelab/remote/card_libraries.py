"""The script that gives a container packages for its Intel and AMD cards (remote_scripts/card_libraries.sh)."""

from __future__ import annotations

from collections.abc import Mapping

from homelab.container import libraries
from homelab.nvidia.symptoms import Context
from homelab.remote import nvidia_steps
from homelab.remote.scripts import compose
from homelab.settings import Container, Nvidia
from homelab.shapes import CardPlan


def limits_of(container: Container) -> Nvidia:
    """The settings of apt's time limits and proxy in a container: those of its NVIDIA stack, or the defaults."""
    return container.nvidia or Nvidia()


def card_libraries(name: str, container: Container, gpus: Mapping[str, CardPlan], generation: str = "0") -> str:
    """Standard input of in_container.sh, with the verbs `apply` and `revert`.

    :param name: the container's in the settings.
    :param gpus: the host's cards by their names in the settings, as HostProbe puts them out.
    :param generation: not used by the script; a new one makes Pulumi run it again.
    """
    limits = limits_of(container)
    inner = compose(
        "card_libraries.sh",
        **nvidia_steps.package_arguments(limits, Context(f"containers.{name}", "lxc")),
        LOCKED="",
        CHOICES=libraries.choices(container.libraries, libraries.makers_of(container, gpus)),
        GENERATION=generation,
    )
    return nvidia_steps.in_container(container.ctid, inner)
