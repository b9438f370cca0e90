"""Files on a node's storages through the API: lists, downloads and removes them. Decisions about them are in
homelab/storage/files.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from homelab.errors import ApiError, HomelabError, UnansweredError
from homelab.remote.proxmox.api import Api
from homelab.settings import Container, Host, Vm
from homelab.storage import files as vm_files

# How long a task that is told to end may take to do so, in seconds.
END_SECONDS = 30.0


class Files:
    """The files on a node's storages. `say`: called with each line of a task's log."""

    def __init__(self, api: Api, say: Callable[[str], None]) -> None:
        self._api, self._say = api, say

    def volumes(self, storage: str, content: str) -> list[str]:
        """The volumes on a storage that have this content, such as `iso`.

        :raises ApiError: it was refused, or not answered.
        """
        path = f"nodes/{self._api.node}/storage/{storage}/content"
        rows = self._api.get(path, f"to see what lies on the storage {storage}", content=content)
        return [str(row["volid"]) for row in rows]

    def exists(self, volume: str) -> bool:
        """Whether a volume is on its storage.

        :raises ApiError: it was refused, or not answered.
        """
        storage, content, _ = vm_files.parts(volume)
        return volume in self.volumes(storage, content)

    def fetch(self, volume: str, name: str, url: str, checksum: str | None) -> None:
        """Downloads a volume, or waits for the download if the node has begun it already. Proxmox VE writes to another
        name, and renames the file once it is complete and its checksum is right. A file that is there, and has the
        checksum, stays as it is.

        :param name: the download's in the settings, such as `hosts.pve.downloads.noble.qcow2`.
        :param checksum: as `Download.checksum`.
        :raises HomelabError: the download failed, and nothing is left of it; UnansweredError: it may go on.
        """
        api, (storage, content, file) = self._api, vm_files.parts(volume)
        wanted = f"{volume} downloaded, for {name}"
        seconds = api.host.timeouts.create
        try:
            for upid in self.downloads(volume):
                self._say("the node is downloading it already: waiting for that")
                api.task(upid, wanted, seconds, self._say)
                return
            path = f"nodes/{api.node}/storage/{storage}/download-url"
            parameters = {"url": url, "content": content, "filename": file}
            if checksum:
                algorithm, _, digits = checksum.partition(":")
                parameters |= {"checksum": digits, "checksum-algorithm": algorithm}
            api.carry_out("post", path, wanted, seconds, self._say, **parameters)
        except UnansweredError:
            raise
        except ApiError as error:
            raise error.retold(
                why="nothing is kept of a download that fails, and a file that was there is not touched",
                next=f"correct what it names, or {name}; see whether the host reaches {url} (a proxy: "
                "Datacenter -> Options -> HTTP proxy); then run `pulumi up` again",
            ) from error

    def end(self, volume: str) -> None:
        """Ends the node's download of a volume, if a run that was interrupted has left one; nothing is left of it.

        :raises ApiError: as `Api.end_task`.
        """
        for upid in self.downloads(volume):
            self._api.end_task(upid, f"the download of {volume} ended", END_SECONDS)

    def downloads(self, volume: str) -> list[str]:
        """The tasks by which the node is downloading a volume.

        :raises ApiError: it was refused, or not answered.
        """
        name = vm_files.parts(volume)[2]
        path, filters = f"nodes/{self._api.node}/tasks", {"source": "active", "typefilter": "download"}
        tasks = self._api.get(path, "to see the node's downloads", **filters)
        return [str(task["upid"]) for task in tasks if task.get("id") == name]

    def remove(self, volume: str) -> None:
        """Removes a volume, if it is there.

        :raises ApiError: as `Api.carry_out`.
        """
        storage, _, _ = vm_files.parts(volume)
        path = f"nodes/{self._api.node}/storage/{storage}/content/{volume}"
        seconds = self._api.host.timeouts.api_task
        self._api.carry_out("delete", path, f"{volume} removed", seconds, self._say)


def check(api: Api, name: str, host: Host, guests: Mapping[str, Vm | Container]) -> list[HomelabError]:
    """Refusals of the files that guests are to be created from: a storage that doesn't take a download, or a file that
    is neither downloaded nor there.

    :param name: the host's in the settings.
    :param guests: those that are to be created, by their places in the settings.
    :raises ApiError: it was refused, or not answered.
    """
    files = Files(api, lambda _: None)
    downloads = {download.volume(key): key for key, download in host.downloads.items()}
    wanted = vm_files.wanted_volumes(guests)
    if not downloads and not wanted:
        return []
    storage_rows = api.get(f"nodes/{api.node}/storage", "to see the node's storages")
    refusals = [
        vm_files.storage_refusal(f"hosts.{name}.downloads.{key}", volume, storage_rows)
        for volume, key in downloads.items()
    ]
    errors = [refusal for refusal in refusals if refusal is not None]
    storages = {str(row["storage"]) for row in storage_rows}
    for volume, place in wanted.items():
        storage, content, _ = vm_files.parts(volume)
        volumes = files.volumes(storage, content) if storage in storages else []
        if volume not in downloads and volume not in volumes:
            errors.append(vm_files.missing(place, volume, volumes))
    return errors
