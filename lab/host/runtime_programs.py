"""nvidia-ctk and the container engines of a lab's system, as far as they have to do with GPUs.

An engine pulls the images that the lab knows and runs `nvidia-smi` and `true` in them. Whether the card is seen inside
follows from the engine's configuration, the CDI specification and the system's own driver.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import nvidia_programs, units
from .container import outer
from .contents import LIBRARIES
from .dpkg import installed
from .nvidia_programs import cards_of, library_version
from .program import Failure, Options, UsageError, logged
from .pve_packages import is_pve9
from .state import HostState, version_key

_DAEMON = "/etc/docker/daemon.json"
_WITHOUT_GROUPS = "no-additional-gids-for-device-nodes"
_CDI_FOLDERS = ("/etc/cdi", "/run/cdi")
_IMAGES = re.compile(
    r"(?:docker\.io/)?(?:library/)?(ubuntu|debian|nvidia/cuda|hello-world)(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?|nvcr\.io/nvidia/cuda:[\w.-]+"
)
_IMAGES_FILE = "/var/lib/docker/images"
_KIND = "nvidia.com/gpu"
_CGROUPS = (
    "nvidia-container-cli: mount error: failed to add device rules: unable to find any existing device filters attached to the "
    "cgroup: bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not permitted: unknown"
)


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of the programs."""
    work: dict[str, Callable[[HostState, list[str]], int]] = {
        "nvidia-ctk": _ctk,
        "docker": _docker,
        "podman": _podman,
        "ctr": _ctr,
    }
    if name not in work:
        if arguments in (["--version"], ["-v"]):
            print(f"{name} version 1")
            return 0
        raise UsageError(f"the lab's {name} has --version alone")
    return work[name](host, arguments)


def _toolkit_version(host: HostState) -> str:
    package = installed(host).get("nvidia-container-toolkit-base")
    return package.version.partition("-")[0] if package else "0"


# -- nvidia-ctk ------------------------------------------------------------------------------------------------
def _ctk(host: HostState, arguments: list[str]) -> int:
    if arguments in (["--version"], ["-v"]):
        print(
            f"NVIDIA Container Toolkit CLI version {_toolkit_version(host)}\ncommit: 0000000000000000000000000000000000000000"
        )
        return 0
    words = [word for word in arguments if not word.startswith("-")]
    verbs: dict[tuple[str, ...], Callable[[HostState, list[str]], int]] = {
        ("runtime", "configure"): _ctk_configure, ("cdi", "generate"): _ctk_generate,
    }  # fmt: skip
    for verb, work in verbs.items():
        if tuple(words[: len(verb)]) == verb and arguments[: len(verb)] == list(verb):
            return logged(host, "nvidia-ctk", arguments, partial(work, host, arguments[len(verb) :]))
    raise UsageError(f"the lab's nvidia-ctk has runtime configure and cdi generate, not {' '.join(arguments)!r}")


def _ctk_configure(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "", ("runtime=", "config=", "cdi.enabled"))
    if (options.value("runtime") or "docker") != "docker":
        raise UsageError("the lab's nvidia-ctk configures docker alone")
    path = options.value("config") or _DAEMON
    try:
        data: dict[str, Any] = json.loads(host.read(path, "{}") or "{}")
    except ValueError as error:
        raise Failure(f'level=error msg="unable to load config for runtime docker: {error}"') from error
    data.setdefault("runtimes", {})["nvidia"] = {"args": [], "path": "nvidia-container-runtime"}
    if options.has("cdi.enabled"):
        data.setdefault("features", {})["cdi"] = True
    host.write(path, json.dumps(data, indent=4) + "\n")
    words = "It is recommended that docker daemon be restarted."
    print(f'level=info msg="Wrote updated config to {path}"\nlevel=info msg="{words}"', file=sys.stderr)
    return 0


def _ctk_generate(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "", ("output=", "format=", "feature-flag="))
    try:
        cards = cards_of(host)
    except Failure as error:
        raise Failure(
            f'level=error msg="failed to generate CDI spec: failed to create device CDI specs: failed to initialize NVML: {_nvml(error)}"'
        ) from error
    version = library_version(host) or ""
    libraries = sorted(path.name for path in host.rooted(LIBRARIES).glob(f"lib*.so.{version}"))
    groups = _names_groups(host) and _WITHOUT_GROUPS not in [
        value for key, value in options.given if key == "feature-flag"
    ]
    text = _specification(libraries, [card.minor for card in cards], [card.uuid for card in cards], groups=groups)
    output = options.value("output")
    if output is None:
        print(text, end="")
        return 0
    host.write(output, text)
    made = text.partition("cdiVersion: ")[2].partition("\n")[0]
    print(f'level=info msg="Generated CDI spec with version {made}"', file=sys.stderr)
    return 0


def _names_groups(host: HostState) -> bool:
    """Whether the toolkit writes additionalGids for the nodes in /dev/dri by itself (release notes of 1.19.1, known issues)."""
    package = installed(host).get("nvidia-container-toolkit-base")
    return package is not None and version_key(package.version) >= version_key("1.19.1")


def _nvml(error: Failure) -> str:
    if "mismatch" in str(error):
        return "ERROR_LIB_RM_VERSION_MISMATCH"
    return {9: "ERROR_DRIVER_NOT_LOADED", 12: "ERROR_LIBRARY_NOT_FOUND", 4: "ERROR_NO_PERMISSION"}.get(
        error.status, "ERROR_UNKNOWN"
    )


def _specification(libraries: list[str], minors: list[int], uuids: list[str], *, groups: bool) -> str:
    """Its version is the least that has what is in it: 0.7.0 with groups."""
    devices = [(str(index), [minor]) for index, minor in enumerate(minors)]
    devices += [(uuid, [minor]) for uuid, minor in zip(uuids, minors, strict=True)]
    devices.append(("all", minors))
    lines = ["---", f"cdiVersion: {'0.7.0' if groups else '0.5.0'}", "containerEdits:", "  deviceNodes:"]
    lines += [f"  - path: /dev/{name}" for name in ("nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools", "nvidiactl")]
    lines.append("  mounts:")
    for library in libraries:
        path = f"{LIBRARIES}/{library}"
        lines += [f"  - containerPath: {path}", f"    hostPath: {path}"]
    lines.append("devices:")
    for name, numbers in devices:
        lines += [
            "- containerEdits:",
            "    deviceNodes:",
            *(f"    - path: /dev/nvidia{number}" for number in numbers),
            *(["    - path: /dev/dri/renderD128"] if groups else []),
            *(["    additionalGids:", "    - 993"] if groups else []),
            f'  name: "{name}"',
        ]
    return "\n".join([*lines, f"kind: {_KIND}", ""])


def _specifications(host: HostState) -> list[Path]:
    folders = [host.rooted(folder) for folder in _CDI_FOLDERS]
    return [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix in (".yaml", ".json")
    ]


def _cdi_devices(host: HostState, engine: str = "") -> list[str]:
    """By the specifications; podman leaves those out whole that have a field which it doesn't know (nvidia-container-toolkit issue 1860)."""
    texts = [path.read_text(encoding="utf-8") for path in _specifications(host)]
    if engine == "podman" and _podman_version(host) < version_key("5.1"):
        texts = [text for text in texts if "additionalGids" not in text]
    return [f"{_KIND}={name}" for text in texts for name in re.findall(r'^  name: "?([^"\n]+)"?$', text, re.M)]


# -- engines ---------------------------------------------------------------------------------------------------
def _docker(host: HostState, arguments: list[str]) -> int:
    if arguments in (["--version"], ["-v"]):
        package = installed(host).get("docker.io")
        print(f"Docker version {(package.version if package else '0').partition('-')[0]}, build 28.2.2")
        return 0
    if _unit_state(host, "docker.service") != "active":
        raise Failure(
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
        )
    if arguments == ["info"]:
        return _docker_info(host)
    if _of_images(arguments):
        return _images(host, "docker", arguments)
    if arguments[:1] == ["pull"]:
        return logged(host, "docker", arguments, lambda: _pull(host, arguments[-1]))
    if arguments[:1] == ["run"]:
        return logged(host, "docker", arguments, lambda: _run(host, "docker", arguments[1:]))
    raise UsageError(
        f"the lab's docker has info, run, pull, image inspect, rm, rmi and --version, not {' '.join(arguments[:1])!r}"
    )


def _unit_state(host: HostState, unit: str) -> str:
    found = host.running.get("units", {}).get(unit)
    if found is None and "container" in host.machine:
        return "active" if units.find(host, unit) else "inactive"
    return str(found or "inactive")


def _daemon(host: HostState) -> dict[str, Any]:
    """What the daemon was started with: it reads its file at its start."""
    noted = host.running.get("docker_config")
    text = noted if noted is not None else host.read(_DAEMON, "{}")
    found: dict[str, Any] = json.loads(text or "{}")
    return found


def _docker_info(host: HostState) -> int:
    runtimes = sorted({"runc", "io.containerd.runc.v2", *_daemon(host).get("runtimes", {})})
    print(
        f"Server:\n Runtimes: {' '.join(runtimes)}\n Default Runtime: {_daemon(host).get('default-runtime', 'runc')}\n Cgroup Driver: systemd"
    )
    return 0


def _of_images(arguments: list[str]) -> bool:
    return arguments[:1] in (["rm"], ["rmi"]) or arguments[:2] == ["image", "inspect"]


def _images(host: HostState, engine: str, arguments: list[str]) -> int:
    """Images that were pulled; no container outlives its `run`."""
    verb, names = arguments[0], [word for word in arguments[1:] if not word.startswith("-")]
    known = host.read(_IMAGES_FILE, "").split()
    if verb == "rm":
        raise Failure(f"Error response from daemon: No such container: {' '.join(names)}")
    missing = [name for name in names[verb == "image" :] if name not in known]
    if missing:
        raise Failure(f"Error response from daemon: No such image: {missing[0]}")
    if verb == "rmi":
        host.write(_IMAGES_FILE, "".join(f"{name}\n" for name in known if name not in names))
    return 0


def _ctr(host: HostState, arguments: list[str]) -> int:
    """containerd's own client, in one namespace."""
    words = arguments[2:] if arguments[:1] in (["-n"], ["--namespace"]) else arguments
    if _unit_state(host, "containerd.service") != "active":
        raise Failure(
            'ctr: failed to dial "/run/containerd/containerd.sock": connection error: no such file or directory'
        )
    if words[:2] in (["images", "pull"], ["image", "pull"]):
        return logged(host, "ctr", arguments, lambda: _pull(host, words[-1], "ctr: "))
    if words[:2] in (["images", "rm"], ["image", "rm"]):
        return _images(host, "ctr", ["rmi", *words[2:]])
    if words[:2] == ["namespaces", "rm"]:
        return 0
    if words[:1] == ["run"]:
        return logged(host, "ctr", arguments, lambda: _ctr_run(host, words[1:]))
    raise UsageError(f"the lab's ctr has images pull, images rm, run and namespaces rm, not {' '.join(words[:2])!r}")


def _ctr_run(host: HostState, arguments: list[str]) -> int:
    """`run`: unlike docker it pulls nothing, and wants a name for the container behind the image."""
    index = 0
    while index < len(arguments) and arguments[index].startswith("-"):
        index += 2 if arguments[index] in ("--env", "--runc-binary", "--runtime", "--gpus") else 1
    options = Options(arguments[:index], "td", ("rm", "tty", "env=", "runc-binary=", "runtime=", "gpus=", "net-host"))
    image, command = arguments[index], arguments[index + 2 :]
    if image not in host.read(_IMAGES_FILE, "").split():
        raise Failure(f'ctr: image "{image}": not found')
    binary = options.value("runc-binary") or "runc"
    if binary != "runc" and not host.rooted(binary).exists():
        raise Failure(
            f"ctr: failed to create shim task: OCI runtime create failed: fork/exec {binary}: no such file or directory"
        )
    _require_sysctls(host, "ctr: ")
    if binary.endswith("nvidia-container-runtime"):
        _require_driver(host, "ctr")
        return _inside(host, "ctr", command, partial(_of_capabilities, host, options))
    raise Failure(
        'ctr: failed to create shim task: OCI runtime create failed: exec: "nvidia-smi": executable file not found in $PATH'
    )


def _pull(host: HostState, image: str, before: str = "") -> int:
    from .network import offline

    if name := offline(host, "https://registry-1.docker.io/v2/"):
        raise Failure(
            f'{before or "Error response from daemon: "}Get "https://{name}/v2/": dial tcp: lookup {name}: Temporary failure in name resolution',
            125,
        )
    if not _IMAGES.fullmatch(image):
        raise Failure(
            f"Error response from daemon: pull access denied for {image}, repository does not exist or may require 'docker login'",
            125,
        )
    known = host.read(_IMAGES_FILE, "").split()
    if image not in known:
        host.write(_IMAGES_FILE, "\n".join([*known, image]) + "\n")
    return 0


def _podman_version(host: HostState) -> tuple[tuple[int, int, str], ...]:
    package = installed(host).get("podman")
    return version_key(package.version.partition("+")[0] if package else "0")


def _podman(host: HostState, arguments: list[str]) -> int:
    if arguments in (["--version"], ["-v"]):
        package = installed(host).get("podman")
        print(f"podman version {(package.version if package else '0').partition('+')[0]}")
        return 0
    if arguments[:1] == ["run"]:
        return logged(host, "podman", arguments, lambda: _run(host, "podman", arguments[1:]))
    if _of_images(arguments):
        return _images(host, "podman", arguments)
    raise UsageError("the lab's podman has run, ps, image inspect, rm, rmi and --version")


def _run(host: HostState, engine: str, arguments: list[str]) -> int:
    """`run`: with --gpus or the nvidia runtime through the toolkit's hook, with --device through CDI."""
    long = ("rm", "gpus=", "runtime=", "device=", "security-opt=", "env=", "name=")
    index = 0
    while index < len(arguments) and arguments[index].startswith("-"):
        word = arguments[index]
        index += 2 if f"{word[2:]}=" in long or word in ("-e", "-v") else 1
    options = Options(arguments[:index], "ite:v:q", long)
    image, command = (arguments[index], arguments[index + 1 :]) if index < len(arguments) else ("", [])
    if not image:
        raise Failure(f'"{engine} run" requires at least 1 argument.')
    if image not in host.read(_IMAGES_FILE, "").split():
        _pull(host, image)
    gpus = _wanted(host, engine, options)
    if engine == "docker":
        _require_sysctls(host, "docker: Error response from daemon: failed to create task for container: ")
    if command[:1] == ["echo"]:
        print(*command[1:])
    if command[:1] in (["echo"], ["true"], []):
        return 0
    if not gpus:
        raise Failure(
            f"{engine}: Error response from daemon: failed to create task for container: failed to create shim task: OCI runtime "
            'create failed: runc create failed: unable to start container process: exec: "nvidia-smi": executable file not found '
            "in $PATH: unknown",
            127,
        )
    device = options.value("device") or ""
    given = partial(_of_specification, host) if device.startswith(_KIND) else partial(_of_capabilities, host, options)
    return _inside(host, engine, command, given)


def _inside(host: HostState, engine: str, command: list[str], given: Callable[[str], bool]) -> int:
    """A command in a container that was given the cards: nvidia-smi, and after it libraries that Perl loads.

    Args:
        given: whether the container was given a library, by its soname.
    """
    if command[:1] == ["nvidia-smi"]:
        return nvidia_programs.main(host, "nvidia-smi", command[1:])
    if command[:2] != ["sh", "-c"] or 'nvidia-smi -L && exec perl -e "$@"' not in command[2] or len(command) < 5:
        raise UsageError(f"the lab's {engine} runs nvidia-smi, true and echo in a container, not {command[0]!r}")
    status = nvidia_programs.main(host, "nvidia-smi", ["-L"])
    for name in command[5:] if status == 0 else []:
        there = given(name) and host.rooted(f"{LIBRARIES}/{name}").exists()
        print(
            f"{name}: {'loaded' if there else 'cannot open shared object file: No such file or directory'}", flush=True
        )
    return status


def _of_specification(host: HostState, soname: str) -> bool:
    """By its file, which has the driver's version."""
    place = host.rooted(f"{LIBRARIES}/{soname}")
    file = place.readlink().name if place.is_symlink() else soname
    return any(f"/{file}\n" in path.read_text(encoding="utf-8") for path in _specifications(host))


def _of_capabilities(host: HostState, options: Options, soname: str) -> bool:
    """By NVIDIA_DRIVER_CAPABILITIES (nvidia-container-toolkit, capabilities.go)."""
    of = {"libnvidia-encode.so.1": "video", "libnvcuvid.so.1": "video", "libEGL_nvidia.so.0": "graphics"}
    variables = [value for key, value in options.given if key in ("e", "env")]
    asked = next(
        (v.partition("=")[2] for v in variables if v.startswith("NVIDIA_DRIVER_CAPABILITIES=")), "utility,compute"
    )
    return asked == "all" or of.get(soname, "compute") in asked.split(",")


def _wanted(host: HostState, engine: str, options: Options) -> bool:
    """Whether a container gets a card.

    Raises:
        Failure: it can't be given one.
    """
    device = options.value("device")
    if device is not None and device.startswith(_KIND):
        if engine == "podman" and _podman_version(host) < version_key("4.1.0"):
            raise Failure(f"Error: stat {device}: no such file or directory", 125)
        if device not in _cdi_devices(host, engine):
            if engine == "podman":
                raise Failure(f"Error: setting up CDI devices: unresolvable CDI devices {device}", 125)
            raise Failure(
                f"{engine}: Error response from daemon: CDI device injection failed: unresolvable CDI devices {device}",
                125,
            )
        _require_current(host, engine)
        return True
    runtime = options.value("runtime") or _daemon(host).get("default-runtime")
    if runtime == "nvidia" and engine == "docker" and "nvidia" not in _daemon(host).get("runtimes", {}):
        raise Failure("docker: Error response from daemon: unknown or invalid runtime name: nvidia", 125)
    if options.has("gpus"):
        if installed(host).get("nvidia-container-toolkit") is None:
            raise Failure(
                'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].', 125
            )
        _legacy_hook(host)
        return True
    if runtime == "nvidia":
        _require_driver(host, engine)
        return True
    return False


def _require_sysctls(host: HostState, before: str) -> None:
    """runc 1.3.3 opens sysctls in a way that the AppArmor profile which LXC makes refuses, until lxc-pve 6.0.5-2 and only with nesting
    (opencontainers/runc issues 4968, 4972; proxmox/lxc, debian/changelog); on Proxmox VE 8, by an owner's report, 6.0.0-2."""
    inside = host.machine.get("container")
    runc = installed(host).get("runc")
    if inside is None or inside.get("apparmor") or runc is None or version_key(runc.version) < version_key("1.3.3"):
        return
    outside = outer(host)
    lxc = installed(outside).get("lxc-pve")
    since = "6.0.5-2" if is_pve9(outside) else "6.0.0-2"
    if inside.get("nesting") and lxc is not None and version_key(lxc.version) >= version_key(since):
        return
    raise Failure(
        f"{before}failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during "
        "container init: open sysctl net.ipv4.ip_unprivileged_port_start file: reopen fd 8: permission denied: unknown",
        125,
    )


def _require_driver(host: HostState, engine: str) -> None:
    try:
        cards_of(host)
    except Failure as error:
        reason = (
            "nvml error: driver/library version mismatch"
            if "mismatch" in str(error)
            else "load library failed: libnvidia-ml.so.1: cannot open shared object file: no such file or directory"
            if error.status == 12
            else "nvml error: driver not loaded"
        )
        raise Failure(
            f"{engine}: Error response from daemon: failed to create task for container: failed to create shim task: OCI runtime "
            "create failed: runc create failed: unable to start container process: error during container init: error running "
            f"prestart hook #0: exit status 1, stdout: , stderr: Auto-detected mode as 'legacy'\nnvidia-container-cli: initialization error: {reason}: unknown",
            125,
        ) from error


def _require_current(host: HostState, engine: str) -> None:
    """A CDI specification names files with the driver's version in them: an old one leads nowhere."""
    version = library_version(host)
    for path in _specifications(host):
        named = re.search(r"hostPath: \S+libcuda\.so\.([\d.]+)", path.read_text(encoding="utf-8"))
        if named and named[1] != version:
            raise Failure(
                f"{engine}: Error response from daemon: failed to create task for container: OCI runtime create failed: error mounting "
                f'"/usr/lib/x86_64-linux-gnu/libcuda.so.{named[1]}" to rootfs: no such file or directory: unknown',
                125,
            )
    _require_driver(host, engine)


def _legacy_hook(host: HostState) -> None:
    """The hook sets device rules in the container's control group, which an unprivileged container may not."""
    _require_driver(host, "docker")
    if host.machine.get("container", {}).get("unprivileged"):
        raise Failure(
            "docker: Error response from daemon: failed to create task for container: failed to create shim task: OCI runtime create "
            "failed: runc create failed: unable to start container process: error during container init: error running prestart hook "
            f"#0: exit status 1, stdout: , stderr: Auto-detected mode as 'legacy'\n{_CGROUPS}",
            125,
        )
