"""The options of a container that this program creates."""

from __future__ import annotations

from homelab.settings import NewContainerSettings


def configuration(name: str, new: NewContainerSettings) -> dict[str, str]:
    """The parameters of a new container, as the API takes them.

    :param name: the container's name in the settings, which is its host name unless `new` has one.
    :param new: its `create`. The parameters have no password, as that goes into no file.
    """
    net = f"name=eth0,bridge={new.bridge},ip={new.ip}" + (f",gw={new.gateway}" if new.gateway else "")
    parameters = {
        "ostemplate": new.template,
        "hostname": new.hostname or name,
        "rootfs": f"{new.disk.storage}:{new.disk.size}",
        "cores": str(new.cores),
        "memory": str(new.memory),
        "swap": str(new.swap),
        "net0": net,
        "unprivileged": str(int(new.unprivileged)),
        "onboot": str(int(new.onboot)),
    }
    if new.features.option:
        parameters["features"] = new.features.option
    parameters |= {f"mp{number}": mount.option for number, mount in enumerate(new.mounts)}
    if new.nameserver:
        parameters["nameserver"] = new.nameserver
    if new.ssh_keys:
        parameters["ssh-public-keys"] = "\n".join(new.ssh_keys)
    return parameters
