"""homelab's components, for another Pulumi project: `from homelab.components.gpu_vm import GpuVm`.

In the repository they lie at the top, in components/, where the program has them; an installed package has them here.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "components")]
