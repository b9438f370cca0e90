"""What Pulumi models: one file per component."""

from .card_handover import CardHandover as CardHandover
from .card_nodes import CardNodes as CardNodes
from .gpu_cards import GpuCards as GpuCards
from .gpu_lxc import GpuLxc as GpuLxc
from .gpu_vm import GpuVm as GpuVm
from .host_agent import HostAgent as HostAgent
from .host_reboot import HostReboot as HostReboot
from .iommu_host import IommuHost as IommuHost
from .nvidia_guest_stack import NvidiaGuestStack as NvidiaGuestStack
from .stack_outputs import StackOutputs as StackOutputs
from .vfio_binding import VfioBinding as VfioBinding
