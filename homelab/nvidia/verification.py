"""The verification of a system: the answer of the layer nvidia_verification compared with what is expected,
and an error for each difference.

The layer collects, this module decides. A failure with a known symptom is answered with its cause (`symptoms`), each
cause once; any other is quoted.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from homelab.errors import HomelabError
from homelab.facts.classes import NVIDIA
from homelab.facts.kernel_log import since_loaded
from homelab.facts.names import told_apart
from homelab.nvidia import plan
from homelab.nvidia.checks import card_text
from homelab.nvidia.request import Request
from homelab.nvidia.versions import parse
from homelab.shapes import Capability, CardInUse, NvidiaOutput
from homelab.symptoms import recognise
from remote_scripts.both.nvidia_packages import Answer as Installed
from remote_scripts.both.nvidia_verification import Answer, Tried
from remote_scripts.both.symptoms import Context, Flavour

# What mends most of what differs.
AGAIN = "run `pulumi up --refresh`: it installs, or makes again, what isn't as it is wanted"
# The exit status of `timeout`.
_TIMED_OUT = 124
# At most so many of the driver's last lines in the kernel log are searched.
_LOG_LINES = 60
# Messages of nvidia-smi that have many different causes.
_VAGUE_MESSAGES = (
    "No devices were found",
    "couldn't communicate with the NVIDIA driver",
    "Unable to determine the device handle",
    "Unknown Error",
)
# At most so many lines of a program that failed are quoted.
_QUOTED = 8
# Columns of nvidia-smi by the words with which their headings begin; units follow in brackets.
_COLUMNS = {
    "name": "name",
    "uuid": "uuid",
    "driver_version": "driver",
    "memory.total": "memory",
    "pci.bus_id": "address",
    "pci.device_id": "device",
    "compute_cap": "computeCapability",
}


@dataclass(frozen=True)
class _Use:
    """A stack in use: what the layer has collected, and what it is compared with."""

    found: Answer
    request: Request
    installed: Installed

    @cached_property
    def cards(self) -> list[dict[str, str | None]]:
        smi = self.found.nvidia_smi
        return _cards_of_smi(smi.output) if smi.status == 0 else []

    @cached_property
    def release(self) -> str | None:
        """Of nvcc."""
        nvcc = self.found.nvcc
        return _first(r"release (\d+\.\d+)", nvcc.output) if nvcc and nvcc.status == 0 else None

    @property
    def driver(self) -> str:
        """The one that is loaded; empty: none is."""
        return (self.cards[0]["driver"] if self.cards else "") or self.found.loaded

    @cached_property
    def loads(self) -> dict[str, str]:
        """As of `_load_results`; without cards nothing is said of libraries."""
        return _load_results(self.found.libraries) if self.cards else {}

    @cached_property
    def context(self) -> Context:
        known = "specification" if self.found.cdi and self.found.loaded in self.found.cdi.split() else None
        flavour = cast("Flavour | None", self.found.flavour or None)
        return replace(plan.context(self.request, self.installed.version), flavour=flavour, known=known)

    def demands(self, capability: str) -> bool:
        """Whether the settings name it: a library of another one may be missing."""
        return bool(self.request.settings.capabilities) and capability in self.installed.capabilities

    def loads_all(self, capability: Capability) -> bool | None:
        """Whether its libraries work; None where they aren't installed, and needn't be."""
        states = [self.loads[name] for name in self.request.data.libraries([capability]) if name in self.loads]
        missing = [state for state in states if _NOT_THERE in state] and not self.demands(capability)
        return None if missing or not states else all(state.startswith("loaded") for state in states)

    def error(self, what: str, found: str, why: str, next: str = AGAIN) -> HomelabError:
        """The error for what isn't as expected."""
        return self.request.refusal(wanted=what, found=found, why=why, next=next)

    def explained(self, part: Tried, what: str, why: str, next: str, log: str = "") -> list[HomelabError]:
        """Why a program fails: by the symptom in what it has printed, or else by that itself.

        :param log: lines of the kernel's, in which the symptom may be, too.
        """
        if known := recognise(f"{log}\n{part.output}", self.context):
            return known
        if part.status == _TIMED_OUT:
            found = "it wasn't done in the time that nvidia.timeouts.verify gives to all checks"
            why = (
                "a card that doesn't answer hangs every program that asks it; or something was only slow, such as "
                "fetching an image"
            )
            next = (
                "read `dmesg | grep -E 'NVRM|Xid'`; else set a longer nvidia.timeouts.verify, and run `pulumi up` again"
            )
            return [self.error(what, found, why, next)]
        lines = [line for line in part.output.splitlines() if line.strip()]
        quoted = "\n".join(lines[-_QUOTED:]) or "nothing was said"
        return [self.error(what, f"status {part.status}: {quoted}", why, next)]


def judge(found: Answer, request: Request, installed: Installed) -> tuple[NvidiaOutput, list[HomelabError]]:
    """The stack in use on a system, and an error for each difference from what is expected; the first is whole with and
    without errors.

    :param installed: what the packages' step has answered.
    :returns: `driver` (the loaded version), `flavour`, `gpus` (name, uuid, memory, address, computeCapability), `cuda`
        (nvcc's release), `program`, `container`, `uvm` (whether it works; None where it wasn't asked for), and the
        errors.
    """
    if unfetched := _unfetched_image(request, found.container):
        found = replace(found, container=None)
    use = _Use(found, request, installed)
    loads = defaultdict(str, use.loads)
    beside = {
        row.name: _first(r"^loaded, \S+ (\d+(?:\.\d+)+)", loads[row.soname]) for row in request.data.cuda_libraries
    }
    output: NvidiaOutput = {
        "driver": use.driver,
        "flavour": use.context.flavour,
        "gpus": [cast("CardInUse", {key: card[key] for key in CardInUse.__annotations__}) for card in use.cards],
        "cuda": use.release,
        "program": _succeeded("program", found.program),
        "container": _succeeded("container", found.container),
        "uvm": _succeeded("uvm", found.uvm),
        "video": use.loads_all("video"),
        "nvenc": _first(r"NVENC (\d+\.\d+)", loads["libnvidia-encode.so.1"]),
        "graphics": use.loads_all("graphics"),
        "cudnn": beside["cudnn"],
        "nccl": beside["nccl"],
        "cdi": _specification(found)[1] or None,
        "unchecked": unfetched,
    }
    return output, _with_way_back(use, _unique([*_errors(use), *_libraries(use)]))


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] if match else None


def _specification(found: Answer) -> tuple[str, str]:
    """The path of the CDI specification that engines take, the first one, and the driver's versions in it."""
    path, _, versions = (found.cdi or "").partition("\n")[0].partition(" ")
    return path, versions


def _unique(errors: list[HomelabError]) -> list[HomelabError]:
    """The errors, each cause once, as one symptom shows in several programs."""
    by_cause: dict[tuple[str, str], HomelabError] = {}
    for error in errors:
        by_cause.setdefault((error.wanted, error.why), error)
    return list(by_cause.values())


def _with_way_back(use: _Use, errors: list[HomelabError]) -> list[HomelabError]:
    """The errors, of which the first says how the driver comes back that an update has replaced, where what is wanted
    now could be had with it. A container's is its host's."""
    before, now = use.installed.before, use.installed.version
    if not errors or before in ("", now) or use.request.target == "lxc" or not use.request.suits(parse(before)):
        return errors
    way_back = f'to have the driver before again, set nvidia.driver: "{before}" and run `pulumi up`'
    return [errors[0].retold(next=f"{errors[0].next}; or {way_back}"), *errors[1:]]


def _unfetched_image(request: Request, container: Tried | None) -> list[str]:
    """Sentences on the trial in a container that couldn't be made, as its image couldn't be fetched, which is no
    failure of card or toolkit; else empty."""
    lines = [] if container is None or _succeeded("container", container) else container.output.splitlines()
    messages = [line.strip() for line in lines if _NO_IMAGE.search(line)]
    return [
        f"a container of {request.settings.container_toolkit or 'the engine'}, since its image could not be fetched "
        f"(nvidia.proxy is for a way through a proxy): {message[-300:]}"
        for message in messages[:1]
    ]


def _cards_of_smi(output: str) -> list[dict[str, str | None]]:
    """The cards of nvidia-smi's table: names of `_COLUMNS` -> text; None for [N/A]."""
    _, head, rows = f"\n{output}".partition("\nindex,")
    cards = []
    for fields in csv.DictReader(f"{head}{rows}".strip().splitlines(), skipinitialspace=True):
        # A warning below the table has no second field.
        values = {str(key).partition(" ")[0]: value for key, value in fields.items() if isinstance(value, str)}
        if values.get("uuid", "").startswith(("GPU-", "MIG-")):
            texts = {name: values.get(heading, "[N/A]").strip() for heading, name in _COLUMNS.items()}
            cards.append({name: None if text.startswith("[") else text for name, text in texts.items()})
    return [{**card, "device": _device(card["device"]), "address": _address(card["address"])} for card in cards]


def _address(text: str | None) -> str | None:
    # 0000:01:00.0 for nvidia-smi's 00000000:01:00.0, whose domain has eight digits.
    return None if text is None else re.sub(r"^0+(?=[0-9a-f]{4,}:)", "", text.lower())


def _device(text: str | None) -> str | None:
    """10de:2b85 for nvidia-smi's 0x2B8510DE; None where it isn't of that form."""
    match = re.fullmatch(r"0x([0-9A-F]{4})([0-9A-F]{4})", text or "", re.IGNORECASE)
    return f"{match[2]}:{match[1]}".lower() if match else None


def _succeeded(key: str, part: Tried | None) -> bool | None:
    """Whether a program has worked; None where it wasn't asked for."""
    return None if part is None else part.status == 0 and _MARKS[key] in part.output


# What the output of a program that works contains.
_MARKS = {"program": "Result = PASS", "container": "GPU 0:", "uvm": "opened"}
# Messages of an installed engine that gets no image: its registry isn't reached (docker, podman; containerd), doesn't
# answer, or refuses more requests.
_NO_IMAGE = re.compile(
    r"(Get|Head) \"https?://[^\"]+\": "
    r"(dial tcp|proxyconnect|net/http|context deadline|EOF|tls|x509|read tcp|Service Unavailable)"
    r"|toomanyrequests|pinging container registry|manifest unknown|received unexpected HTTP status: 5",
    re.IGNORECASE,
)
# How the names of symptoms of the CDI specification begin.
_OF_SPECIFICATION = "specification-"
# A message of the loader, for the library itself or one that it needs.
_NOT_THERE = "cannot open shared object file"
# The programs that are tried.
_PROGRAMS = {
    "program": "a CUDA program that is compiled and runs on each card",
    "container": "a container in which nvidia-smi sees the cards",
}


def _errors(use: _Use) -> Iterator[HomelabError]:
    found, cards = use.found, use.cards
    yield from _driver_and_cards(use) if cards else _no_cards(use)
    if found.nvcc and use.request.cuda and use.release != (short := use.request.cuda.short):
        yield from use.explained(
            found.nvcc,
            f"nvcc of CUDA {use.request.cuda}",
            "CUDA programs are compiled with it, for the cards and drivers that this release knows",
            f"{AGAIN}; by hand: `apt-get install --reinstall cuda-nvcc-{short.replace('.', '-')}` there",
        )
    program_errors: list[HomelabError] = []
    for key, part in {"program": found.program, "container": found.container}.items():
        # Nothing works without the driver, nor a program without its compiler.
        is_known = not cards or (key == "program" and found.nvcc and found.nvcc.status)
        if part is not None and not _succeeded(key, part) and not is_known:
            program_errors += use.explained(
                part,
                _PROGRAMS[key],
                "other programs would fail as well",
                "correct what these lines say; try a container by hand (`docker run --rm --runtime=nvidia --gpus all "
                "ubuntu nvidia-smi`); then run `pulumi up`",
            )
    if found.uvm and found.uvm.status and cards:
        # The kernel's reason for a device node tells more than the CUDA program, which failed for the same one.
        program_errors = [error for error in program_errors if error.symptom != "uvm-missing"]
        yield from use.explained(
            found.uvm,
            "/dev/nvidiactl, /dev/nvidia-uvm and the cards' nodes, opened by an ordinary user",
            "the kernel refuses it: programs that don't run as root could not use CUDA",
            "look at `ls -l /dev/nvidia*` there, then run `pulumi up`",
        )
    yield from program_errors
    if found.container and _succeeded("container", found.container):
        listed = len(re.findall(r"^GPU \d+:", found.container.output, re.MULTILINE))
        if cards and listed != len(cards):
            yield use.error(
                f"a container that sees all of its {len(cards)} cards",
                f"nvidia-smi in it lists {listed}",
                "the CDI specification, or the runtime's configuration, names fewer cards",
            )
    path, versions = _specification(found)
    # A container that failed for this reason has the same error.
    is_said = any(error.symptom.startswith(_OF_SPECIFICATION) for error in program_errors)
    if versions and use.driver not in ("", versions) and not is_said:
        yield use.error(
            f"a CDI specification of the driver that runs, {use.driver}",
            f"{path} names libraries of {versions.replace(' ', ' and ')}",
            "containers are given the libraries that it names",
            f"{AGAIN}; what is in /run is made by the toolkit's own service: restart nvidia-cdi-refresh there before",
        )


def _no_cards(use: _Use) -> list[HomelabError]:
    """Why nvidia-smi lists no card: by the kernel's log since the module was loaded, too, where its own message is
    vague."""
    smi, log = use.found.nvidia_smi, "\n".join(since_loaded(use.found.kernel_log)[-_LOG_LINES:])
    vague = smi.status == _TIMED_OUT or any(text in smi.output for text in _VAGUE_MESSAGES)
    again = f"{AGAIN}; else run `nvidia-smi` there and read `dmesg | grep NVRM`"
    return use.explained(smi, "nvidia-smi that lists the cards", "nothing could use them", again, log if vague else "")


def _driver_and_cards(use: _Use) -> Iterator[HomelabError]:
    after_reboot = "reboot it, then `pulumi up --refresh`"
    installed, flavour = use.installed, use.context.flavour
    if use.driver != installed.version:
        yield use.error(
            f"driver {installed.version}",
            f"{use.driver} is in use",
            "what was installed isn't what is loaded: the system wasn't rebooted since, or something else was "
            "installed",
            f"{after_reboot}; `dpkg -l '*nvidia*'` there shows what is installed",
        )
    if installed.flavour and flavour not in (None, installed.flavour):
        yield use.error(
            f"the {installed.flavour} kernel modules",
            f"the {flavour} ones are loaded",
            "open and proprietary modules differ in the cards that they know",
            after_reboot,
        )
    # Other cards than expected: compared by PCI id where nvidia-smi tells it, else by their number, as names differ
    # between drivers.
    expected, devices = use.request.devices or (), [card["device"] for card in use.cards]
    same = (
        Counter(devices) == Counter(f"{NVIDIA}:{one}" for one in expected)
        if all(devices)
        else len(devices) == len(expected)
    )
    if expected and not same:
        seen = [(f"{card['name']} ({card['device'] or card['address']})", card["address"]) for card in use.cards]
        yield use.error(
            f"{len(expected)} card(s): {card_text(use.request, *expected)}",
            f"{len(devices)} in nvidia-smi: {', '.join(told_apart(seen))}",
            "a card that is missing isn't given to this system, or doesn't start; programs would use other cards than "
            "those that were meant",
            "in its host's settings look at gpuAssignment (vms.…, containers.…) and `lspci -nn -d 10de:`; for a "
            "missing one read `dmesg | grep NVRM`",
        )


def _load_results(part: Tried | None) -> dict[str, str]:
    """Soname -> the result of loading it: `loaded`, perhaps with its version, or the loader's error."""
    lines = part.output.splitlines() if part else []
    return {match[1]: match[2] for line in lines if (match := re.match(r"(lib\S+\.so\.\d+): (.+)", line))}


def _libraries(use: _Use) -> Iterator[HomelabError]:
    """Errors for the libraries of the driver's capabilities, for cuDNN and NCCL, and for the same in a container."""
    if not use.cards:
        return
    data, major = use.request.data, str(use.request.cuda.major) if use.request.cuda else ""
    expected = [
        (f"{name} of {texts}", name, use.demands(capability))
        for capability, texts in {"video": "NVENC and NVDEC", "graphics": "EGL, OpenGL and Vulkan"}.items()
        for name in data.libraries([capability])
    ]
    expected += [(f"{row.soname} of CUDA {major}", row.soname, True) for row in plan.beside_cuda(use.request)]
    for what, name, is_demanded in expected if use.found.libraries else ():
        state = use.loads.get(name, "nothing was said of it")
        is_there = name in use.loads and _NOT_THERE not in state
        if (is_there or is_demanded) and (why := _fault(state, major)):
            yield use.error(f"{what}, loaded", f"{name}: {state}", why)
    container = use.found.container
    inside = _load_results(container) if _succeeded("container", container) else {}
    if lacking := [f"{name}: {state}" for name, state in inside.items() if not state.startswith("loaded")]:
        yield use.error(
            "the driver's libraries in a container that asks for them (NVIDIA_DRIVER_CAPABILITIES)",
            "; ".join(lacking),
            "they load on the system itself: the CDI specification is from before they were installed, or the toolkit "
            "doesn't find them",
        )


def _fault(state: str, major: str) -> str:
    """Why a library doesn't serve; empty: it does.

    :param state: of `_load_results`.
    :param major: the wanted CUDA's.
    """
    if not state.startswith("loaded"):
        return "it, or one that it needs, isn't there, isn't whole, or has another version than those beside it"
    if "NVENC error" in state:
        return "the library is there and doesn't answer: programs could not encode video"
    if (match := re.search(r"for CUDA (\d+)", state)) and match[1] != major:
        return "one that is made for another major release of CUDA needs that release's libraries"
    return ""
