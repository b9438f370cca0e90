"""What the tier promises the machine that it runs on."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.metal.host import Hosts

pytestmark = [pytest.mark.metal, pytest.mark.timeout(600)]

_STARTS_ONE = """
import sys, time
from pathlib import Path
from tests.metal.image import Image
from tests.metal.machine import INTEL, Machine
machine = Machine(Image(Path(sys.argv[1])), INTEL, Path(sys.argv[2]))
machine.start()
print(machine.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.core
def test_a_qemu_is_gone_when_the_tests_are_killed(hosts: Hosts, tmp_path: Path) -> None:
    hosts.stop()
    command = [sys.executable, "-c", _STARTS_ONE, str(hosts.image.folder), str(tmp_path / "machine")]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        qemu = int(process.stdout.readline())
        watched = os.pidfd_open(qemu)
        process.send_signal(signal.SIGKILL)
    # Readable once the process has ended.
    assert select.select([watched], [], [], 60)[0]
    os.close(watched)
