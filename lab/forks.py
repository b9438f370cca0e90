"""The end of a fork that is to be like a program of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn


def end_with(main: Callable[[], None]) -> NoReturn:
    """Do this, and end as a program would, with its status; nothing of whoever has forked is run."""
    status = 1
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
