"""The work on an NvidiaVerification: NVIDIA's stack used from inside."""

from __future__ import annotations

from homelab.errors import HomelabError, raise_all
from homelab.host import names
from homelab.nvidia import verification
from homelab.nvidia.expected import Expected
from homelab.provider.systems import SystemWork
from homelab.remote import nvidia_steps as steps
from homelab.resources.nvidia import NvidiaVerification
from homelab.settings.nvidia import Nvidia
from homelab.text import tell

# What the layer's own time limit leaves for the connection and the answer, in seconds.
SLACK_SECONDS = 60


class NvidiaVerificationWork(SystemWork[NvidiaVerification.Inputs, NvidiaVerification.Outputs]):
    """Uses NVIDIA's stack from inside a system, and ends an update of the driver by what it sees."""

    resource = NvidiaVerification

    def create(self, inputs: NvidiaVerification.Inputs) -> NvidiaVerification.Outputs:
        stack = self.wanted_stack(inputs)
        if inputs.target == "vm" and stack is not None:
            # It may have been started a moment ago.
            self.read_system_in_time(inputs, stack.timeouts.reboot)
        reached = self.session(inputs, float(inputs.timeout) + SLACK_SECONDS)
        settings = Nvidia.model_validate(inputs.nvidia, by_name=True)
        timeouts = settings.timeouts.model_copy(update={"verify": inputs.timeout})
        # The state has no secret, and nothing that says only how.
        settings = settings.model_copy(update={"timeouts": timeouts, "proxy": stack.proxy if stack else None})
        expected = Expected(**inputs.wanted)
        wanted = steps.verification(settings, expected)
        answer = reached.ask("apply", "nvidia_verification", wanted, proxy=settings.proxy_address)
        result, errors = verification.judge(answer, expected)
        if answer.get("update") == "tried" and stack is not None:
            errors = self._end_update(inputs, stack, errors, works=answer["nvidia_smi"]["status"] == 0)
        raise_all(errors)
        for what in result["unchecked"]:
            tell(f"{inputs.system_name}: not checked: {what}")
        cards = [(card.get("name") or "a card without a name", card.get("address")) for card in result["gpus"]]
        seen = ", ".join(names.told_apart(cards))
        tell(f"{inputs.system_name}: verified from inside: {seen}, driver {result.get('driver')}")
        return NvidiaVerification.Outputs(result=result)

    def _end_update(
        self, inputs: NvidiaVerification.Inputs, stack: Nvidia, errors: list[HomelabError], *, works: bool
    ) -> list[HomelabError]:
        """Ends an update of the driver that waited for a boot. If the new driver works, the update is done; otherwise
        the old driver is put back, and each error says so."""
        wanted = steps.driver_update(inputs.target, stack, inputs.system_name)
        reached = self.session(inputs, float(stack.timeouts.install) + SLACK_SECONDS)
        answer = reached.ask("apply" if works else "revert", "driver_update", wanted, proxy=stack.proxy_address)
        if not answer["old"]:
            return errors
        tell(f"{inputs.system_name}: the driver {answer['old']} is back: {answer['now']}")
        back = f"the driver {answer['old']} is back: {answer['now']}"
        return [
            error.retold(
                why=f"{error.why}; the update is given up",
                next=f"{back}. Set nvidia.driver to it; or for another try: {error.next}, then run "
                "`pulumi up --refresh`",
            )
            for error in errors
        ]
