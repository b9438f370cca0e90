"""The work on a StorageFile: downloads it unless it is there, and removes it if it was downloaded here and no guest
uses it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from homelab.errors import HomelabError, UnansweredError
from homelab.facts.guests import ledger_entry
from homelab.remote import ledger, ssh
from homelab.remote.proxmox.files import Files
from homelab.resources.work.api import ApiWork
from homelab.settings import Host
from homelab.storage import files as decided
from homelab.storage.resource import StorageFile
from homelab.text import tell
from remote_scripts.both import volume_users


class StorageFileWork(ApiWork[StorageFile.Inputs, StorageFile.Outputs]):
    """Downloads a file onto a storage, compares it, and removes it unless a guest uses it."""

    resource = StorageFile

    def id(self, inputs: StorageFile.Inputs) -> str:
        return inputs.volume

    def create(self, inputs: StorageFile.Inputs) -> StorageFile.Outputs:
        files = self._files(inputs)
        noted = ledger.noted(*self._note(inputs))
        if files.exists(inputs.volume):
            if noted is not None and _identity(inputs).items() <= noted.items():
                _say(inputs, "was downloaded by this program before: it is this stack's now")
                return StorageFile.Outputs(made=True)
            if noted is None:
                return self._adopted(inputs, files)
            # Downloaded by this program, and from another place than it is to be.
            self._give_up(inputs, files)
        elif noted is None and files.downloads(inputs.volume):  # by somebody else
            self._fetch(inputs, files)
            return self._adopted(inputs, files)
        return self._download(inputs, files)

    def _fetch(self, inputs: StorageFile.Inputs, files: Files) -> None:
        name = f"hosts.{inputs.host}.downloads.{inputs.download}"
        files.fetch(inputs.volume, name, inputs.url, inputs.checksum)

    def _adopted(self, inputs: StorageFile.Inputs, files: Files) -> StorageFile.Outputs:
        """A file that was there before: used, not removed. With a checksum of the settings, Proxmox VE compares it."""
        if inputs.checksum:
            self._fetch(inputs, files)
        _say(inputs, "was there already: it is used as it is, and stays when the stack is destroyed")
        return StorageFile.Outputs(made=False)

    def _download(self, inputs: StorageFile.Inputs, files: Files) -> StorageFile.Outputs:
        ledger.note(*self._note(inputs), _identity(inputs))
        try:
            self._fetch(inputs, files)
        except UnansweredError:
            raise  # it may come yet: it stays noted as this program's
        except HomelabError:
            if not files.exists(inputs.volume):
                ledger.forget(*self._note(inputs))
            raise
        if not inputs.checksum:
            _say(inputs, f"was compared with no checksum: the program trusts what {inputs.url} sent")
        return StorageFile.Outputs(made=True)

    def read(self, inputs: StorageFile.Inputs, outputs: StorageFile.Outputs) -> StorageFile.Outputs:
        drift = [] if self._files(inputs).exists(inputs.volume) else [f"{inputs.volume} is gone"]
        for line in drift:
            tell(f"{inputs.download}: drift: {line}")
        return dataclasses.replace(outputs, drift=drift)

    def update(
        self, inputs: StorageFile.Inputs, before: StorageFile.Inputs, outputs: StorageFile.Outputs
    ) -> StorageFile.Outputs:
        if _identity(inputs) == _identity(before) and not outputs.drift:
            return outputs
        if outputs.made and _identity(inputs) != _identity(before):
            self._give_up(before, self._files(before))
        return self.create(inputs)

    def _give_up(self, inputs: StorageFile.Inputs, files: Files) -> None:
        """Removes a file that was downloaded here for another one of its name.

        :raises HomelabError: a guest uses it.
        """
        if users := _users(self.host(inputs), inputs.volume):
            raise HomelabError(
                wanted=f"{inputs.volume} replaced, as hosts.{inputs.host}.downloads.{inputs.download} has changed",
                found=f"{', '.join(users)} uses it",
                why="a CD that changes under a guest is read wrong; nothing was changed",
                next="take it out of there, or give the download another file name",
            )
        files.remove(inputs.volume)
        ledger.forget(*self._note(inputs))

    def delete(self, inputs: StorageFile.Inputs, outputs: StorageFile.Outputs) -> None:
        if not outputs.made:
            _say(inputs, "stays: it was there before")
            return
        if users := _users(self.host(inputs), inputs.volume):
            _say(inputs, f"stays: {', '.join(users)} uses it; to remove it later: `pvesm free {inputs.volume}` there")
        else:
            files = self._files(inputs)
            files.end(inputs.volume)
            files.remove(inputs.volume)
        ledger.forget(*self._note(inputs))

    def remove_unfinished(self, node: str, host_name: str, ledger_of_host: Mapping[str, str]) -> None:
        """Gives back what a run that was killed during a download has left: noted on the host, in no state. To be
        called when the files of the state have been given back.

        :param ledger_of_host: what is noted now.
        :raises HomelabError: it can't be given back.
        """
        for name, download in self.stack.host(host_name).downloads.items():
            inputs = StorageFile.inputs_of(host_name, node, name, download)
            noted = ledger_entry(ledger_of_host, ledger.of_file(node, inputs.volume))
            if noted is not None and _identity(inputs).items() <= noted.items():
                _say(inputs, "was begun by a run that was interrupted")
                self.delete(inputs, StorageFile.Outputs(made=True))

    def _note(self, inputs: StorageFile.Inputs) -> tuple[ssh.Session, str]:
        """The host, and the name of the file's note there."""
        return ssh.Session(self.host(inputs)), ledger.of_file(inputs.node, inputs.volume)

    def _files(self, inputs: StorageFile.Inputs) -> Files:
        return Files(self.api(inputs), lambda text: tell(f"{inputs.download}: {text}"))


def _say(inputs: StorageFile.Inputs, text: str) -> None:
    tell(f"{inputs.download}: {inputs.volume} {text}")


def _identity(inputs: StorageFile.Inputs) -> dict[str, object]:
    # What tells the file from another one of the same name.
    return {"url": inputs.url, "checksum": inputs.checksum}


def _users(host: Host, volume: str) -> list[str]:
    answer = ssh.Session(host).ask("read", "volume_users", volume_users.Wanted(volume=volume))
    return decided.users(volume, str(answer["users"]))
