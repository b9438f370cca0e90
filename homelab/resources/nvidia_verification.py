"""NvidiaVerification: NVIDIA's stack used from inside: nvidia-smi, nvcc, a CUDA program, a container, UVM as an ordinary user.

An act, which owns nothing: what doesn't work is recognised by its text and answered with the cause and the remedy.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource

from homelab.resources.base import replaced_by
from homelab.resources.system import SystemProvider
from homelab.text import tell

OUTPUTS = ("result",)
# What a script's own time limit leaves for the connection and the answer, in seconds.
SLACK_SECONDS = 60


class NvidiaVerificationProvider(SystemProvider):
    """See the module. Inputs: `System.inputs`, script, wanted (`nvidia.verification.Wanted` as a mapping), timeout,
    after, done and started (what it is done again after).
    """

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(props["system_name"], {**props, "result": asyncio.run(self._verified(props))})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        return replaced_by(olds, news, *OUTPUTS, "timeout")

    async def _verified(self, props: dict[str, Any]) -> dict[str, Any]:
        from homelab.errors import raise_all
        from homelab.nvidia import verification
        from homelab.remote import scripts

        stack = self.stack(props)
        if props["target"] == "vm" and stack is not None:
            # It may have been started a moment ago.
            await self.read_system_in_time(props, stack.timeouts.reboot)
        async with self.session(props, float(props["timeout"]) + SLACK_SECONDS) as run:
            answer = scripts.answer(await run("verify", props["script"]))
        result, errors = verification.judge(answer, verification.Wanted(**props["wanted"]))
        raise_all(errors)
        cards = ", ".join(card["name"] for card in result["gpus"])
        tell(f"{props['system_name']}: verified from inside: {cards}, driver {result['driver']}")
        return result


class NvidiaVerification(Resource, module="homelab", name="NvidiaVerification"):
    """The dynamic resource. Output ``result``: as the stack puts it out (contract.Nvidia)."""

    result: pulumi.Output[dict[str, Any]]

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(NvidiaVerificationProvider(), name, {**inputs, **dict.fromkeys(OUTPUTS)}, opts)
