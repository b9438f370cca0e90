"""nvcc of a lab's system, and the programs that it makes.

nvcc reads its source: a file without `main`, with an #include that isn't there, or with braces that don't match is refused.
What it makes is a program of the lab's that runs as a CUDA program does: it wants a card, the driver's library of the
driver's version, /dev/nvidia-uvm, a driver that is new enough for the toolkit, and code for the card.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from . import container, launchers, network, nvidia
from .nvidia_programs import Card, cards_of, driver_version, kernel_of, library_version, load_uvm
from .program import Failure, UsageError, logged
from .state import HostState
from .versions import holds

_INCLUDED = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)
_HEADERS = frozenset(
    {
        "cuda_runtime.h", "cuda.h", "cuda_runtime_api.h", "device_launch_parameters.h", "cstdio", "cstdlib", "stdio.h",
        "stdlib.h", "string.h", "cstring", "iostream", "vector", "cmath", "math.h", "assert.h", "cassert", "string",
        "stdint.h", "cstdint", "unistd.h", "algorithm", "memory", "numeric", "iomanip", "sstream", "stdexcept",
    }
)  # fmt: skip
#: The architectures that a toolkit's nvcc builds for, from that release on.
_ARCHITECTURES = {
    "50": "6.5",
    "60": "8.0",
    "70": "9.0",
    "75": "10.0",
    "80": "11.0",
    "86": "11.1",
    "89": "11.8",
    "90": "11.8",
    "100": "12.8",
    "120": "12.8",
}
_NO_DEVICE, _DRIVER_TOO_OLD, _NO_IMAGE, _UNKNOWN, _NOT_INITIALISED = 100, 35, 209, 999, 3
_TEXTS = {
    _NO_DEVICE: "no CUDA-capable device is detected",
    _DRIVER_TOO_OLD: "CUDA driver version is insufficient for CUDA runtime version",
    _NO_IMAGE: "no kernel image is available for execution on the device",
    _UNKNOWN: "unknown error",
    222: "the provided PTX was compiled with an unsupported toolchain.",
    803: "system has unsupported display driver / cuda driver combination",
}


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """nvcc, or a program that it made."""
    if name == "cuda-program":
        return _run(host, json.loads(arguments[0]))
    if "--version" in arguments or "-V" in arguments:
        release = _release()
        print(
            "nvcc: NVIDIA (R) Cuda compiler driver\nCopyright (c) 2005-2025 NVIDIA Corporation\n"
            f"Cuda compilation tools, release {release}, V{release}.93\nBuild cuda_{release}.r{release}/compiler.35583870_0"
        )
        return 0
    return logged(host, name, arguments, lambda: _compile(host, arguments))


def _release() -> str:
    """The toolkit's release, by the folder from which it was started; the launcher hands that on."""
    started = os.environ.get("LAB_PROGRAM", "")
    if match := re.search(r"/cuda-(\d+\.\d+)/", os.path.realpath(started)):
        return match[1]
    return "12.0"


# -- nvcc ------------------------------------------------------------------------------------------------------
def _compile(host: HostState, arguments: list[str]) -> int:
    output, sources, architectures = "a.out", [], []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if word in ("-o", "--output-file"):
            output = queue.pop(0)
        elif match := re.fullmatch(r"(?:-arch|--gpu-architecture|-code)(?:=(.*))?", word):
            architectures.append(match[1] or queue.pop(0))
        elif word in ("-gencode", "--generate-code"):
            architectures += re.findall(r"code=(\w+)", queue.pop(0))
        elif match := re.fullmatch(r"(?:-gencode|--generate-code)=(.*)", word):
            architectures += re.findall(r"code=(\w+)", match[1])
        elif word in ("-x", "-I", "-L", "-Xcompiler", "-std"):
            queue.pop(0)
        elif re.match(r"-(O\d|g|G|std=|w|lineinfo|cudart=?|I|L|l|Wno|D|m64|allow-unsupported-compiler|-threads)", word):
            continue
        elif word.startswith("-") and word != "-":
            raise UsageError(f"the lab's nvcc doesn't know {word!r}")
        else:
            sources.append(word)
    return _build(host, sources, output, architectures)


def _build(host: HostState, sources: list[str], output: str, architectures: list[str]) -> int:
    release = _release()
    if not sources:
        raise Failure("nvcc fatal   : No input files specified; use option --help for more information")
    built = [_architecture(text, release) for text in architectures if text != "native"] or [
        "75" if release >= "13" else "52"
    ]
    if "native" in architectures:
        built = [card.capability.replace(".", "") for card in cards_of(host) if card.capability]
    for source in sources:
        _check(_place(host, source), source)
    about = {"release": release, "architectures": built}
    text = launchers.text_of("cuda-program", json.dumps(about), container="container" in host.machine)
    target = _place(host, output)
    target.write_text(text, encoding="utf-8")
    target.chmod(0o755)
    return 0


def _place(host: HostState, path: str) -> Path:
    return host.rooted(path) if path.startswith("/") else Path.cwd() / path


def _architecture(text: str, release: str) -> str:
    number = re.sub(r"^(sm|compute|lto)_", "", text).rstrip("af")
    since = _ARCHITECTURES.get(number)
    known = since is not None and tuple(map(int, release.split("."))) >= tuple(map(int, since.split(".")))
    if not known:
        raise Failure(f"nvcc fatal   : Unsupported gpu architecture '{text.replace('sm_', 'compute_')}'")
    return number


def _check(place: Path, name: str) -> None:
    """Read a source as a compiler does, as far as that finds what is missing.

    Raises:
        Failure: in the compiler's words.
    """
    if not place.is_file():
        raise Failure(f"cc1plus: fatal error: {name}: No such file or directory\ncompilation terminated.")
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", place.read_text(encoding="utf-8"), flags=re.DOTALL)
    for bracket, header in _INCLUDED.findall(text):
        there = header in _HEADERS or (bracket == '"' and (place.parent / header).is_file())
        if not there:
            raise Failure(f"{name}:1:10: fatal error: {header}: No such file or directory\ncompilation terminated.")
    bare = re.sub(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\])+\'', '""', text)
    for left, right in ("{}", "()"):
        if bare.count(left) != bare.count(right):
            raise Failure(
                f'{name}({text.count(chr(10)) + 1}): error: expected a "{right}"\n\n1 error detected in the compilation of "{name}".'
            )
    if not re.search(r"\bint\s+main\s*\(", bare):
        raise Failure(
            "/usr/bin/ld: /usr/lib/x86_64-linux-gnu/Scrt1.o: in function `_start':\n(.text+0x1b): undefined reference to `main'\ncollect2: error: ld returned 1 exit status"
        )


# -- its programs ----------------------------------------------------------------------------------------------
def _run(host: HostState, about: dict[str, object]) -> int:
    """Run as a program that asks for its devices, allocates, launches and waits."""
    code = error_of(
        host,
        str(about["release"]),
        [str(a) for a in about["architectures"]] if isinstance(about["architectures"], list) else [],
    )
    if code:
        print(f"CUDA error {code}: {_TEXTS[code]}", file=sys.stderr)
        return 1
    cards = cards_of(host)
    print(f"{len(cards)} CUDA device(s)")
    for card in cards:
        print(f"  {card.number}: {card.name}, compute capability {card.capability or 'unknown'}")
    print("Result = PASS")
    return 0


def error_of(host: HostState, release: str, architectures: list[str]) -> int:
    """cudaError_t of a program's first call, 0 when all goes well.

    Args:
        release: the toolkit's.
        architectures: those that it was built for, such as 120; none: of a library that has code for every card.
    """
    kernel = kernel_of(host)
    version = library_version(host)
    if version is None:
        return _DRIVER_TOO_OLD
    try:
        cards = cards_of(host)
    except Failure as error:
        return 803 if "mismatch" in str(error) else _NO_DEVICE
    if not cards:
        return _NO_DEVICE
    if not _has_uvm(host):
        return _UNKNOWN
    least = network.data(host)["driver"]["cuda"].get(release.split(".")[0], "0")
    if not holds(driver_version(kernel) or "0", ">=", least):
        return _DRIVER_TOO_OLD
    return _NO_IMAGE if architectures and not _has_code(cards, release, architectures, kernel) else 0


def _has_uvm(host: HostState) -> bool:
    """Whether /dev/nvidia-uvm can be opened; as root of a whole system, a program has it made."""
    if "container" in host.machine:
        return container.opening(host, "/dev/nvidia-uvm", "rw", container.Identity.current()) == 0
    if not load_uvm(host):
        return False
    nvidia.make_uvm_nodes(host, 0)
    return True


def _has_code(cards: list[Card], release: str, architectures: list[str], kernel: HostState) -> bool:
    """Whether there is machine code for every card, or code that the driver can translate: of an older card, and by a
    driver that is no older than the toolkit."""
    branch = int((driver_version(kernel) or "0").split(".")[0])
    translates = branch >= {"12.8": 570, "12.9": 575, "13.0": 580, "13.1": 590}.get(release, 525)
    for card in cards:
        capability = card.capability
        if capability is None:
            continue
        number = int(capability.replace(".", ""))
        same = any(int(a) // 10 == number // 10 and int(a) <= number for a in architectures)
        if not same and not (translates and any(int(a) <= number for a in architectures)):
            return False
    return True
