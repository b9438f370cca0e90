"""What the layer nvidia_driver is asked, and what it answers."""

from dataclasses import dataclass
from typing import Literal

from remote_scripts.both.nvidia_repository import Wanted as Repositories
from remote_scripts.shared.software import Installer, Software
from remote_scripts.shared.symptoms import Flavour, Target
from remote_scripts.tools.errors import Failure


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`driver`: a branch or a version; `flavour`: None for a container. `source`: `either`: packages if the
    repositories have them. `packages`: NAME=PATTERN; `recommends`: whether with what they recommend. `libraries`:
    sonames that a driver which is there must have, too; `unwanted`: packages that go again where we added them. `run`:
    NVIDIA's installer, where it may be used; `unpinned`: the four parts of the message where its checksum isn't known.
    `repositories`: for `read`, those that it may come from.
    """

    target: Target
    driver: str
    software: Software
    source: Literal["packages", "run", "either"] = "packages"
    flavour: Flavour | None = None
    prerequisites: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    recommends: bool = False
    libraries: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    run: Installer | None = None
    run_prerequisites: tuple[str, ...] = ()
    unpinned: tuple[str, ...] = ()
    repositories: Repositories | None = None


@dataclass(frozen=True)
class Installation:
    """A driver that is there. `reboot`: `no-module`: a container has none of its own."""

    version: str
    source: Literal["packages", "run", "found"]
    reboot: Literal["yes", "no", "no-module"]
    why: str


@dataclass(frozen=True)
class Answer(Installation):
    """`packages`: what was added."""

    packages: tuple[str, ...]
    changed: bool


def lacking_headers(name: str, packages: list[str], target: Target) -> Failure:
    """The refusal of a system whose kernels have no headers, and can't get any.

    :param name: the system's, in the settings.
    :param packages: those of the headers.
    """
    add = (
        "without a subscription, add the No-Subscription repository (on the host: `pvesh set "
        "/nodes/localhost/apt/repositories --handle no-subscription`); "
    )
    return Failure(
        f"{name}: headers of {'each installed' if target == 'host' else 'the running'} kernel",
        f"{', '.join(packages)}: not installed, and in none of the lists that apt has there",
        "the driver's modules are built with them, on a host for each kernel, as the next boot may take any",
        f"{add if target == 'host' else ''}run `apt-get update` there; an old kernel that has none: remove it, and "
        "boot a newer one",
    )
