"""modprobe, rmmod and modinfo of a lab host (kmod 30/34)."""

from __future__ import annotations

import sys

from .catalogue import MODULES, exists_in, normal
from .dpkg import installed
from .kernel import ModprobeError, RunningKernel, modules_of
from .kernel_files import build_in, module_file, name_in
from .modprobe import root_modprobe_config
from .program import Failure, Options, logged
from .state import HostState

_MODPROBE_LONG = ("all", "remove", "quiet", "verbose", "ignore-install")


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of the module commands."""
    if "container" in host.machine:
        return _in_container(host, name, arguments)
    if name == "modprobe":
        return _modprobe(host, arguments)
    if name == "rmmod":
        return _rmmod(host, arguments)
    return _modinfo(host, arguments)


def _in_container(host: HostState, name: str, arguments: list[str]) -> int:
    """A container has no modules of its own, and may load none."""
    if installed(host).get("kmod") is None:
        raise Failure(f"bash: line 1: {name}: command not found", 127)
    module = next((word for word in arguments if not word.startswith("-")), "")
    if name == "modinfo":
        raise Failure(f"modinfo: ERROR: Module {module} not found.")
    kernel = host.read("/proc/sys/kernel/osrelease", "").strip()
    raise Failure(f"modprobe: FATAL: Module {module} not found in directory /lib/modules/{kernel}")


def _modprobe(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "arqvi", _MODPROBE_LONG)
    quiet, remove = options.has("q", "quiet"), options.has("r", "remove")
    if not options.rest:
        raise Failure("modprobe: ERROR: missing parameters. See -h.")
    several = remove or options.has("a", "all")
    jobs = [(m, "") for m in options.rest] if several else [(options.rest[0], " ".join(options.rest[1:]))]
    return logged(host, "modprobe", arguments, lambda: _change(host, jobs, options, remove, quiet))


def _change(host: HostState, jobs: list[tuple[str, str]], options: Options, remove: bool, quiet: bool) -> int:
    config = root_modprobe_config(host)
    if options.has("i", "ignore-install"):
        config.install = {}
    status = 0
    with RunningKernel.changing(host) as kernel:
        available = modules_of(host, kernel.data["kernel"])
        for module, text in jobs:
            try:
                if remove:
                    kernel.remove_module(module)
                else:
                    kernel.load_module(module, config, available, text)
            except ModprobeError as error:
                status = 1
                if not quiet:
                    print(error, file=sys.stderr)
    return status


def _rmmod(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "fsv", ("force", "syslog", "verbose"))

    def work() -> int:
        with RunningKernel.changing(host) as kernel:
            for module in options.rest:
                try:
                    kernel.remove_module(module)
                except ModprobeError as error:
                    raise Failure(str(error).replace("modprobe: FATAL:", "rmmod: ERROR:")) from error
        return 0

    return logged(host, "rmmod", arguments, work)


def _modinfo(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "F:nk:", ("field=", "filename", "set-version="))
    kernel = options.value("k", "set-version") or host.running["kernel"]
    field = options.value("F", "field") or ("filename" if options.has("n", "filename") else None)
    if not options.rest:
        raise Failure("modinfo: ERROR: missing module or filename.")
    for module in options.rest:
        name = name_in(module)
        path = module_file(host, kernel, name)
        if RunningKernel.attach(host).is_built_in(name):
            values = {"name": name, "filename": "(builtin)"}
        # By its file's name alone, which its own name or an install command doesn't lead to.
        elif (
            name in modules_of(host, kernel)
            and name in MODULES
            and normal(path.stem if path else name) == normal(module)
        ):
            values = _fields(host, name, kernel)
        else:
            raise Failure(f"modinfo: ERROR: Module {module} not found.")
        if field is not None:
            if field in values:
                print(values[field])
            continue
        for key, value in values.items():
            print(f"{key + ':':<16}{value}")
    return 0


def _fields(host: HostState, name: str, kernel: str) -> dict[str, str]:
    info = MODULES[name]
    release = (int(kernel.split(".")[0]), int(kernel.split(".")[1]))
    path = module_file(host, kernel, name)
    build = None if path is None else build_in(path)
    values = {
        "filename": host.unrooted(path).replace("/usr/lib/", "/lib/", 1)
        if path
        else f"/lib/modules/{kernel}/{info.path}"
    }
    if build is not None:
        values |= {"version": build.version, "license": build.licence, "signer": build.signer}
    else:
        values |= {"license": "GPL v2"}
    values |= {
        "depends": ",".join(n for n in info.needs if exists_in(n, release)),
        "name": name,
        "vermagic": f"{kernel} SMP preempt mod_unload modversions ",
    }
    return values
