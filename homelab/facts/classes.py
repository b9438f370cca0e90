"""PCI classes and vendors that this program knows, as the beginnings of class codes (pci.ids)."""

from __future__ import annotations

# PCI classes (pci.ids): the first two digits are the base class. A 3D controller is 0302.
DISPLAY = "03"
# What makes a card: a display, or an accelerator.
GRAPHICS = (DISPLAY, "12")
AUDIO = "0403"
BRIDGES = ("0600", "0604")  # host bridge, PCI-to-PCI bridge: VFIO asks nothing of these
NVIDIA = "10de"
AMD = "1002"
INTEL = "8086"
# Drivers of NVIDIA's cards, which alone are ever kept off by name (ADR 1), as nouveau and NVIDIA's own can't share a
# card. Without amdgpu, i915 or snd_hda_intel, the host's other card or its sound would have no driver. nova_core is
# nouveau's successor (from Linux 7.0 on); Proxmox VE itself blacklists nvidiafb.
NVIDIA_DRIVERS = ("nouveau", "nvidia", "nvidia_drm", "nvidia_modeset", "nvidia_uvm", "nvidiafb", "nova_core")
# What NVIDIA's cards with a USB-C socket have besides: its USB controller, and the port's own controller (UCSI).
USB_C = ("0c03", "0c80")
# Classes of what may have disks or networks behind it.
CARRIERS = ("01", "02", "0805", "0d", "0c00", "0c03", "0c04", "0c06", "ff")
