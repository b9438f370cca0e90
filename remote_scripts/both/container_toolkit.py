"""What the layer container_toolkit is asked, and what it answers."""

from dataclasses import dataclass
from typing import Literal

from remote_scripts.both.software import Software


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`target`: what the system is; `cdi`: the path of a CDI specification, or empty; `cdi_options`: of nvidia-ctk from
    version `options_since` on, so that a podman before `podman_reads` reads it; `driver`: the version that the
    specification is made for; `capabilities`: no part in what happens, another one makes the specification anew.
    """

    target: Literal["vm", "host", "lxc"]
    runtime: Literal["docker", "podman", "k3s"]
    software: Software
    driver: str
    cdi: str = ""
    cdi_options: tuple[str, ...] = ()
    options_since: str = ""
    podman_reads: str = ""
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """`version`: the toolkit's; `cdi`: the path of the specification that counts, or empty."""

    runtime: str
    version: str
    cdi: str
    changed: bool
    restarted: bool
