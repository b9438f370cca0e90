"""remote_scripts/files/load_libraries.py and Perl's way, with real libraries that a compiler makes, and the real loader."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from homelab.remote.scripts import file
from remote_scripts.layers.nvidia_verification import LOAD

CC, PYTHON, PERL = shutil.which("cc"), shutil.which("python3", path="/usr/bin:/usr/local/bin") or "python3", "perl"
pytestmark = pytest.mark.skipif(CC is None, reason="libraries are compiled, and there is no compiler")
NVENC = "int NvEncodeAPIGetMaxSupportedVersion(unsigned *version) { *version = 13 << 4 | 1; return %d; }"
CUDNN, NCCL = "libcudnn.so.9", "libnccl.so.2"
ENCODE, DECODE = "libnvidia-encode.so.1", "libnvcuvid.so.1"


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    return tmp_path


def make(folder: Path, soname: str, source: str) -> None:
    done = subprocess.run(
        ["cc", "-shared", "-fPIC", "-w", "-x", "c", "-o", str(folder / soname), "-"],
        input=source,
        text=True,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


def loaded(folder: Path, *names: str) -> list[str]:
    program = folder / "load_libraries.py"
    program.write_text(file("load_libraries.py"))
    return run(folder, PYTHON, "-I", "-S", "-B", str(program), *names)


def run(folder: Path, *command: str) -> list[str]:
    done = subprocess.run(
        command, env={**os.environ, "LD_LIBRARY_PATH": str(folder)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_encoder_tells_the_version_of_its_interface(libraries: Path) -> None:
    make(libraries, ENCODE, NVENC % 0)
    assert loaded(libraries, ENCODE) == [f"{ENCODE}: loaded, NVENC 13.1"]


def test_an_encoder_that_refuses_is_told(libraries: Path) -> None:
    make(libraries, ENCODE, NVENC % 15)
    assert loaded(libraries, ENCODE) == [f"{ENCODE}: loaded, NVENC error 15"]


def test_what_is_missing_torn_or_of_something_else_has_the_loaders_own_words(libraries: Path) -> None:
    (libraries / DECODE).write_bytes(b"\x7fELF")
    make(libraries, ENCODE, "int nothing;")
    torn, other, missing = loaded(libraries, DECODE, ENCODE, "libEGL_nvidia.so.0")
    assert torn.startswith(f"{DECODE}: ") and "too short" in torn
    assert other.startswith(f"{ENCODE}: ") and "undefined symbol: NvEncodeAPIGetMaxSupportedVersion" in other
    assert missing == "libEGL_nvidia.so.0: cannot open shared object file: No such file or directory"


def test_perl_loads_them_where_there_is_no_python(libraries: Path) -> None:
    make(libraries, ENCODE, NVENC % 0)
    assert run(libraries, PERL, "-e", LOAD, ENCODE, DECODE) == [
        f"{ENCODE}: loaded",
        f"{DECODE}: cannot open shared object file: No such file or directory",
    ]


def test_cudnn_and_nccl_tell_their_versions(libraries: Path) -> None:
    make(
        libraries,
        CUDNN,
        "unsigned long cudnnGetVersion() { return 91002; } unsigned long cudnnGetCudartVersion() { return 12090; }",
    )
    make(libraries, NCCL, "int ncclGetVersion(int *version) { *version = 22703; return 0; }")
    assert loaded(libraries, CUDNN, NCCL) == [
        f"{CUDNN}: loaded, cuDNN 9.10.2 for CUDA 12.9",
        f"{NCCL}: loaded, NCCL 2.27.3",
    ]
