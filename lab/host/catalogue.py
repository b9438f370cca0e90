"""What a Proxmox kernel and its pci.ids know: class names, vendors, modules, which driver claims what.

Sources: `lspci -nnk` and IOMMU group listings of real machines (module lists such as `nvidiafb, nouveau`),
the Proxmox kernel's configuration (what is a module and what is built in), pci.ids of Debian 12/13.
"""

from __future__ import annotations

from typing import NamedTuple

CLASSES = {
    "0100": "SCSI storage controller",
    "0101": "IDE interface",
    "0104": "RAID bus controller",
    "0106": "SATA controller",
    "0107": "Serial Attached SCSI controller",
    "0108": "Non-Volatile memory controller",
    "0200": "Ethernet controller",
    "0207": "Infiniband controller",
    "0280": "Network controller",
    "0300": "VGA compatible controller",
    "0302": "3D controller",
    "0380": "Display controller",
    "0403": "Audio device",
    "0401": "Multimedia audio controller",
    "0480": "Multimedia controller",
    "0500": "RAM memory",
    "0580": "Memory controller",
    "0600": "Host bridge",
    "0601": "ISA bridge",
    "0604": "PCI bridge",
    "0680": "Bridge",
    "0700": "Serial controller",
    "0780": "Communication controller",
    "0800": "PIC",
    "0805": "SD Host controller",
    "0806": "IOMMU",
    "0880": "System peripheral",
    "0c00": "FireWire (IEEE 1394)",
    "0c03": "USB controller",
    "0c05": "SMBus",
    "0c80": "Serial bus controller",
    "1080": "Encryption controller",
    "1180": "Signal processing controller",
    "1200": "Processing accelerators",
    "1300": "Non-Essential Instrumentation",
}
PROG_IF = {
    "0106": ("01", "AHCI 1.0"),
    "0108": ("02", "NVM Express"),
    "0300": ("00", "VGA controller"),
    "0604": ("00", "Normal decode"),
    "0c03": ("30", "XHCI"),
}
VENDORS = {
    "1002": "Advanced Micro Devices, Inc. [AMD/ATI]",
    "1022": "Advanced Micro Devices, Inc. [AMD]",
    "1033": "NEC Corporation",
    "10de": "NVIDIA Corporation",
    "10ec": "Realtek Semiconductor Co., Ltd.",
    "1344": "Micron Technology Inc",
    "144d": "Samsung Electronics Co Ltd",
    "14c3": "MEDIATEK Corp.",
    "15b7": "Sandisk Corp",
    "1987": "Phison Electronics Corporation",
    "1a03": "ASPEED Technology, Inc.",
    "1b21": "ASMedia Technology Inc.",
    "1c5c": "SK hynix",
    "1d6a": "Aquantia Corp.",
    "8086": "Intel Corporation",
    "c0a9": "Micron/Crucial Technology",
}
SUBSYSTEM_VENDORS = {
    "1002": "Advanced Micro Devices, Inc. [AMD/ATI]",
    "1022": "Advanced Micro Devices, Inc. [AMD]",
    "1028": "Dell",
    "1043": "ASUSTeK Computer Inc.",
    "10b0": "CardExpert Technology",
    "10de": "NVIDIA Corporation",
    "1458": "Gigabyte Technology Co., Ltd",
    "1462": "Micro-Star International Co., Ltd. [MSI]",
    "144d": "Samsung Electronics Co Ltd",
    "1849": "ASRock Incorporation",
    "17aa": "Lenovo",
    "19da": "ZOTAC International (MCO) Ltd.",
    "3842": "eVga.com. Corp.",
    "8086": "Intel Corporation",
}


class ModuleInfo(NamedTuple):
    """A kernel module: where its file lies, the PCI driver it registers, what it needs first.

    `driver` is None for a module that registers no PCI driver. `initrd`: MODULES=most puts it into every
    initramfs. `until`: first kernel that no longer has it.
    """

    path: str
    driver: str | None = None
    needs: tuple[str, ...] = ()
    initrd: bool = False
    size: int = 16384
    until: tuple[int, int] | None = None


_GPU = "kernel/drivers/gpu/drm"
_NET = "kernel/drivers/net/ethernet"
MODULES = {
    "vfio": ModuleInfo("kernel/drivers/vfio/vfio.ko", size=65536),
    "vfio_iommu_type1": ModuleInfo("kernel/drivers/vfio/vfio_iommu_type1.ko", needs=("vfio",), size=49152),
    "vfio_virqfd": ModuleInfo("kernel/drivers/vfio/vfio_virqfd.ko", until=(6, 2)),
    "irqbypass": ModuleInfo("kernel/virt/lib/irqbypass.ko", size=12288),
    "vfio_pci_core": ModuleInfo(
        "kernel/drivers/vfio/pci/vfio-pci-core.ko", needs=("vfio", "irqbypass", "vfio_virqfd"), size=86016
    ),
    "vfio_pci": ModuleInfo("kernel/drivers/vfio/pci/vfio-pci.ko", "vfio-pci", ("vfio_pci_core",)),
    "drm": ModuleInfo(f"{_GPU}/drm.ko", size=790528),
    "nouveau": ModuleInfo(f"{_GPU}/nouveau/nouveau.ko", "nouveau", ("drm",), size=3096576),
    "nova_core": ModuleInfo(f"{_GPU}/nova-core/nova_core.ko", "NovaCore", size=40960),
    "nvidiafb": ModuleInfo("kernel/drivers/video/fbdev/nvidia/nvidiafb.ko", "nvidiafb", size=65536),
    "nvidia": ModuleInfo("updates/dkms/nvidia.ko", "nvidia", ("drm",), size=14381056),
    "nvidia_modeset": ModuleInfo("updates/dkms/nvidia-modeset.ko", None, ("nvidia",), size=1585152),
    "nvidia_drm": ModuleInfo("updates/dkms/nvidia-drm.ko", None, ("nvidia_modeset", "drm"), size=135168),
    "nvidia_uvm": ModuleInfo("updates/dkms/nvidia-uvm.ko", None, ("nvidia",), size=2142208),
    "amdgpu": ModuleInfo(f"{_GPU}/amd/amdgpu/amdgpu.ko", "amdgpu", ("drm",), size=19746816),
    "radeon": ModuleInfo(f"{_GPU}/radeon/radeon.ko", "radeon", ("drm",), size=2203648),
    "i915": ModuleInfo(f"{_GPU}/i915/i915.ko", "i915", ("drm",), size=4632576),
    "xe": ModuleInfo(f"{_GPU}/xe/xe.ko", "xe", ("drm",), size=3153920),
    "ast": ModuleInfo(f"{_GPU}/ast/ast.ko", "ast", ("drm",), size=65536),
    "snd_hda_intel": ModuleInfo("kernel/sound/pci/hda/snd-hda-intel.ko", "snd_hda_intel", size=61440),
    "xhci_pci": ModuleInfo("kernel/drivers/usb/host/xhci-pci.ko", "xhci_hcd", (), True, 24576),
    "i2c_nvidia_gpu": ModuleInfo("kernel/drivers/i2c/busses/i2c-nvidia-gpu.ko", "nvidia-gpu"),
    "i2c_piix4": ModuleInfo("kernel/drivers/i2c/busses/i2c-piix4.ko", "piix4_smbus", size=28672),
    "i2c_i801": ModuleInfo("kernel/drivers/i2c/busses/i2c-i801.ko", "i801_smbus", size=36864),
    "ahci": ModuleInfo("kernel/drivers/ata/ahci.ko", "ahci", ("libahci",), True, 49152),
    "libahci": ModuleInfo("kernel/drivers/ata/libahci.ko", None, (), True, 53248),
    "nvme": ModuleInfo("kernel/drivers/nvme/host/nvme.ko", "nvme", ("nvme_core",), True, 57344),
    "nvme_core": ModuleInfo("kernel/drivers/nvme/host/nvme-core.ko", None, (), True, 204800),
    "r8169": ModuleInfo(f"{_NET}/realtek/r8169.ko", "r8169", (), True, 122880),
    "e1000e": ModuleInfo(f"{_NET}/intel/e1000e/e1000e.ko", "e1000e", (), True, 339968),
    "igb": ModuleInfo(f"{_NET}/intel/igb/igb.ko", "igb", (), True, 315392),
    "igc": ModuleInfo(f"{_NET}/intel/igc/igc.ko", "igc", (), True, 196608),
    "ixgbe": ModuleInfo(f"{_NET}/intel/ixgbe/ixgbe.ko", "ixgbe", (), True, 425984),
    "atlantic": ModuleInfo(f"{_NET}/aquantia/atlantic/atlantic.ko", "atlantic", (), True, 335872),
    "iwlwifi": ModuleInfo("kernel/drivers/net/wireless/intel/iwlwifi/iwlwifi.ko", "iwlwifi", size=598016),
    "mt7921e": ModuleInfo("kernel/drivers/net/wireless/mediatek/mt76/mt7921/mt7921e.ko", "mt7921e", size=24576),
    "mei_me": ModuleInfo("kernel/drivers/misc/mei/mei-me.ko", "mei_me", size=57344),
    "ccp": ModuleInfo("kernel/drivers/crypto/ccp/ccp.ko", "ccp", size=155648),
    "mpt3sas": ModuleInfo("kernel/drivers/scsi/mpt3sas/mpt3sas.ko", "mpt3sas", (), True, 364544),
    "zfs": ModuleInfo("kernel/zfs/zfs.ko", None, ("spl",), True, 6639616),
    "spl": ModuleInfo("kernel/zfs/spl.ko", None, (), True, 151552),
    "kvm": ModuleInfo("kernel/arch/x86/kvm/kvm.ko", None, ("irqbypass",), size=1413120),
    "kvm_amd": ModuleInfo("kernel/arch/x86/kvm/kvm-amd.ko", None, ("kvm",), size=208896),
    "kvm_intel": ModuleInfo("kernel/arch/x86/kvm/kvm-intel.ko", None, ("kvm",), size=487424),
}
#: MODULE_SOFTDEP("post: ...") inside the modules themselves.
SOFT_AFTER = {"vfio": ("vfio_iommu_type1",)}
NVIDIA_HOST_MODULES = ("nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm")


def normal(module: str) -> str:
    """A module's name as /proc/modules writes it: `vfio-pci` and `vfio_pci` are the same module."""
    return module.replace("-", "_")


def module_of_driver(driver: str) -> str:
    """The module that registers a PCI driver (`xhci_hcd` -> `xhci_pci`)."""
    for name, info in MODULES.items():
        if info.driver == driver:
            return name
    return normal(driver)


def exists_in(module: str, release: tuple[int, int]) -> bool:
    """Whether a kernel of that release has the module."""
    info = MODULES.get(module)
    return info is not None and (info.until is None or release < info.until)


def class_name(code: str) -> str:
    """pci.ids' name of a class such as `0300`."""
    return CLASSES.get(code, "Class")


def default_modules(vendor: str, device: str, pci_class: str) -> list[str]:
    """Modules whose alias matches a device, in the order lspci prints them.

    Args:
        vendor, device, pci_class: four hexadecimal digits each, lower case.
    """
    by_class = {
        "0106": ["ahci"],
        "0107": ["mpt3sas"],
        "0108": ["nvme"],
        "0403": ["snd_hda_intel"],
        "0c03": ["xhci_pci"],
        "1080": ["ccp"] if vendor == "1022" else [],
    }
    if pci_class in by_class:
        return by_class[pci_class]
    if pci_class in ("0300", "0302", "0380"):
        return {
            "10de": ["nvidiafb", "nouveau"],
            "1002": ["amdgpu"],
            "1a03": ["ast"],
            "8086": ["xe"] if device[:2] in ("e2", "b0") else ["i915", "xe"] if device[:2] == "56" else ["i915"],
        }.get(vendor, [])
    if pci_class == "0200":
        return _ethernet(vendor, device)
    if pci_class == "0280":
        return {"8086": ["iwlwifi"], "14c3": ["mt7921e"]}.get(vendor, [])
    if pci_class == "0c05":
        return {"1022": ["i2c_piix4"], "8086": ["i2c_i801"]}.get(vendor, [])
    if pci_class == "0c80" and vendor == "10de":
        return ["i2c_nvidia_gpu"]
    return ["mei_me"] if pci_class == "0780" and vendor == "8086" else []


def _ethernet(vendor: str, device: str) -> list[str]:
    if vendor == "8086":
        if device in ("15f2", "15f3", "125b", "125c", "125d"):
            return ["igc"]
        if device.startswith("10") or device in ("1563", "1589"):
            return ["ixgbe"]
        return ["igb"] if device in ("1521", "1533", "1539") else ["e1000e"]
    return {"10ec": ["r8169"], "1d6a": ["atlantic"]}.get(vendor, [])


def default_driver(pci_class: str, modules: list[str]) -> str | None:
    """The driver that claims a device on a stock host: of its modules the last one that isn't a framebuffer's."""
    if pci_class == "0604":
        return "pcieport"
    useful = [m for m in modules if m not in ("nvidiafb", "nova_core") and m in MODULES]
    return MODULES[useful[0]].driver if useful else None
