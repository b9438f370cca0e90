"""The options that homelab creates a VM with."""

from __future__ import annotations

from urllib.parse import quote

from homelab.settings import CloudInit, NewVm

SYSTEM_DISK = "scsi0"


def configuration(name: str, new: NewVm) -> dict[str, str]:
    """The options of a new VM, as the API takes them; without the password of cloud-init.

    :param name: the VM's name in the settings, which is its name unless `new` has one.
    :param new: its `create`.
    """
    storage = new.disk.storage
    source = f"{storage}:0,import-from={new.image}" if new.image else f"{storage}:{new.disk.size}"
    options = {
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
        options["machine"] = "q35"
    if new.template is None:
        options[SYSTEM_DISK] = source
        if new.bios == "ovmf":
            # Keys of Microsoft's in it mean Secure Boot, under which NVIDIA's modules need a signature.
            options["efidisk0"] = f"{storage}:1,efitype=4m,pre-enrolled-keys={int(new.secure_boot)}"
    if new.tpm:
        options["tpmstate0"] = f"{storage}:1,version=v2.0"
    for number, iso in enumerate(new.isos):
        options[f"sata{number}"] = f"{iso},media=cdrom"
    options["boot"] = f"order={';'.join([SYSTEM_DISK, *(['sata0'] if new.isos else [])])}"
    if new.cloud_init is not None:
        options |= _cloud_init(storage, new.cloud_init)
    return {**options, **new.options}


def _cloud_init(storage: str, settings: CloudInit) -> dict[str, str]:
    address = f"ip={settings.ip}" + (f",gw={settings.gateway}" if settings.gateway else "")
    # Cloud images put their console on the first serial port.
    options = {"ide2": f"{storage}:cloudinit", "ipconfig0": address, "serial0": "socket"}
    if settings.user:
        options["ciuser"] = settings.user
    if settings.ssh_keys:
        options["sshkeys"] = quote("\n".join(settings.ssh_keys), safe="")
    if settings.nameserver:
        options["nameserver"] = settings.nameserver
    return options
