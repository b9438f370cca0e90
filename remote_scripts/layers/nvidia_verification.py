"""Tries what NVIDIA's stack is for, on a host, in a VM or in a container, and says what came of it; it judges nothing
(homelab/nvidia/verification.py does). Installs nothing, and leaves nothing behind: an image that it had to fetch goes
again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from remote_scripts.both.nvidia_verification import Answer, Tried, Wanted
from remote_scripts.notes import handover
from remote_scripts.nvidia import nvidia
from remote_scripts.tools import kernel
from remote_scripts.tools.device import as_nobody
from remote_scripts.tools.done import NOT_FOUND, TIMED_OUT, Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System, changes

#: Not below /tmp or /run, from which nothing can be started in places.
_FOLDER = f"{HOME}/verification"
_FIELDS = "index,name,uuid,driver_version,memory.total,pci.bus_id,pci.device_id"
_CONTAINER = "homelab-verification"
# As docker and podman say it.
_NO_IMAGE = re.compile(rb"no such (image|object)|image not known", re.IGNORECASE)
_BYTES = 1 << 23
_LINES, _LOG_LINES = 60, 1000
# A program's compiled code is cached in the user's home; nothing is to stay there.
_NO_CACHE = {"CUDA_CACHE_DISABLE": "1"}
# An ordinary user sees what any program of his has in its environment: not the proxy's password.
_NO_PROXY = {"http_proxy": "", "https_proxy": ""}
# Perl is everywhere, but can't call what it has loaded.
LOAD = (
    'require DynaLoader; for (@ARGV) { my $said = DynaLoader::dl_load_file($_) ? "loaded" : DynaLoader::dl_error(); '
    '$said =~ s/^\\Q$_\\E: //; $said =~ s/( at -e line|\\0).*//s; print "$_: $said\\n" }'
)
# A Python without ctypes ends so (files/load_libraries.py).
_NO_CTYPES = 3


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """:raises Failure: another run has the lock; or a card of this host is with a VM."""
    return _Verification(system, wanted).answer()


class _Verification:
    def __init__(self, system: System, wanted: Wanted) -> None:
        self.system = system
        self.wanted = wanted
        self._deadline = time.monotonic() + wanted.seconds
        self._cards = self._loads = ""

    def answer(self) -> Answer:
        system, wanted = self.system, self.wanted
        handover.need_rest(system)
        system.files.remove_tree(_FOLDER)  # of a run that was killed
        system.files.need_folder(_FOLDER)
        boot_id = kernel.boot_id(system)
        before = nvidia.loaded(system)
        smi = self.part("nvidia-smi", self.ask_driver)
        # That may have loaded it; a container has its host's.
        loaded = before if system.is_container else nvidia.loaded(system)
        # In this order: a part may need what those before it have found.
        answer = Answer(
            nvidia_smi=smi,
            nvcc=self.part("nvcc", lambda: self.run(self.path(wanted.nvcc), "--version")) if wanted.nvcc else None,
            program=self.part("a CUDA program", self.compile_and_run) if wanted.program else None,
            uvm=self.part("the devices, for an ordinary user", self.open_devices) if wanted.uvm else None,
            libraries=self.part("the driver's libraries", self.load_libraries) if wanted.libraries else None,
            container=self.part(f"a container of {wanted.engine}", self.in_container) if wanted.engine else None,
            cdi=self.specifications() if wanted.cdi else None,
            kernel_log=self.kernel_log(),
            loaded=loaded.version,
            flavour=loaded.flavour,
            boot_id=boot_id,
        )
        system.files.remove_tree(_FOLDER)
        return answer

    def part(self, what: str, work: Callable[[], Done]) -> Tried:
        """One part, whose beginning and end a person hears."""
        self.system.log.say(f"{what}: is tried")
        try:
            done = work()
        except Failure as failure:  # a container that answers no more
            done = Done(TIMED_OUT, failure.found.encode())
        except OSError as error:  # such as a full disk
            done = Done(1, f"{error.filename}: {error.strerror}".encode())
        text = self.system.log.clean(done.output + done.error, _BYTES).rstrip("\n")
        self.system.log.say(f"{what}: {'works' if done.status == 0 else f'status {done.status}'}")
        return Tried(done.status, "\n".join(text.split("\n")[-_LINES:]))

    def run(self, *arguments: str, environment: dict[str, str] | None = None) -> Done:
        """Within what is left of the time."""
        left = max(1.0, self._deadline - time.monotonic())
        environment = {**_NO_CACHE, **(environment or {})}
        done = self.system.run.ask(*arguments, seconds=left, limit=_BYTES, environment=environment)
        return Done(TIMED_OUT, done.output, done.error) if done.status == 137 else done

    def path(self, path: str) -> str:
        return self.system.files.name(path)

    # The driver.

    def ask_driver(self) -> Done:
        """compute_cap is known to nvidia-smi of branch 510 and later."""
        done = self.run("nvidia-smi", f"--query-gpu={_FIELDS},compute_cap", "--format=csv")
        if done.status and b'"compute_cap" is not a valid field' in done.output + done.error:
            done = self.run("nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv")
        self._cards = done.output.decode("utf-8", "replace")
        return done

    def kernel_log(self) -> str:
        """What the kernel has said that fits; the end of much."""
        if not self.wanted.kernel_log:
            return ""
        log = kernel.log(self.system)
        lines = [line for line in log if re.search(self.wanted.kernel_log, line, re.IGNORECASE)]
        return self.system.log.clean("\n".join(lines[-_LOG_LINES:]), _BYTES)

    # CUDA.

    def compile_and_run(self) -> Done:
        """For these very cards: what nvcc builds by default may be for others, and need a driver that translates it."""
        source, program = f"{_FOLDER}/program.cu", f"{_FOLDER}/program"
        self.system.files.write(source, f"{self.wanted.program}\n".encode(), 0o600)
        capabilities = re.findall(r"^[0-9]+, .*, ([0-9]+)\.([0-9]+)$", self._cards, re.MULTILINE)
        code = [f"-gencode=arch=compute_{one}{two},code=sm_{one}{two}" for one, two in sorted({*capabilities})]
        # It asks the host's compiler for much room; in a container of some, /tmp is small.
        made = {"TMPDIR": self.path(_FOLDER)}
        words = (self.path(self.wanted.nvcc), *code, "-o", self.path(program), self.path(source))
        done = self.run(*words, environment=made)
        if done.status:
            return done
        ran = self.run(self.path(program))
        return Done(ran.status, done.output + done.error + ran.output, ran.error)

    # An ordinary user.

    def open_devices(self) -> Done:
        """Opened for reading and writing, as the driver's libraries do. dd opens, and makes nothing where there is
        nothing.
        """
        # Nothing loads nvidia-uvm before the first CUDA program; for an ordinary user nvidia-modprobe does it, which is
        # setuid root.
        if not self.system.files.exists("/dev/nvidia-uvm"):
            self.run("nvidia-modprobe", "-u", "-c", "0")
        cards = [name for name in self.system.files.names("/dev") if re.match(r"nvidia[0-9]", name)]
        status, lines = 0, []
        for path in ("/dev/nvidiactl", "/dev/nvidia-uvm", *(f"/dev/{name}" for name in cards or ["nvidia0"])):
            where = self.path(path)
            words = (f"if={where}", f"of={where}", "count=0", "conv=notrunc", "status=none")
            done = self.run(*as_nobody(), "dd", *words, environment=_NO_PROXY)
            message = done.all_text.rpartition(": ")[2]
            status = 1 if done.status else status
            lines.append(f"{path}: {(message or 'no answer') if done.status else 'opened'}\n")
        return Done(status, "".join(lines).encode())

    # Libraries.

    def load_libraries(self) -> Done:
        loader = f"{_FOLDER}/load_libraries.py"
        self.system.files.write(loader, f"{self.wanted.loader}\n".encode(), 0o600)
        done = self.run("python3", "-I", "-S", "-B", self.path(loader), *self.wanted.libraries)
        if done.status in (NOT_FOUND, _NO_CTYPES):
            done = self.run("perl", "-e", LOAD, *self.wanted.libraries)
        self._loads = done.output.decode("utf-8", "replace")
        return done

    def specifications(self) -> str:
        """Of two files that name the same card engines take the one in /run, which the toolkit's own service makes."""
        lines = []
        for folder in ("/run/cdi", "/etc/cdi"):
            names = self.system.files.names(folder)
            for name in [name for ending in (".yaml", ".json") for name in names if name.endswith(ending)]:
                text = (self.system.files.read(f"{folder}/{name}", _BYTES) or b"").decode("utf-8", "replace")
                if "nvidia.com/gpu" in text:
                    versions = sorted(set(re.findall(r"\.so\.([0-9]{3}(?:\.[0-9]+)+)", text)))
                    lines.append(f"{folder}/{name} {' '.join(versions)}")
        return "\n".join(lines)

    # A container of an engine.

    def in_container(self) -> Done:
        """nvidia-smi, and the driver's libraries loaded there: those that load here; what the system hasn't, no
        container of it has.
        """
        engine = self.wanted.engine
        loaded = {line.partition(": loaded")[0] for line in self._loads.split("\n") if ": loaded" in line}
        bare = [name for name in self.wanted.bare if name in loaded]
        command = ["nvidia-smi", "-L"]
        if bare:
            command = ["sh", "-c", 'nvidia-smi -L && exec perl -e "$@"', "sh", LOAD, *bare]
        # Without a word the toolkit gives `utility,compute` alone.
        capabilities = "compute,utility"
        capabilities += ",video" if any(name.startswith("libnvidia-encode.") for name in bare) else ""
        capabilities += ",graphics" if any(name.startswith("libEGL_nvidia.") for name in bare) else ""
        if engine in ("docker", "podman"):
            return self._in_engine(engine, capabilities, command)
        return self._in_k3s(capabilities, command)

    def _options(self, engine: str) -> tuple[str, ...]:
        """How the engine is told to give the cards. docker takes CDI names from 25 on, and all by itself from 28.3 on;
        before, the toolkit's runtime does.
        """
        if engine == "podman":
            return "--device", "nvidia.com/gpu=all", "--security-opt", "label=disable"
        if not self.wanted.cdi:
            return "--runtime=nvidia", "--gpus", "all"
        number = re.search(r"[0-9]+", self.run("docker", "--version").text)
        if number and int(number[0]) >= 25:
            return "--device", "nvidia.com/gpu=all"
        return "--runtime=nvidia", "-e", "NVIDIA_VISIBLE_DEVICES=all"

    def _in_engine(self, engine: str, capabilities: str, command: list[str]) -> Done:
        image = self.wanted.image
        inspected = self.run(engine, "image", "inspect", image)
        # Also where that can't be told it ends with an error.
        was_missing = inspected.status != 0 and _NO_IMAGE.search(inspected.output + inspected.error)
        self.run(engine, "rm", "-f", _CONTAINER)  # of a run that was killed
        given = ("-e", f"NVIDIA_DRIVER_CAPABILITIES={capabilities}", *self._options(engine))
        done = self.run(engine, "run", "--rm", "--name", _CONTAINER, *given, image, *command)
        if done.status >= TIMED_OUT:
            self.system.run.ask(engine, "rm", "-f", _CONTAINER)
        if was_missing:
            self.system.run.ask(engine, "rmi", image)
        return done

    def _in_k3s(self, capabilities: str, command: list[str]) -> Done:
        """By the client of its containerd, in a namespace of our own; Kubernetes reaches the same runtime by
        containerd's configuration.
        """
        client = [self.path("/usr/local/bin/k3s"), "ctr"]
        image, ctr = self.wanted.image, [*client, "-n", _CONTAINER]
        pulled = self.run(*ctr, "images", "pull", image)
        if pulled.status:
            return pulled
        runtime = "--runc-binary=/usr/bin/nvidia-container-runtime"
        given = ("--env", "NVIDIA_VISIBLE_DEVICES=all", "--env", f"NVIDIA_DRIVER_CAPABILITIES={capabilities}")
        done = self.run(*ctr, "run", "--rm", runtime, *given, image, _CONTAINER, *command)
        self.system.run.ask(*ctr, "images", "rm", image)
        self.run(*client, "namespaces", "rm", _CONTAINER)
        return done
