"""The verification of a system: the answer of the layer nvidia_verification compared with what is expected,
and an error for each difference.

The layer collects, this module decides. A failure with a known symptom is answered with its cause (`symptoms`), each
cause once; any other is quoted.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from homelab.errors import HomelabError
from homelab.facts.kernel_log import since_loaded
from homelab.facts.names import told_apart
from homelab.nvidia.compatibility import load
from homelab.nvidia.expected import AGAIN, Expected
from homelab.shapes import CardInUse, NvidiaOutput
from homelab.symptoms import recognise
from remote_scripts.both.nvidia_verification import Answer, Tried
from remote_scripts.both.symptoms import Context, Flavour

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


def judge(found: Answer, wanted: Expected) -> tuple[NvidiaOutput, list[HomelabError]]:
    """The stack in use on a system, and an error for each difference from what is expected; the first is whole with and
    without errors.

    :returns: `driver` (the loaded version), `flavour`, `gpus` (name, uuid, memory, address, computeCapability), `cuda`
        (nvcc's release), `program`, `container`, `uvm` (whether it works; None where it wasn't asked for), and the
        errors.
    """
    if unfetched := _unfetched_image(wanted, found.container):
        found = replace(found, container=None)
    cards = _cards_of_smi(found.nvidia_smi.output) if found.nvidia_smi.status == 0 else []
    said = found.nvcc.output if found.nvcc and found.nvcc.status == 0 else ""
    release = match[1] if (match := re.search(r"release (\d+\.\d+)", said)) else None
    driver = cards[0]["driver"] if cards else found.loaded or None
    specification, _, versions = (found.cdi or "").partition("\n")[0].partition(" ")  # engines take the first one
    load_results = _load_results(found.libraries) if cards else {}
    interface = re.search(r"NVENC (\d+\.\d+)", load_results.get("libnvidia-encode.so.1", ""))
    works: dict[str, bool | None] = {}
    for capability in ("video", "graphics"):
        states = [load_results[name] for name in load().libraries([capability]) if name in load_results]
        # A library that isn't installed only counts where the settings demand its capability.
        missing = [state for state in states if _NOT_THERE in state] and capability not in wanted.demanded
        works[capability] = None if missing or not states else all(state.startswith("loaded") for state in states)
    beside = {
        row.name: match[1]
        for row in load().cuda_libraries
        if (match := re.match(r"loaded, \S+ (\d+(?:\.\d+)+)", load_results.get(row.soname, "")))
    }
    output: NvidiaOutput = {
        "driver": driver or "",
        "flavour": cast("Flavour | None", found.flavour or None),
        "gpus": [cast("CardInUse", {key: card[key] for key in CardInUse.__annotations__}) for card in cards],
        "cuda": release,
        "program": _succeeded("program", found.program),
        "container": _succeeded("container", found.container),
        "uvm": _succeeded("uvm", found.uvm),
        "video": works["video"],
        "nvenc": interface[1] if interface else None,
        "graphics": works["graphics"],
        "cudnn": beside.get("cudnn"),
        "nccl": beside.get("nccl"),
        "cdi": versions or None,
        "unchecked": unfetched,
    }
    errors = list(_errors(found, wanted, cards, release))
    # A container that failed for this reason has the same error.
    is_said = any(one.symptom.startswith(_OF_SPECIFICATION) for one in errors)
    if versions and driver not in (None, versions) and not is_said:
        errors.append(
            wanted.error(
                f"a CDI specification of the driver that runs, {driver}",
                f"{specification} names libraries of {versions.replace(' ', ' and ')}",
                "containers are given the libraries that it names",
                f"{AGAIN}; what is in /run is made by the toolkit's own service: restart nvidia-cdi-refresh there "
                "before",
            )
        )
    if cards:
        errors += _libraries(wanted, found, load_results)
    return output, _unique(errors)


def _unique(errors: list[HomelabError]) -> list[HomelabError]:
    """The errors, each cause once, as one symptom shows in several programs."""
    by_cause: dict[tuple[str, str], HomelabError] = {}
    for error in errors:
        by_cause.setdefault((error.wanted, error.why), error)
    return list(by_cause.values())


def _unfetched_image(wanted: Expected, container: Tried | None) -> list[str]:
    """Sentences on the trial in a container that couldn't be made, as its image couldn't be fetched, which is no
    failure of card or toolkit; else empty."""
    lines = [] if container is None or _succeeded("container", container) else container.output.splitlines()
    messages = [line.strip() for line in lines if _NO_IMAGE.search(line)]
    return [
        f"a container of {wanted.runtime or 'the engine'}, since its image could not be fetched (nvidia.proxy is "
        f"for a way through a proxy): {message[-300:]}"
        for message in messages[:1]
    ]


def _cards_of_smi(output: str) -> list[dict[str, str | None]]:
    """The cards of nvidia-smi's table: names of `_COLUMNS` -> text; None for [N/A]."""
    lines = output.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith("index")), None)
    if start is None:
        return []
    cards = []
    for fields in csv.DictReader(io.StringIO("\n".join(lines[start:])), skipinitialspace=True):
        # A warning below the table has no second field.
        values = {str(key).partition(" ")[0]: value for key, value in fields.items() if isinstance(value, str)}
        if not values.get("uuid", "").startswith(("GPU-", "MIG-")):
            continue
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


def _errors(
    found: Answer, wanted: Expected, cards: Sequence[Mapping[str, str | None]], release: str | None
) -> Iterator[HomelabError]:
    known = "specification" if found.cdi and found.loaded in found.cdi.split() else None
    context = replace(wanted.context, flavour=cast("Flavour | None", found.flavour or None), known=known)
    if cards:
        yield from _driver_and_cards(wanted, found, cards)
    else:
        yield from _no_cards(wanted, found, context)
    if found.nvcc:
        yield from _compiler(wanted, found.nvcc, release, context)
    program_errors: list[HomelabError] = []
    for key, part in {"program": found.program, "container": found.container}.items():
        if part is None or _succeeded(key, part):
            continue
        # Nothing works without the driver, nor a program without its compiler.
        if not cards or (key == "program" and found.nvcc and found.nvcc.status):
            continue
        next_step = (
            "correct what these lines say; try a container by hand (`docker run --rm --runtime=nvidia --gpus all "
            "ubuntu nvidia-smi`); then run `pulumi up`"
        )
        program_errors += recognise(part.output, context) or [
            _unrecognised(wanted, _PROGRAMS[key], part, "other programs would fail as well", next_step)
        ]
    if found.uvm and found.uvm.status and cards:
        # The kernel's reason for a device node tells more than the CUDA program, which failed for the same one.
        program_errors = [error for error in program_errors if error.symptom != "uvm-missing"]
        yield from recognise(found.uvm.output, context) or [
            _unrecognised(
                wanted,
                "/dev/nvidiactl, /dev/nvidia-uvm and the cards' nodes, opened by an ordinary user",
                found.uvm,
                "the kernel refuses it: programs that don't run as root could not use CUDA",
                "look at `ls -l /dev/nvidia*` there, then run `pulumi up`",
            )
        ]
    yield from program_errors
    if found.container and _succeeded("container", found.container):
        listed = len(re.findall(r"^GPU \d+:", found.container.output, re.MULTILINE))
        if cards and listed != len(cards):
            yield wanted.error(
                f"a container that sees all of its {len(cards)} cards",
                f"nvidia-smi in it lists {listed}",
                "the CDI specification, or the runtime's configuration, names fewer cards",
            )


def _no_cards(wanted: Expected, found: Answer, context: Context) -> list[HomelabError]:
    """Why nvidia-smi lists no card: by the kernel's log since the module was loaded, too, where its own message is
    vague."""
    smi, log = found.nvidia_smi, "\n".join(since_loaded(found.kernel_log)[-_LOG_LINES:])
    vague = smi.status == _TIMED_OUT or any(text in smi.output for text in _VAGUE_MESSAGES)
    return recognise(f"{log}\n{smi.output}" if vague else smi.output, context) or [
        _unrecognised(
            wanted,
            "nvidia-smi that lists the cards",
            smi,
            "nothing could use them",
            f"{AGAIN}; else run `nvidia-smi` there and read `dmesg | grep NVRM`",
        )
    ]


def _unrecognised(wanted: Expected, what: str, part: Tried, why: str, next_step: str) -> HomelabError:
    """The error for a failure without a known symptom."""
    if part.status == _TIMED_OUT:
        return wanted.error(
            what,
            "it wasn't done in the time that nvidia.timeouts.verify gives to all checks",
            "a card that doesn't answer hangs every program that asks it; or something was only slow, such as "
            "fetching an image",
            "read `dmesg | grep -E 'NVRM|Xid'`; else set a longer nvidia.timeouts.verify, and run `pulumi up` again",
        )
    lines = [line for line in part.output.splitlines() if line.strip()]
    quoted = "\n".join(lines[-_QUOTED:]) or "nothing was said"
    return wanted.error(what, f"status {part.status}: {quoted}", why, next_step)


def _driver_and_cards(
    wanted: Expected, found: Answer, cards: Sequence[Mapping[str, str | None]]
) -> Iterator[HomelabError]:
    driver, after_reboot = cards[0]["driver"] or found.loaded, "reboot it, then `pulumi up --refresh`"
    if driver != wanted.driver:
        yield wanted.error(
            f"driver {wanted.driver}",
            f"{driver} is in use",
            "what was installed isn't what is loaded: the system wasn't rebooted since, or something else was "
            "installed",
            f"{after_reboot}; `dpkg -l '*nvidia*'` there shows what is installed",
        )
    if wanted.flavour and found.flavour and found.flavour != wanted.flavour:
        yield wanted.error(
            f"the {wanted.flavour} kernel modules",
            f"the {found.flavour} ones are loaded",
            "open and proprietary modules differ in the cards that they know",
            after_reboot,
        )
    yield from _models(wanted, cards)


def _models(wanted: Expected, cards: Sequence[Mapping[str, str | None]]) -> Iterator[HomelabError]:
    """An error where other cards are there than expected: compared by PCI id where nvidia-smi tells it, else by their
    number, as names differ between drivers."""
    if not wanted.cards:
        return
    devices = [card["device"] for card in cards]
    expected = Counter(card.lower() for card in wanted.cards)
    all_have_ids = all(devices)
    if Counter(devices) == expected if all_have_ids else len(devices) == len(wanted.cards):
        return
    generation = load().generation
    texts = ", ".join(f"{generation(card.partition(':')[2].lower()).name} ({card})" for card in wanted.cards)
    seen = [(f"{card['name']} ({card['device'] or card['address']})", card["address"]) for card in cards]
    listed = ", ".join(told_apart(seen))
    yield wanted.error(
        f"{len(wanted.cards)} card(s): {texts}",
        f"{len(cards)} in nvidia-smi: {listed}",
        "a card that is missing isn't given to this system, or doesn't start; programs would use other cards than "
        "those that were meant",
        "in its host's settings look at gpuAssignment (vms.…, containers.…) and `lspci -nn -d 10de:`; for a missing "
        "one read `dmesg | grep NVRM`",
    )


def _compiler(wanted: Expected, nvcc: Tried, release: str | None, context: Context) -> Iterator[HomelabError]:
    what, short = f"nvcc of CUDA {wanted.cuda}", (wanted.cuda or "").split(".")[:2]
    if release is None:
        again = f"{AGAIN}; by hand: `apt-get install --reinstall cuda-nvcc-{'-'.join(short)}` there"
        yield from recognise(nvcc.output, context) or [
            _unrecognised(wanted, what, nvcc, "CUDA programs are compiled with it", again)
        ]
    elif wanted.cuda and release.split(".") != short:
        yield wanted.error(
            what,
            f"nvcc is of {release}",
            "what it compiles could be for other cards and drivers than those that were meant",
        )


def _load_results(part: Tried | None) -> dict[str, str]:
    """Soname -> the result of loading it: `loaded`, perhaps with its version, or the loader's error."""
    lines = part.output.splitlines() if part else []
    return {match[1]: match[2] for line in lines if (match := re.match(r"(lib\S+\.so\.\d+): (.+)", line))}


def _libraries(wanted: Expected, found: Answer, load_results: Mapping[str, str]) -> Iterator[HomelabError]:
    """Errors for the libraries of the driver's capabilities, for cuDNN and NCCL, and for the same in a container."""
    major = (wanted.cuda or "").partition(".")[0]
    expected = [
        (f"{name} of {texts}", name, capability in wanted.demanded)
        for capability, texts in {"video": "NVENC and NVDEC", "graphics": "EGL, OpenGL and Vulkan"}.items()
        for name in load().libraries([capability])
    ]
    expected += [(f"{name} of CUDA {major}", name, True) for name in wanted.libraries]
    for what, name, is_demanded in expected if found.libraries else ():
        state = load_results.get(name, "nothing was said of it")
        is_there = name in load_results and _NOT_THERE not in state
        if (is_there or is_demanded) and (why := _fault(state, major)):
            yield wanted.error(f"{what}, loaded", f"{name}: {state}", why)
    inside = _load_results(found.container) if _succeeded("container", found.container) else {}
    if lacking := [f"{name}: {state}" for name, state in inside.items() if not state.startswith("loaded")]:
        yield wanted.error(
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
