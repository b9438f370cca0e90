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
from homelab.nvidia.expected import Expected
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
    specification, outdated = _specification(wanted, found.cdi, driver)
    load_results = _load_results(found.libraries) if cards else {}
    interface = re.search(r"NVENC (\d+\.\d+)", load_results.get("libnvidia-encode.so.1", ""))
    works: dict[str, bool | None] = {}
    for capability in ("video", "graphics"):
        states = [load_results[name] for name in load().libraries([capability]) if name in load_results]
        # A library that isn't installed only counts where the settings demand its capability.
        missing = [state for state in states if _NOT_THERE in state] and capability not in wanted.demanded
        works[capability] = None if missing or not states else all(state.startswith("loaded") for state in states)
    versions = {
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
        "cudnn": versions.get("cudnn"),
        "nccl": versions.get("nccl"),
        "cdi": specification,
        "unchecked": unfetched,
    }
    errors = list(_errors(found, wanted, cards, release))
    # A container that failed for this reason has the same error.
    if outdated and not any("CDI specification" in error.wanted for error in errors):
        errors.append(outdated)
    if cards:
        errors += _libraries(wanted, found, load_results)
    return output, _unique(errors)


def _unfetched_image(wanted: Expected, container: Tried | None) -> list[str]:
    """Sentences on the trial in a container that couldn't be made, as its image couldn't be fetched, which is no
    failure of card or toolkit; else empty."""
    if container is None or _succeeded("container", container):
        return []
    messages = [line.strip() for line in container.output.splitlines() if _NO_IMAGE.search(line)]
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
# A message of the loader, for the library itself or one that it needs.
_NOT_THERE = "cannot open shared object file"
# The programs that are tried: what was wanted, why a failure matters, and what to do where its output has no known
# symptom.
_PROGRAMS = {
    "program": (
        "a CUDA program that is compiled and runs on each card",
        "other CUDA programs would fail as well",
        "correct what these lines say, then `pulumi up` verifies it again",
    ),
    "container": (
        "a container in which nvidia-smi sees the cards",
        "nothing in a container could use them",
        "try the same by hand (the image is named above, or `docker run --rm --runtime=nvidia --gpus all ubuntu "
        "nvidia-smi`), then run `pulumi up`",
    ),
}
# The kernel's reason why an ordinary user can't open a device node ("", at the end: any) -> target ("": any other) ->
# the cause, and what to do.
_REFUSED = {
    "No such file or directory": {
        "lxc": (
            "the container wasn't given it",
            "run `pulumi up --refresh`: the container gets what it needs; by hand: dev[n] in `pct config`",
        ),
        "": (
            "its module isn't loaded, or nothing has made the node",
            "`nvidia-modprobe -u -c 0` makes it; `pulumi up --refresh` has that done at boot",
        ),
    },
    "Permission denied": {
        "lxc": (
            "its mode keeps ordinary users out",
            "give the container's dev[n] entries mode=0666, or gid= of a group that its users are in",
        ),
        "": (
            "its mode keeps ordinary users out",
            "take NVreg_DeviceFileMode, -UID and -GID out of /etc/modprobe.d, or add the users to that group",
        ),
    },
    "Operation not permitted": {
        "": (
            "no rule of the control group allows it",
            "run `pulumi up --refresh`: it brings the container's rules to the nodes' numbers, which may change",
        ),
    },
    "": {"": ("the kernel refuses it", "look at `ls -l /dev/nvidia*` there, then run `pulumi up`")},
}


def _errors(
    found: Answer, wanted: Expected, cards: Sequence[Mapping[str, str | None]], release: str | None
) -> Iterator[HomelabError]:
    context = replace(wanted.context, flavour=cast("Flavour | None", found.flavour or None))
    if cards:
        yield from _driver_and_cards(wanted, found, cards)
    else:
        yield from _no_cards(found, context)
    if found.nvcc:
        yield from _compiler(wanted, found.nvcc, release, context)
    program_errors: list[HomelabError] = []
    for key, part in {"program": found.program, "container": found.container}.items():
        if part is None or _succeeded(key, part):
            continue
        # Nothing works without the driver, nor a program without its compiler.
        if not cards or (key == "program" and found.nvcc and found.nvcc.status):
            continue
        what, why, next_step = _PROGRAMS[key]
        program_errors += recognise(part.output, context) or [
            _unrecognised(f"{wanted.name}: {what}", part, why, next_step)
        ]
    if found.uvm and found.uvm.status and cards:
        # The kernel's reason for a device node tells more than the CUDA program, which failed for the same one.
        program_errors = [error for error in program_errors if not error.wanted.endswith("/dev/nvidia-uvm")]
        yield _refused(wanted, found.uvm)
    yield from program_errors
    if found.container and _succeeded("container", found.container):
        yield from _cards_of_container(wanted, found.container, cards)


def _no_cards(found: Answer, context: Context) -> list[HomelabError]:
    """Why nvidia-smi lists no card: by the kernel's log since the module was loaded, too, where its own message is
    vague."""
    smi, log = found.nvidia_smi, "\n".join(since_loaded(found.kernel_log)[-_LOG_LINES:])
    vague = smi.status == _TIMED_OUT or any(text in smi.output for text in _VAGUE_MESSAGES)
    return recognise(f"{log}\n{smi.output}" if vague else smi.output, context) or [
        _unrecognised(
            f"{context.name}: nvidia-smi that lists the cards",
            smi,
            "nothing could use them",
            "run `pulumi up --refresh`, which installs what is missing; else run `nvidia-smi` there and read "
            "`dmesg | grep NVRM`",
        )
    ]


def _unrecognised(wanted: str, part: Tried, why: str, next_step: str) -> HomelabError:
    """The error for a failure without a known symptom."""
    if part.status == _TIMED_OUT:
        return HomelabError(
            wanted=wanted,
            found="it wasn't done in the time that nvidia.timeouts.verify gives to all checks",
            why="a card that doesn't answer hangs every program that asks it; or something was only slow, such as "
            "fetching an image",
            next="read `dmesg | grep -E 'NVRM|Xid'`; else set a longer nvidia.timeouts.verify, and run `pulumi up` "
            "again",
        )
    lines = [line for line in part.output.splitlines() if line.strip()]
    quoted = "\n".join(lines[-_QUOTED:]) or "nothing was said"
    return HomelabError(wanted=wanted, found=f"status {part.status}: {quoted}", why=why, next=next_step)


def _refused(wanted: Expected, devices: Tried) -> HomelabError:
    """The error for device nodes that an ordinary user can't open; its reason is the first one's."""
    lines = [line for line in devices.output.splitlines() if line.strip() and not line.endswith(": opened")]
    answers = next(answers for reason, answers in _REFUSED.items() if reason in "".join(lines[:1]))
    why, next_step = answers.get(wanted.target, answers[""])
    return HomelabError(
        wanted=f"{wanted.name}: /dev/nvidiactl, /dev/nvidia-uvm and the cards' nodes, opened by an ordinary user",
        found="; ".join(lines) or f"status {devices.status}",
        why=f"{why}: programs that don't run as root could not use CUDA",
        next=next_step,
    )


def _driver_and_cards(
    wanted: Expected, found: Answer, cards: Sequence[Mapping[str, str | None]]
) -> Iterator[HomelabError]:
    driver = cards[0]["driver"] or found.loaded
    if driver != wanted.driver:
        yield HomelabError(
            wanted=f"{wanted.name}: driver {wanted.driver}",
            found=f"{driver} is in use",
            why="what was installed isn't what is loaded: the system wasn't rebooted since, or something else was "
            "installed",
            next="reboot it, then `pulumi up --refresh`; `dpkg -l '*nvidia*'` there shows what is installed",
        )
    if wanted.flavour and found.flavour and found.flavour != wanted.flavour:
        yield HomelabError(
            wanted=f"{wanted.name}: the {wanted.flavour} kernel modules",
            found=f"the {found.flavour} ones are loaded",
            why="open and proprietary modules differ in the cards that they know",
            next="reboot it, then `pulumi up --refresh`, which installs those that are wanted",
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
    yield HomelabError(
        wanted=f"{wanted.name}: {len(wanted.cards)} card(s): {texts}",
        found=f"{len(cards)} in nvidia-smi: {listed}",
        why="a card that is missing isn't given to this system, or doesn't start; programs would use other cards than "
        "those that were meant",
        next="in its host's settings look at gpuAssignment (vms.…, containers.…) and `lspci -nn -d 10de:`; for a "
        "missing one read `dmesg | grep NVRM`",
    )


def _compiler(wanted: Expected, nvcc: Tried, release: str | None, context: Context) -> Iterator[HomelabError]:
    what = f"{wanted.name}: nvcc of CUDA {wanted.cuda}"
    if release is None:
        short = "-".join((wanted.cuda or "").split(".")[:2])
        again = (
            "run `pulumi up --refresh`: it installs what is missing of CUDA's packages; files of theirs that were "
            f"removed by hand come back by `apt-get install --reinstall cuda-nvcc-{short}` there"
        )
        yield from recognise(nvcc.output, context) or [
            _unrecognised(what, nvcc, "CUDA programs are compiled with it", again)
        ]
    elif wanted.cuda and release.split(".") != wanted.cuda.split(".")[:2]:
        yield HomelabError(
            wanted=what,
            found=f"nvcc is of {release}",
            why="what it compiles could be for other cards and drivers than those that were meant",
            next="run `pulumi up --refresh`; other releases may stay installed beside the wanted one",
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
    for what, name, is_demanded in expected:
        state = load_results.get(name)
        if state is None:
            if is_demanded and found.libraries:
                again = "run `pulumi up --refresh`: it installs it again"
                yield _unrecognised(
                    f"{wanted.name}: {what}, loaded", found.libraries, "programs could not use it", again
                )
        elif (fault := _fault(state, major)) and (is_demanded or _NOT_THERE not in state):
            why, next_step = fault
            yield HomelabError(
                wanted=f"{wanted.name}: {what}, loaded", found=f"{name}: {state}", why=why, next=next_step
            )
    inside = _load_results(found.container) if _succeeded("container", found.container) else {}
    if lacking := [f"{name}: {state}" for name, state in inside.items() if not state.startswith("loaded")]:
        yield HomelabError(
            wanted=f"{wanted.name}: the driver's libraries in a container that asks for them "
            "(NVIDIA_DRIVER_CAPABILITIES)",
            found="; ".join(lacking),
            why="they load on the system itself: the CDI specification is from before they were installed, or "
            "the toolkit doesn't find them",
            next="run `pulumi up --refresh`: it makes the specification again",
        )


def _fault(state: str, major: str) -> tuple[str, str] | None:
    """Why a library doesn't serve, and what to do; None: it does.

    :param state: of `_load_results`.
    :param major: the wanted CUDA's.
    """
    if not state.startswith("loaded"):
        return (
            "it, or one that it needs, was removed since, or never installed"
            if _NOT_THERE in state
            else "the loader refuses a library that isn't whole, or that has another version than those beside it"
        ), "run `pulumi up --refresh`: it installs what is missing"
    if "NVENC error" in state:
        return (
            "the library is there and doesn't answer: programs could not encode video",
            "run `pulumi up --refresh`: it looks whether the library is of the loaded driver's version",
        )
    if (match := re.search(r"for CUDA (\d+)", state)) and match[1] != major:
        return (
            "one that is made for another major release of CUDA needs that release's libraries",
            "run `pulumi up --refresh`: it installs the one of this release; remove the other one if you installed it",
        )
    return None


def _specification(wanted: Expected, cdi: str | None, driver: str | None) -> tuple[str | None, HomelabError | None]:
    """The driver's version that the CDI specification names, and an error where another driver runs.

    :param cdi: a line for each specification, `PATH VERSIONS`; engines take the first one.
    :param driver: the version of the running driver.
    """
    path, _, versions = (cdi or "").partition("\n")[0].partition(" ")
    if not versions or driver is None or versions == driver:
        return versions or None, None
    is_homelabs = path.startswith("/etc/")
    return versions, HomelabError(
        wanted=f"{wanted.name}: a CDI specification of the driver that runs, {driver}",
        found=f"{path} names libraries of {versions.replace(' ', ' and ')}",
        why="containers are given the libraries that it names: they are gone, or of another version than the loaded "
        "module",
        next="run `pulumi up --refresh`: it makes the specification again"
        if is_homelabs
        else "restart the toolkit's own service nvidia-cdi-refresh there, which writes that file; then run "
        "`pulumi up --refresh`",
    )


def _cards_of_container(
    wanted: Expected, container: Tried, cards: Sequence[Mapping[str, str | None]]
) -> Iterator[HomelabError]:
    listed = len(re.findall(r"^GPU \d+:", container.output, re.MULTILINE))
    if not cards or listed == len(cards):
        return
    yield HomelabError(
        wanted=f"{wanted.name}: a container that sees all of its {len(cards)} cards",
        found=f"nvidia-smi in it lists {listed}",
        why="the CDI specification, or the runtime's configuration, names fewer cards",
        next="run `pulumi up --refresh`: it makes the specification again",
    )


def _unique(errors: list[HomelabError]) -> list[HomelabError]:
    """The errors, each cause once, as one symptom shows in several programs."""
    by_cause: dict[tuple[str, str], HomelabError] = {}
    for error in errors:
        by_cause.setdefault((error.wanted, error.why), error)
    return list(by_cause.values())
