"""A VM that this program makes: the options that it is made with."""

from __future__ import annotations

from urllib.parse import quote

from homelab.settings import CloudInit, NewVm

SYSTEM_DISK = "scsi0"


def configuration(name: str, new: NewVm) -> dict[str, str]:
    """The keys of a new VM's configuration, as the API takes them.

    :param name: the VM's name in the settings, which is its name unless `new` has one.
    :param new: its `create`. A password is no part of this: it goes into no file.
    """
    storage = new.disk.storage
    source = f"{storage}:0,import-from={new.image}" if new.image else f"{storage}:{new.disk.size}"
    found = {
        "name": new.name or name,
        "cores": str(new.cores),
        "memory": str(new.memory),
        "balloon": "0",  # a card pins all of a VM's memory
        "cpu": new.cpu,
        "bios": new.bios,
        "ostype": new.os_type,
        "agent": str(int(new.agent)),
        "onboot": str(int(new.onboot)),
        "scsihw": "virtio-scsi-single",
        "net0": f"virtio,bridge={new.bridge}",
    }
    if new.machine == "q35":
        found["machine"] = "q35"
    if new.template is None:
        found[SYSTEM_DISK] = source
        if new.bios == "ovmf":
            # Keys of Microsoft's in it mean Secure Boot, under which NVIDIA's modules need a signature.
            found["efidisk0"] = f"{storage}:1,efitype=4m,pre-enrolled-keys={int(new.secure_boot)}"
    if new.tpm:
        found["tpmstate0"] = f"{storage}:1,version=v2.0"
    for number, iso in enumerate(new.isos):
        found[f"sata{number}"] = f"{iso},media=cdrom"
    found["boot"] = f"order={';'.join([SYSTEM_DISK, *(['sata0'] if new.isos else [])])}"
    if new.cloud_init is not None:
        found |= _cloud_init(storage, new.cloud_init)
    return {**found, **new.options}


def _cloud_init(storage: str, wanted: CloudInit) -> dict[str, str]:
    address = f"ip={wanted.ip}" + (f",gw={wanted.gateway}" if wanted.gateway else "")
    # Cloud images put their console on the first serial port.
    found = {"ide2": f"{storage}:cloudinit", "ipconfig0": address, "serial0": "socket"}
    if wanted.user:
        found["ciuser"] = wanted.user
    if wanted.ssh_keys:
        found["sshkeys"] = quote("\n".join(wanted.ssh_keys), safe="")
    if wanted.nameserver:
        found["nameserver"] = wanted.nameserver
    return found
