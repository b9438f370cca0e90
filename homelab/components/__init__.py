"""homelab's components, for another Pulumi project: `from homelab.components import GpuVm`.

In the repository they lie at the top, in components/, where the program has them; an installed package has them here.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


sys.modules[__name__] = importlib.import_module("components")
