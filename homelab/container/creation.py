"""A container that this program makes: the options that it is made with."""

from __future__ import annotations

from homelab.settings import NewContainerSettings


def configuration(name: str, new: NewContainerSettings) -> dict[str, str]:
    """The parameters of a new container, as the API takes them.

    :param name: the container's name in the settings, which is its host name unless `new` has one.
    :param new: its `create`. A password is no part of this: it goes into no file.
    """
    net = f"name=eth0,bridge={new.bridge},ip={new.ip}" + (f",gw={new.gateway}" if new.gateway else "")
    found = {
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
        found["features"] = new.features.option
    found |= {f"mp{number}": one.option for number, one in enumerate(new.mounts)}
    if new.nameserver:
        found["nameserver"] = new.nameserver
    if new.ssh_keys:
        found["ssh-public-keys"] = "\n".join(new.ssh_keys)
    return found
