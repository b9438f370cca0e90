"""``python -m tests.hardware``."""

from tests import hardware

hardware.DOCUMENT.write_text(
    hardware.written(hardware.DOCUMENT.read_text(encoding="utf-8"), hardware.load()), encoding="utf-8", newline="\n"
)
print(f"written: {hardware.DOCUMENT}")
