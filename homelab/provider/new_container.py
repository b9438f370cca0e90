"""The work on a NewContainer: makes it, changes it in place, removes it unless it is protected."""

from __future__ import annotations

import dataclasses
import re
import secrets
from contextlib import suppress
from typing import Any

from homelab.errors import HomelabError
from homelab.provider.api import (
    MOVED,
    ApiWork,
    created_container,
    id_in_use,
    is_marked,
    marked_anew,
    reason_to_keep,
    require_same,
)
from homelab.remote.proxmox.errors import ElsewhereError, NotThereError
from homelab.resources.new_container import NewContainer
from homelab.text import tell
from homelab.vm.config import strings

# Of `config`, what is read back on a refresh, and changed in place.
COMPARED = ("hostname", "cores", "memory", "swap", "onboot", "nameserver", "features")
# The host's folders in it.
_MOUNTED = re.compile(r"mp\d+")


class NewContainerWork(ApiWork[NewContainer.Inputs, NewContainer.Outputs]):
    """Creates a container over the API, changes it in place, and removes it unless it is protected."""

    resource = NewContainer

    def id(self, inputs: NewContainer.Inputs) -> str:
        return str(inputs.ctid)

    def create(self, inputs: NewContainer.Inputs) -> NewContainer.Outputs:
        instance = secrets.token_hex(8)
        self._create(inputs, instance)
        return NewContainer.Outputs(instance=instance)

    def _create(self, inputs: NewContainer.Inputs, instance: str) -> None:
        api, ctid, name = self.api(inputs), inputs.ctid, inputs.container
        wanted = f"container {ctid} ({name}) created"
        current = self._config_with_digest(inputs)
        config = strings(current or {})
        if current is None:
            tell(f"{name}: creating container {ctid}")
            parameters = {"description": f"{inputs.mark} {instance}"}
            parameters |= {**inputs.config, **inputs.secret_config}
            self._task(
                inputs,
                "post",
                f"nodes/{api.node}/lxc",
                wanted,
                "vzcreate",
                api.host.timeouts.create,
                vmid=ctid,
                **parameters,
            )
        elif is_marked(inputs.mark, config) and "lock" not in config:
            tell(f"{name}: container {ctid} was made by an earlier run that was interrupted")
            # The resource that made it before, such as the one that this one replaces, no longer removes it.
            description = marked_anew(inputs.mark, instance, config)
            api.put(self._path(inputs), wanted, digest=current["digest"], description=description)
        else:
            raise id_in_use(inputs.mark, created_container(ctid, name), config)

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

    def _config_with_digest(self, inputs: NewContainer.Inputs) -> dict[str, Any] | None:
        """The container's configuration and its digest; None: there is none."""
        try:
            config = self.api(inputs).get(self._path(inputs), f"to read the configuration of container {inputs.ctid}")
        except NotThereError:
            return None
        return dict(config)

    def _config(self, inputs: NewContainer.Inputs) -> dict[str, str] | None:
        """The container's configuration; None: there is none."""
        config = self._config_with_digest(inputs)
        return None if config is None else strings(config)

    @staticmethod
    def _path(inputs: NewContainer.Inputs) -> str:
        return created_container(inputs.ctid, inputs.container).path(inputs.node)

    def read(self, inputs: NewContainer.Inputs, outputs: NewContainer.Outputs) -> NewContainer.Outputs:
        guest = created_container(inputs.ctid, inputs.container)
        drift = self.drift_of_created(inputs, guest, inputs.mark, outputs.instance, _compared(inputs), inputs.config)
        return outputs if drift is None else dataclasses.replace(outputs, drift=drift)

    def update(
        self, inputs: NewContainer.Inputs, before: NewContainer.Inputs, outputs: NewContainer.Outputs
    ) -> NewContainer.Outputs:
        _require_same(before, inputs)
        if MOVED in outputs.drift:
            self._config(inputs)  # refused, unless it is back
        if inputs.node != before.node:
            guest = created_container(inputs.ctid, inputs.container)
            config = strings(self.api(inputs).get(self._path(inputs), f"container {inputs.ctid} on {inputs.node}"))
            require_same(guest, inputs, before, outputs.instance, config)
        options_before, options = before.config, inputs.config
        keys = list(dict.fromkeys([*_compared(inputs), *_compared(before)]))
        changed = [
            key
            for key in (*keys, "net0")
            if key in options and (options_before.get(key) != options[key] or key in outputs.drift)
        ]
        removed = [key for key in keys if key in options_before and key not in options]
        if changed or removed:
            api, ctid = self.api(inputs), inputs.ctid
            change: dict[str, Any] = {key: options[key] for key in changed} | (
                {"delete": ",".join(removed)} if removed else {}
            )
            wanted = f"to change {', '.join([*changed, *removed])} of container {ctid}"
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
        names = self.stack.adopting_container(ctid, inputs.host)
        adopted, elsewhere = [f"containers.{entry}" for entry in names], inputs.node != made_on
        if why := reason_to_keep(inputs, outputs.instance, config, "container", adopted, elsewhere=elsewhere):
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
        with suppress(NotThereError):  # a task of a run that was killed has done so meanwhile
            self._task(inputs, "delete", base, wanted, "vzdestroy", api.host.timeouts.create, purge=1)


def _compared(inputs: NewContainer.Inputs) -> list[str]:
    """The options that are read back, and changed in place."""
    return [*COMPARED, *(key for key in inputs.config if _MOUNTED.fullmatch(key))]


def _require_same(before: NewContainer.Inputs, inputs: NewContainer.Inputs) -> None:
    for key, what in (("ostemplate", "template"), ("rootfs", "disk"), ("unprivileged", "unprivileged")):
        original, wanted = before.config.get(key), inputs.config.get(key)
        if original != wanted:
            raise HomelabError(
                wanted=f"containers.{inputs.container}.create.{what}: {wanted}",
                found=f"the container was made with {original}",
                why="only a new container could have that, and what is on the disk would be lost",
                next=f"put it back; or take containers.{inputs.container} out, run `pulumi up`, and create it again",
            )
