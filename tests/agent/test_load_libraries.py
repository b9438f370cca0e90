"""remote_scripts/files/load_libraries.py and Perl's way, with real libraries that a compiler makes, and the real loader."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from homelab.remote.scripts import file
from remote_scripts.layers.nvidia_verification import LOAD
from tests.agent.kit import ran

CC, PYTHON, PERL = shutil.which("cc"), shutil.which("python3", path="/usr/bin:/usr/local/bin") or "python3", "perl"
pytestmark = pytest.mark.skipif(CC is None, reason="libraries are compiled, and there is no compiler")
NVENC = "int NvEncodeAPIGetMaxSupportedVersion(unsigned *version) { *version = 13 << 4 | 1; return %d; }"
CUDNN, NCCL = "libcudnn.so.9", "libnccl.so.2"
ENCODE, DECODE = "libnvidia-encode.so.1", "libnvcuvid.so.1"


def make(folder: Path, soname: str, source: str) -> None:
    made = ("-shared", "-fPIC", "-w", "-x", "c", "-o", str(folder / soname), "-")
    done = ran("cc", *made, text=source, **os.environ)
    assert done.returncode == 0, done.stderr


def loaded(folder: Path, *names: str) -> list[str]:
    program = folder / "load_libraries.py"
    program.write_text(file("load_libraries.py"))
    return run(folder, PYTHON, "-I", "-S", "-B", str(program), *names)


def run(folder: Path, *command: str) -> list[str]:
    done = ran(*command, **{**os.environ, "LD_LIBRARY_PATH": str(folder)})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("status", "told"), [(0, "13.1"), (15, "error 15")])
def test_the_encoder_tells_the_version_of_its_interface(tmp_path: Path, status: int, told: str) -> None:
    make(tmp_path, ENCODE, NVENC % status)
    assert loaded(tmp_path, ENCODE) == [f"{ENCODE}: loaded, NVENC {told}"]


def test_what_is_missing_torn_or_of_something_else_has_the_loaders_own_words(tmp_path: Path) -> None:
    (tmp_path / DECODE).write_bytes(b"\x7fELF")
    make(tmp_path, ENCODE, "int nothing;")
    torn, other, missing = loaded(tmp_path, DECODE, ENCODE, "libEGL_nvidia.so.0")
    assert torn.startswith(f"{DECODE}: ") and "too short" in torn
    assert other.startswith(f"{ENCODE}: ") and "undefined symbol: NvEncodeAPIGetMaxSupportedVersion" in other
    assert missing == "libEGL_nvidia.so.0: cannot open shared object file: No such file or directory"


def test_perl_loads_them_where_there_is_no_python(tmp_path: Path) -> None:
    make(tmp_path, ENCODE, NVENC % 0)
    assert run(tmp_path, PERL, "-e", LOAD, ENCODE, DECODE) == [
        f"{ENCODE}: loaded",
        f"{DECODE}: cannot open shared object file: No such file or directory",
    ]


def test_cudnn_and_nccl_tell_their_versions(tmp_path: Path) -> None:
    cudnn = "unsigned long cudnnGetVersion() { return 91002; } unsigned long cudnnGetCudartVersion() { return 12090; }"
    make(tmp_path, CUDNN, cudnn)
    make(tmp_path, NCCL, "int ncclGetVersion(int *version) { *version = 22703; return 0; }")
    assert loaded(tmp_path, CUDNN, NCCL) == [
        f"{CUDNN}: loaded, cuDNN 9.10.2 for CUDA 12.9",
        f"{NCCL}: loaded, NCCL 2.27.3",
    ]
