"""Which cards the settings of a stack's file give a container, and what is judged of it."""

from __future__ import annotations

from homelab.cards import resolving
from homelab.container import plan as container_plan
from homelab.doctor.devices import WantedCards
from homelab.doctor.reading import Reading
from homelab.findings import Judged
from homelab.host import handover, plan
from homelab.nvidia import judge
from homelab.nvidia.reading import SystemReading
from homelab.properties import slot_of
from homelab.settings import Host, stack_file


class StackFile(stack_file.StackFile):
    """A stack's file, by which containers are judged."""

    def cards(self, host_name: str, host: Host, ctid: int, reading: Reading, stack: str = "") -> WantedCards | None:
        """The cards that the settings give a container, and what is judged of it; None where they don't have it.

        :param stack: PROJECT/STACK.
        :raises HomelabError: they are mistaken.
        """
        (vms, containers), facts = self.guests().guests_on(host_name), reading.facts
        name, container = next(((name, one) for name, one in containers.items() if one.ctid == ctid), ("", None))
        if container is None:
            return None
        slots, _ = resolving.resolve(facts, host.gpus)
        gpus = {gpu: plan.card_plan(facts, host, gpu, slot) for gpu, slot in slots.items()}
        want = plan.Wanted("", "", {}, [], gpus)
        wish = container_plan.wish_of(name, container, facts, want, vms, host)
        with_driver = {slot_of(address) for address in facts.nvidia_minors}
        away = {
            gpu: f"gpus.{gpu} is {text}"
            for gpu in host.hands_over
            if (text := handover.state_text(facts, gpu))
            and slots.get(gpu) not in with_driver
            and (container.gpus is None or gpu in container.gpus)
        }
        system, libraries = facts.systems.get(str(ctid)), bool(container.libraries)
        installed = [system] if isinstance(system, SystemReading) else []
        return WantedCards(
            [*wish.cards.minors],
            f"homelab:containers.{name}.{'gpuAssignment' if container.gpus is None else 'gpus'}",
            others=wish.cards.cards,
            away=[*away.values()],
            sunk=[text for gpu, text in away.items() if handover.has_sunk(facts, gpu)],
            judged=Judged([], []) if away else container_plan.judge_container(wish, facts, stack),
            differences=[line for one in installed for line in judge.steps(one, container.nvidia, libraries=libraries)],
            driver_comes=host.nvidia is not None,
        )
