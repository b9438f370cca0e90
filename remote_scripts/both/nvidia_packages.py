"""What the layer nvidia_packages is asked, and what it answers: NVIDIA's driver, CUDA, the libraries beside it and the
container toolkit, by one run of apt.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from remote_scripts.both.apt import AptFile, Repository
from remote_scripts.both.software import Installer, Software
from remote_scripts.both.symptoms import Flavour, Target
from remote_scripts.tools.errors import Failure


@dataclass(frozen=True, kw_only=True)
class Try:
    """A way to the driver. `driver`: a branch or a version; `flavour`: None in a container; `packages`: NAME or
    NAME=PATTERN, of the driver, or what NVIDIA's installer `run` needs; `capabilities`: what its libraries are for.
    """

    driver: str
    flavour: Flavour | None = None
    packages: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    run: Installer | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`tries`: the best first. `pinned`: names, `*` in them, that apt keeps at the driver's version. `files`: further
    ones of apt's. `beside`: NAME or NAME=PATTERN, of CUDA, its libraries, the container toolkit, an engine; `headers`:
    of kernels, and what follows them, wanted where a kernel has none. `recommends`: whether what the driver's packages
    recommend comes, too. `libraries`: sonames that are demanded of a driver that is there. `cuda`: its release, 12.8 or
    12.8.1, empty: none; `nvcc`: its compiler's path.
    """

    target: Target
    software: Software
    tries: tuple[Try, ...] = ()
    repositories: tuple[Repository, ...] = ()
    pinned: tuple[str, ...] = ()
    files: tuple[AptFile, ...] = ()
    beside: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    recommends: bool = False
    libraries: tuple[str, ...] = ()
    cuda: str = ""
    nvcc: str = ""

    @property
    def digest(self) -> str:
        """Tells one request from another: what a system was brought to, noted there, is compared with it. How long
        something may take is no part."""
        values = dataclasses.asdict(self) | {"software": self.software.context.name}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What apt says on the system, and nothing is changed by asking. `chosen`: number of the first try that it can
    carry out, None: none; `version`: the driver that comes by it, or stays; `was`: the one that is there, empty: none.
    `comes`: packages that would come or change, NAME=VERSION; `removes`: others' packages that would go, which refuses.
    `way_back`: None where no driver is replaced; else whether the one that is there can be had again. `needs`, `room`:
    bytes below /usr, None: nobody says. `offered`: the driver's versions. `against`: what stands against each try that
    was passed over, in apt's words. `lacking`: kernels whose headers are nowhere; `pins`: the
    owner's files that give versions of NVIDIA's packages a priority.
    """

    chosen: int | None
    version: str = ""
    was: str = ""
    comes: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()
    way_back: bool | None = None
    needs: int = 0
    room: int | None = None
    offered: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is there now. `source`: `found`: somebody else's driver, left as it is; `reboot`: `no-module`: a container
    has none of its own; `why`: that; `cuda`, `toolkit`: what nvcc and the toolkit's package say, empty: none is wanted;
    `packages`: those that were added and are there. `before`: the driver that was replaced now, and that a repository
    still has, empty: none.
    """

    version: str
    source: Literal["packages", "run", "found"]
    flavour: Flavour | None
    capabilities: tuple[str, ...]
    reboot: Literal["yes", "no", "no-module"]
    why: str
    cuda: str
    toolkit: str
    packages: tuple[str, ...]
    changed: bool
    before: str = ""


def lacking_headers(name: str, kernels: Sequence[str], target: Target) -> Failure:
    """The refusal of a system whose kernels have no headers, and can't get any.

    :param name: the system's, in the settings.
    :param kernels: those that have none.
    """
    add = (
        "without a subscription, add the No-Subscription repository (on the host: `pvesh set "
        "/nodes/localhost/apt/repositories --handle no-subscription`); "
    )
    return Failure(
        f"{name}: headers of {'each installed' if target == 'host' else 'the running'} kernel",
        f"{', '.join(kernels)}: not installed, and in none of the lists that apt has there",
        "the driver's modules are built with them, on a host for each kernel, as the next boot may take any",
        f"{add if target == 'host' else ''}run `apt-get update` there; an old kernel that has none: remove it, and "
        "boot a newer one",
    )
