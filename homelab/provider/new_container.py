"""The work on a NewContainer: makes it, changes it in place, removes it unless it is protected."""

from __future__ import annotations

import dataclasses
import re
import secrets
from typing import Any

from homelab.errors import HomelabError
from homelab.provider.api import MOVED, ApiWork, is_marked, made_container, marked_anew, require_same, stays, taken
from homelab.remote.proxmox.errors import ElsewhereError, NotThereError
from homelab.resources.new_container import NewContainer
from homelab.text import tell
from homelab.vm.config import strings

# Of `config`, what is read back on a refresh, and changed in place.
COMPARED = ("hostname", "cores", "memory", "swap", "onboot", "nameserver", "features")
# The host's folders in it.
_MOUNTED = re.compile(r"mp\d+")


class NewContainerWork(ApiWork[NewContainer.Inputs, NewContainer.Outputs]):
    """See the module."""

    resource = NewContainer

    def id(self, inputs: NewContainer.Inputs) -> str:
        return str(inputs.ctid)

    def create(self, inputs: NewContainer.Inputs) -> NewContainer.Outputs:
        instance = secrets.token_hex(8)
        self._made(inputs, instance)
        return NewContainer.Outputs(instance=instance)

    def _made(self, inputs: NewContainer.Inputs, instance: str) -> None:
        api, ctid, name = self.api(inputs), inputs.ctid, inputs.container
        wanted = f"container {ctid} ({name}) created"
        found = self._found(inputs)
        config = strings(found or {})
        if found is None:
            tell(f"{name}: creating container {ctid}")
            about = {"description": f"{inputs.mark} {instance}"}
            about |= {**inputs.config, **inputs.secret_config}
            self._task(
                inputs,
                "post",
                f"nodes/{api.node}/lxc",
                wanted,
                "vzcreate",
                api.host.timeouts.create,
                vmid=ctid,
                **about,
            )
        elif is_marked(inputs.mark, config) and "lock" not in config:
            tell(f"{name}: container {ctid} was made by an earlier run that was interrupted")
            # Whoever made it before, such as the resource that this one replaces, no longer removes it.
            description = marked_anew(inputs.mark, instance, config)
            api.put(self._path(inputs), wanted, digest=found["digest"], description=description)
        else:
            raise taken(inputs.mark, made_container(ctid, name), config)

    def _task(
        self,
        inputs: NewContainer.Inputs,
        verb: str,
        path: str,
        wanted: str,
        kind: str,
        seconds: float,
        **parameters: Any,
    ) -> None:
        def say(text: str) -> None:
            tell(f"{inputs.container}: {text}")

        self.api(inputs).carry_out(verb, path, wanted, seconds, say, kinds=(kind,), **parameters)

    def _found(self, inputs: NewContainer.Inputs) -> dict[str, Any] | None:
        """The container's configuration and its digest; None: there is none."""
        try:
            found = self.api(inputs).get(self._path(inputs), f"to read the configuration of container {inputs.ctid}")
        except NotThereError:
            return None
        return dict(found)

    def _config(self, inputs: NewContainer.Inputs) -> dict[str, str] | None:
        """The container's configuration; None: there is none."""
        found = self._found(inputs)
        return None if found is None else strings(found)

    @staticmethod
    def _path(inputs: NewContainer.Inputs) -> str:
        return made_container(inputs.ctid, inputs.container).path(inputs.node)

    def read(self, inputs: NewContainer.Inputs, outputs: NewContainer.Outputs) -> NewContainer.Outputs:
        guest = made_container(inputs.ctid, inputs.container)
        drift = self.drift_of_made(inputs, guest, inputs.mark, outputs.instance, _compared(inputs), inputs.config)
        return outputs if drift is None else dataclasses.replace(outputs, drift=drift)

    def update(
        self, inputs: NewContainer.Inputs, had: NewContainer.Inputs, outputs: NewContainer.Outputs
    ) -> NewContainer.Outputs:
        _require_same(had, inputs)
        if MOVED in outputs.drift:
            self._config(inputs)  # refused, unless it is back
        if inputs.node != had.node:
            guest = made_container(inputs.ctid, inputs.container)
            found = strings(self.api(inputs).get(self._path(inputs), f"container {inputs.ctid} on {inputs.node}"))
            require_same(guest, inputs, had, outputs.instance, found)
        before, have = had.config, inputs.config
        keys = list(dict.fromkeys([*_compared(inputs), *_compared(had)]))
        again = [
            key for key in (*keys, "net0") if key in have and (before.get(key) != have[key] or key in outputs.drift)
        ]
        gone = [key for key in keys if key in before and key not in have]
        if again or gone:
            api, ctid = self.api(inputs), inputs.ctid
            change: dict[str, Any] = {key: have[key] for key in again} | ({"delete": ",".join(gone)} if gone else {})
            wanted = f"to change {', '.join([*again, *gone])} of container {ctid}"
            digest = api.get(self._path(inputs), wanted)["digest"]
            api.put(self._path(inputs), wanted, digest=digest, **change)
        return dataclasses.replace(outputs, drift=[])

    def delete(self, inputs: NewContainer.Inputs, outputs: NewContainer.Outputs) -> None:
        made_on = inputs.node
        try:
            config = self._config(inputs)
        except ElsewhereError as error:
            tell(f"{inputs.container}: container {inputs.ctid} is on {error.node} now")
            inputs = dataclasses.replace(inputs, node=error.node)
            config = self._config(inputs)
        if config is None:
            return
        api, ctid, name = self.api(inputs), inputs.ctid, inputs.container
        same = self.stack.adopting_container(ctid, inputs.host)
        adopted, elsewhere = [f"containers.{one}" for one in same], inputs.node != made_on
        if why := stays(inputs, outputs.instance, config, "container", adopted, elsewhere=elsewhere):
            tell(f"{name}: container {ctid} stays: {why}")
            return
        base = f"nodes/{api.node}/lxc/{ctid}"
        if api.get(f"{base}/status/current", f"to see whether container {ctid} runs")["status"] == "running":
            wanted = f"container {ctid} ({name}) off"
            timeout = inputs.shutdown.timeout
            # It is removed next: one that doesn't shut down is stopped.
            limit, force = timeout + api.host.timeouts.api_task, {"timeout": timeout, "forceStop": 1}
            self._task(inputs, "post", f"{base}/status/shutdown", wanted, "vzshutdown", limit, **force)
        wanted = f"container {ctid} ({name}) removed"
        # A storage may overwrite or discard the disk first, for as long as writing one took.
        self._task(inputs, "delete", base, wanted, "vzdestroy", api.host.timeouts.create, purge=1)


def _compared(inputs: NewContainer.Inputs) -> list[str]:
    """The options that are read back, and changed in place."""
    return [*COMPARED, *(key for key in inputs.config if _MOUNTED.fullmatch(key))]


def _require_same(had: NewContainer.Inputs, new: NewContainer.Inputs) -> None:
    for key, what in (("ostemplate", "template"), ("rootfs", "disk"), ("unprivileged", "unprivileged")):
        before, wanted = had.config.get(key), new.config.get(key)
        if before != wanted:
            raise HomelabError(
                wanted=f"containers.{new.container}.create.{what}: {wanted}",
                found=f"the container was made with {before}",
                why="only a new container could have that, and what is on the disk would be lost",
                next=f"put it back; or take containers.{new.container} out, run `pulumi up`, and create it again",
            )
