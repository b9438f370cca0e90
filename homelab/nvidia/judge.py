"""What is judged of NVIDIA's stack on a system: what differs from what this program left there, and whether module and
libraries are of one version. Pure: preview, refresh and doctor ask the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from homelab.errors import HomelabError
from homelab.findings import Judged, Stage
from homelab.settings import Container, Host, Nvidia
from remote_scripts.both.read_system import Answer as SystemReading


def installing(host: Host, containers: Iterable[Container]) -> list[str]:
    """The systems in which the settings install something for cards: `host`, and ids of containers."""
    return [
        *(["host"] if host.nvidia else []),
        *(str(container.ctid) for container in containers if container.nvidia or container.libraries),
    ]


def drift(reading: SystemReading, stack: Nvidia | None, *, libraries: bool = False) -> list[tuple[str, str]]:
    """What the next `up` mends on a system: each layer with what differs, in words.

    :param stack: the one that is wanted there.
    :param libraries: packages for cards of other makers are wanted there.
    """
    wanted = [
        *(("packages", "boot") if stack else ()),
        *(("toolkit",) if stack and stack.container_toolkit else ()),
        *(("libraries",) if libraries else ()),
    ]
    return [
        *((layer, differs) for layer, differs in reading.drift if layer in wanted),
        *((layer, "there is no record of it") for layer in wanted if layer not in {*reading.steps, "boot"}),
    ]


def steps(reading: SystemReading, stack: Nvidia | None, *, libraries: bool = False) -> list[str]:
    """The same, a line each, which begins with the layer: a refresh's drift, the preview's lines, and what the doctor
    finds."""
    return [f"{layer}: {differs}" for layer, differs in drift(reading, stack, libraries=libraries)]


def judge_system(
    what: str,
    found: object,
    stack: Nvidia | None,
    against: Iterable[HomelabError] = (),
    *,
    libraries: bool = False,
    stage: Stage = Stage.INSIDE,
) -> Judged:
    """What is judged of what the settings want installed on a system; others as of `steps`.

    :param what: it, and where, for messages.
    :param found: the SystemReading of it; an error: it can't be read, and nothing is changed there; None: it isn't
        known.
    :param against: what refuses the stack.
    """
    of_stack, is_read = [*against], isinstance(found, SystemReading)
    differences = steps(found, stack, libraries=libraries) if isinstance(found, SystemReading) else []
    return Judged(
        title=f"{what} to be as the settings say",
        why="it was changed since the last `pulumi up`, or that has never run, or was cut short; programs find no card "
        "unless the loaded module and all of NVIDIA's libraries have the same version",
        steps=differences or (["packages: they aren't what the settings say"] if of_stack and is_read else []),
        against=[*([found] if isinstance(found, HomelabError) else ()), *of_stack],
        stage=stage,
    )


def mismatch(loaded: str, libraries: Mapping[str, str]) -> tuple[str, str] | None:
    """What is wrong with NVIDIA's libraries beside the module that is loaded: what is found, and why it matters; None:
    nothing.

    :param loaded: the module's version.
    :param libraries: where the loader finds them -> their versions; empty: the file doesn't say.
    """
    if {*filter(None, libraries.values())} == {loaded}:
        return None
    found = (f"{path}: {version or 'of no version'}" for path, version in libraries.items())
    return "; ".join(found) or "none (no libnvidia-ml.so.1, no libcuda.so.1)", (
        "programs talk to the driver by the first library that they find; if that hasn't exactly the driver's version, "
        "they end with `Driver/library version mismatch`"
    )
