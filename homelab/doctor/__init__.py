"""What is wrong with a card in a container, in a VM or on a host, in one page: `homelab doctor container 901
--like 950`.

`reading` is what the agent saw (homelab/remote/diagnosis.py asks it); `container`, `vm` and `host` judge it;
`report` shows it as text or as JSON. A program that already has a reading calls the functions below.
"""

from homelab.doctor.container import container_report
from homelab.doctor.host import host_report
from homelab.doctor.reading import Reading
from homelab.doctor.vm import vm_report

__all__ = ["Reading", "container_report", "host_report", "vm_report"]
