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
    """The settings that say how long apt may take, and by which proxy it goes: those of NVIDIA's stack there, or their
    defaults."""
    return container.nvidia or Nvidia()


def card_libraries(name: str, container: Container, gpus: Mapping[str, CardPlan], generation: str = "0") -> str:
    """Standard input of in_container.sh, with the verbs `apply` and `revert`.

    :param name: the container's in the settings.
    :param gpus: the host's cards of the settings, as HostProbe has them.
    :param generation: has no part in what happens; a new one makes Pulumi run the script again.
    """
    stack = limits_of(container)
    inner = compose(
        "card_libraries.sh",
        **nvidia_steps.package_arguments(stack, Context(f"containers.{name}", "lxc")),
        LOCKED="",
        CHOICES=libraries.choices(container.libraries, libraries.makers_of(container, gpus)),
        GENERATION=generation,
    )
    return nvidia_steps.in_container(container.ctid, inner)
