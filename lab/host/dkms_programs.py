"""dkms of a lab's system."""

from __future__ import annotations

from . import dkms
from .program import Failure, Options, UsageError, logged
from .state import HostState


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """dkms."""
    options = Options(arguments, "m:v:k:", ("force", "kernelver="))
    if not options.rest:
        raise UsageError("no action was given")
    verb = options.rest[0]
    module, version = _named(options)
    kernel = options.value("k", "kernelver") or host.read("/proc/sys/kernel/osrelease", "").strip()
    if verb == "status":
        return _status(host, module, version, options.value("k", "kernelver"))
    if verb not in ("install", "uninstall", "remove", "autoinstall"):
        raise UsageError(f"the lab's dkms has status, install, uninstall, remove and autoinstall, not {verb!r}")
    return logged(host, "dkms", arguments, lambda: _change(host, verb, module, version, kernel))


def _named(options: Options) -> tuple[str | None, str | None]:
    """Module and version: `-m nvidia -v 1`, `nvidia/1`, `nvidia -v 1`."""
    word = options.value("m") or (options.rest[1] if len(options.rest) > 1 else None)
    if word is None:
        return None, options.value("v")
    module, _, version = word.partition("/")
    return module, version or options.value("v")


def _status(host: HostState, module: str | None, version: str | None, kernel: str | None) -> int:
    for each in dkms.versions(host):
        name = dkms.source_of(host, each).name
        if version not in (None, each) or module not in (None, name):
            continue
        kernels = [k for k in dkms.built(host, each) if kernel in (None, k)]
        if not kernels and kernel is None:
            print(f"{name}/{each}: added")
        for built in kernels:
            print(f"{name}/{each}, {built}, x86_64: installed")
    return 0


def _change(host: HostState, verb: str, module: str | None, version: str | None, kernel: str) -> int:
    if verb == "autoinstall":
        dkms.autoinstall(host, kernel)
        return 0
    if version is None:
        raise Failure("Error! Invalid number of parameters passed.\nUsage: " + verb + " <module>/<module-version>", 1)
    if dkms.source_of(host, version).name != module:
        raise Failure(
            f"Error! Could not find module source directory.\nDirectory: /usr/src/{module}-{version} does not exist.", 2
        )
    if verb == "install":
        dkms.install(host, version, kernel)
    elif verb == "remove" and dkms.built(host, version) in ([kernel], []):
        dkms.remove(host, version)
    else:
        dkms.uninstall(host, version, kernel)
    return 0
