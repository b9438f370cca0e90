"""What the layer nvidia_verification is asked, and what it answers."""

from dataclasses import dataclass
from typing import Literal

Engine = Literal["", "docker", "podman", "k3s"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`nvcc`: path of the compiler to ask and to use, or nothing; `program`: CUDA source that is compiled and run, or
    nothing; `engine` and `image`, in which nvidia-smi is run; `cdi`: give it the cards by their CDI names; `uvm`: does
    an ordinary user get the devices?; `libraries`: sonames that are loaded, by the Python program `loader`; `bare`:
    those of them that are loaded in the container, too; `kernel_log`: an expression: lines of the kernel's log that are
    passed on, empty: it isn't read; `seconds`: for all of it.
    """

    nvcc: str = ""
    program: str = ""
    engine: Engine = ""
    image: str = ""
    cdi: bool = False
    uvm: bool = False
    libraries: tuple[str, ...] = ()
    loader: str = ""
    bare: tuple[str, ...] = ()
    kernel_log: str = ""
    seconds: int


@dataclass(frozen=True)
class Tried:
    """What came of a program. `status`: its own; 124: it wasn't done in time; 127: there is no such program."""

    status: int
    output: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A part is None where it wasn't asked for. `cdi`: a line for each specification of NVIDIA's cards that there is:
    its path, and the driver's versions of its libraries.
    """

    nvidia_smi: Tried
    nvcc: Tried | None
    program: Tried | None
    container: Tried | None
    uvm: Tried | None
    libraries: Tried | None
    cdi: str | None
    kernel_log: str
    loaded: str
    flavour: str
    boot_id: str
