"""The drivers of a card that is handed over: it goes from NVIDIA's driver to vfio-pci and back. What may wait in the
kernel for ever is a systemd unit's (cards/handover_steps.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from remote_scripts.cards import card_users
from remote_scripts.cards.handed_over import RecordedCard, RefusedError
from remote_scripts.cards.handover_steps import STEPS
from remote_scripts.notes import handover
from remote_scripts.nvidia import nvidia
from remote_scripts.tools.boot_service import PYTHON
from remote_scripts.tools.done import TIMED_OUT
from remote_scripts.tools.pci import DEVICES, driver_of

# As nvidia-smi says them; the last two of a card that has none.
_PERSISTENCE_MODES = ("Enabled", "Disabled", "[N/A]", "[Not Supported]")


def program(*words: str) -> tuple[str, ...]:
    """What starts the program."""
    return (*PYTHON.split(), handover.PROGRAM, *words)


@dataclass(frozen=True)
class Outcome:
    """What came of a program or a unit. `output`: the end of what was printed; `waits`: the unit is at work still."""

    is_done: bool
    output: str
    waits: bool = False


class CardDriver:
    """The driver of a card, and the units that change it."""

    def __init__(self, card: RecordedCard) -> None:
        self._card, self._system = card, card.system

    # Programs and units.

    def run(self, *words: str, seconds: float = 30.0) -> Outcome:
        """Runs a program."""
        done = self._system.run.ask(*words, seconds=seconds)
        output = self._system.log.clean(done.output + done.error, 2000).strip()
        return Outcome(done.status == 0, output or ("no answer in time" if done.status == TIMED_OUT else ""))

    def _nvidia_smi(self, *words: str, seconds: float = 30.0) -> Outcome:
        return self.run("nvidia-smi", *words, seconds=seconds)

    def _unit(self, step: str) -> str:
        return f"homelab-handover-{self._card.name}-{step}"

    def is_active(self, *steps: str) -> bool:
        """Whether the unit of one of these steps (by default of any) is at work or waits in the kernel. Every other
        program that touches the card then would wait, too.
        """
        return handover.is_active(self._system, *(f"{self._unit(step)}.service" for step in steps or STEPS))

    def _run_step(self, seconds: float, step: str, doing: str) -> Outcome:
        """Runs a step of this card in a unit; the card is STUCK where it waits in the kernel. A write can wait there
        for ever: as a child of this process it would make the caller wait, too. If systemd is restarted meanwhile
        (daemon-reexec), `--wait` says "success" of a unit that still runs: so the unit's own state is read.
        """
        words = ("systemd-run", "-q", "--wait", "--collect", "--pipe", f"--unit={self._unit(step)}")
        outcome = self.run(*words, *program(step, self._card.name), seconds=seconds)
        if not self.is_active(step):
            return outcome
        self._card.mark_stuck(doing)
        return Outcome(False, "it has not ended in time", waits=True)

    def _need_step(self, seconds: float, step: str, doing: str) -> None:
        outcome = self._run_step(seconds, step, doing)
        if not outcome.is_done:
            raise RefusedError(f"{outcome.output or 'no text'} ({doing})")

    # To vfio-pci.

    def persistence(self) -> dict[str, str]:
        """What is to be recorded of its persistence mode, and of the persistence daemon, if that is this card's
        alone.

        :raises RefusedError: which mode it has isn't known: the driver forgets it with the card; or it is divided.
        """
        query = self._nvidia_smi(
            "-i", self._card.gpu, "--query-gpu=persistence_mode,mig.mode.current", "--format=csv,noheader"
        )
        mode, _, mig = query.output.partition("\n")[0].partition(", ")  # behind it, nvidia-smi may warn
        if not query.is_done or mode not in _PERSISTENCE_MODES:
            raise RefusedError(f"its persistence mode isn't known: {query.output or 'no text'}")
        if mig == "Enabled":
            raise RefusedError("MIG is on: it is divided")
        is_only = self._card.is_only()
        units = nvidia.DAEMON if is_only and handover.is_active(self._system, nvidia.DAEMON) else ""
        return {"persistence": mode, "units": units}

    def drain(self) -> None:
        """The driver lets go of the card when its last user does, and takes no new ones.

        :raises RefusedError: its persistence mode or the daemon stays.
        """
        record = self._card.record
        if record.persistence == "Enabled" and not (mode := self._nvidia_smi("-i", self._card.gpu, "-pm", "0")).is_done:
            raise RefusedError(f"its persistence mode stays on: {mode.output}")
        if record.units and not (daemon := self.run("systemctl", "stop", record.units, seconds=60)).is_done:
            raise RefusedError(f"{record.units} doesn't stop: {daemon.output}")
        # A barrier against those who come between the look and the unbinding, where the card knows it.
        if not (drain := self._nvidia_smi("drain", "-p", self._card.gpu, "-m", "1")).is_done:
            self._card.say(f"it can't be drained, and goes without that: {drain.output}")

    def bind_to_vfio(self) -> None:
        """Gives every function to vfio-pci.

        :raises RefusedError: a step failed, or waits in the kernel: then the card is STUCK.
        """
        system, card = self._system, self._card
        modules = [module for module in nvidia.MODULES if system.files.exists(f"/sys/module/{module}")]
        # vfio is loaded before a module goes, as it gets its numbers then. Later it would take one that the module has
        # freed, and the driver would come back with other numbers.
        if not (vfio := self.run("modprobe", "vfio-pci", seconds=60)).is_done:
            raise RefusedError(f"vfio-pci can't be loaded: {vfio.output}")
        deep = [
            function for function in card.functions if system.files.line(f"{DEVICES}/{function}/d3cold_allowed") == "1"
        ]
        self._card.need_saved(state="DETACHED", modules=tuple(modules), d3cold=tuple(deep))
        self._need_step(140, "step_claim", "claiming it, with its driver's modules")
        # Once more: a process may have opened it since the first look.
        card_users.need_unused(card)
        self._need_step(90, "step_bind", "moving it to vfio-pci")
        if not card.is_on_vfio():
            drivers = (f"{function} {driver_of(system, function)}" for function in card.functions)
            raise RefusedError(f"not every function has come to vfio-pci: {'; '.join(drivers)}")

    # Back to NVIDIA's driver.

    def _on_vfio(self) -> str:
        """A function that is on vfio-pci, or empty."""
        return next(
            (function for function in self._card.functions if driver_of(self._system, function) == "vfio-pci"), ""
        )

    def is_bound(self) -> bool:
        """Whether its graphics function is with its driver, and the others with one of the host's, or with none."""
        return self._card.driver == "nvidia" and not self._on_vfio()

    def release(self) -> bool:
        """Takes it from vfio-pci; whether that is done."""
        outcome = self._run_step(60, "step_release", "taking it from vfio-pci")
        left = self._on_vfio()
        if not outcome.waits and (left or not outcome.is_done):
            reason = f"{left} is still there" if outcome.is_done else outcome.output
            self._card.say(f"it can't be taken from vfio-pci yet: {reason}")
        return outcome.is_done and not left

    def attach(self) -> Outcome:
        """Loads the driver's modules that were there before, gives every function that has none its driver, and makes
        the device nodes.
        """
        return self._run_step(270, "step_attach", "giving it to NVIDIA's driver")

    def query(self) -> Outcome:
        """Whether the driver has the card, lets clients in again, and answers for the card."""
        if self._card.driver != "nvidia":
            return Outcome(False, "")
        # One that can't be drained answers with an error, too.
        self._nvidia_smi("drain", "-p", self._card.gpu, "-m", "0")
        drain = self._nvidia_smi("drain", "-q", "-p", self._card.gpu)
        if "draining" in drain.output and "not draining" not in drain.output:
            return Outcome(False, drain.output)
        return self._nvidia_smi("-i", self._card.gpu, "--query-gpu=pci.bus_id", "--format=csv,noheader", seconds=60)

    def restore_persistence(self) -> None:
        """The persistence daemon and mode as they were."""
        record = self._card.record
        if record.units and not (daemon := self.run("systemctl", "start", record.units, seconds=60)).is_done:
            self._card.say(f"{record.units} has not started again: {daemon.output}")
        if record.persistence == "Enabled":
            words = ("-i", self._card.gpu, "-pm", "1")
            if not self._nvidia_smi(*words).is_done and not (mode := self._nvidia_smi(*words)).is_done:
                self._card.say(f"its persistence mode could not be switched on again: {mode.output}")
