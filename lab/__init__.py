"""A simulated Proxmox VE host, reached over real SSH: the lab.

`Lab` starts, inspects and stops one; `python -m lab` does the same from a shell. `lab.machine` is the
host itself (scenario, kernel model), `lab.server` the daemon that keeps it running.
"""

from lab.client import Lab, LogMark
from lab.state import LabError

__all__ = ["Lab", "LabError", "LogMark"]
