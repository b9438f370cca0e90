"""python3 and perl of a lab's system, where they load libraries of NVIDIA's driver, or Proxmox VE's modules.

Those libraries are files without code here. A Python program gets a `ctypes.CDLL` that finds them as the loader does, and has the calls
that the real ones have; whatever else it asks for isn't there. Perl is believed that it loads what it names with DynaLoader.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import guest_programs
from .contents import LIBRARIES
from .dpkg import installed
from .node_programs import real
from .nvidia_programs import library_version
from .state import HostState
from .versions import holds

#: The newest interface of NVENC that a driver's library has, from that driver on (FFmpeg/nv-codec-headers, README).
_NVENC = (("570.0", 13, 0), ("550.54.14", 12, 2), ("530.41.03", 12, 1), ("520.56.06", 12, 0), ("470.57.02", 11, 1))


def main(system: HostState, name: str, arguments: list[str]) -> int:
    """A program that loads libraries; what does something else is this machine's own program's."""
    if name == "perl" and guest_programs.is_of_proxmox(system, arguments):
        if any("create_vm" in word for word in arguments):
            return guest_programs.judge_guests(system)
        is_real = any(
            call in word for word in arguments for call in ("PVE::Cluster::cfs_lock_file", "PVE::LXC::Config")
        )
        return (guest_programs.by_perl if is_real else guest_programs.make_ticket)(system, arguments)
    if not any("load_libraries.py" in word or "dl_load_file" in word for word in arguments):
        return real(name, arguments)
    return _python(system, arguments) if name == "python3" else _perl(system, arguments)


def loading(system: HostState, soname: str) -> str:
    """What the loader says against a library; empty where it has nothing."""
    if system.rooted(f"{LIBRARIES}/{soname}").exists():
        return ""
    return f"{soname}: cannot open shared object file: No such file or directory"


class _Call:
    """A call of a library, with the attributes that ctypes has."""

    restype: Any = None

    def __init__(self, function: Callable[..., int]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> int:
        return self._function(*arguments)


class _Library:
    """A library that was loaded, with the calls of its own."""

    def __init__(self, system: HostState, name: str) -> None:
        if said := loading(system, name):
            raise OSError(said)
        self._system, self._name = system, name

    def __getattr__(self, call: str) -> _Call:
        calls: dict[tuple[str, str], Callable[..., int]] = {
            ("libcudnn.so.9", "cudnnGetVersion"): lambda: 91002,
            ("libcudnn.so.9", "cudnnGetCudartVersion"): self._cuda_of_cudnn,
            ("libnccl.so.2", "ncclGetVersion"): self._nccl,
            ("libnvidia-encode.so.1", "NvEncodeAPIGetMaxSupportedVersion"): self._interface,
        }
        if (self._name, call) not in calls:
            raise AttributeError(f"{self._name}: undefined symbol: {call}")
        return _Call(calls[self._name, call])

    def _cuda_of_cudnn(self) -> int:
        found = [name for name in installed(self._system) if name.startswith("libcudnn9-cuda-")]
        return int(found[0].rpartition("-")[2]) * 1000 + 90

    def _nccl(self, version: Any) -> int:
        version._obj.value = 22703
        return 0

    def _interface(self, version: Any) -> int:
        driver = library_version(self._system) or "0"
        found = next(((major, minor) for least, major, minor in _NVENC if holds(driver, ">=", least)), (10, 0))
        version._obj.value = found[0] << 4 | found[1]
        return 0


def _python(system: HostState, arguments: list[str]) -> int:
    words = [word for word in arguments if word not in ("-I", "-S", "-B")]
    # Scripts name it with their root in front.
    path = Path(words[0]) if Path(words[0]).exists() else system.rooted(words[0])
    program = compile(path.read_text(encoding="utf-8"), words[0], "exec")
    real, before = ctypes.CDLL, sys.argv
    sys.argv = words
    ctypes.CDLL = lambda name: _Library(system, name)  # type: ignore[assignment, misc]
    try:
        exec(program, {"__name__": "__main__"})
    except SystemExit as error:
        return int(error.code or 0)
    finally:
        ctypes.CDLL, sys.argv = real, before  # type: ignore[misc]
    return 0


def _perl(system: HostState, arguments: list[str]) -> int:
    for name in arguments[2:]:
        print(f"{name}: {loading(system, name).removeprefix(f'{name}: ') or 'loaded'}")
    return 0
