"""What CI does when tests have failed: `python -m tests.once_more` runs these once more, one after another, and names them.

A virtual machine that is saved or moved stands still for minutes, and then a test fails that waits for another process. Such a failure is
said, but a change isn't refused for it. It is refused if a test fails twice, if more than `AT_MOST` tests have failed, or if the
run before didn't come to its end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

#: More tests than this don't fail by chance.
AT_MOST = 5
#: In pytest's cache: how the last run ended.
ENDED = "homelab/ended"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A hook of pytest: keep how the run ended. tests/conftest.py has it, too."""
    cache: pytest.Cache | None = getattr(session.config, "cache", None)
    if not hasattr(session.config, "workerinput") and cache is not None:
        cache.set(ENDED, int(exitstatus))


def failed(cache: Path) -> list[str]:
    """Return the tests that failed in the last run.

    Args:
        cache: pytest's folder `.pytest_cache`.

    Raises:
        SystemExit: the run didn't come to its end, none failed, or too many did; with the reason.
    """
    values = cache / "v"
    try:
        ended = json.loads((values / ENDED).read_text(encoding="utf-8"))
        names = sorted(json.loads((values / "cache" / "lastfailed").read_text(encoding="utf-8")))
    except FileNotFoundError as missing:
        raise SystemExit(
            f"The tests did not run to their end ({missing.filename} is missing): nothing is tried again."
        ) from None
    if (
        ended != 1 or not names or any("::" not in name for name in names)
    ):  # a module that can't be imported has none of its tests
        raise SystemExit(f"The tests did not run to their end (pytest ended with {ended}): nothing is tried again.")
    if len(names) > AT_MOST:
        raise SystemExit(f"{len(names)} tests failed. That is no chance (at most {AT_MOST} are tried again).")
    return names


def main() -> int:
    """Run them, and return pytest's exit status."""
    names = failed(Path(".pytest_cache"))
    listed = "".join(f"  {name}\n" for name in names)
    print(f"Failed, and tried once more, one after another:\n{listed}", flush=True)
    status = subprocess.run([sys.executable, "-m", "pytest", *names], check=False).returncode
    if status == 0:
        print(
            f"These tests failed once and passed once. They depend on chance, and need mending:\n{listed}", flush=True
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
