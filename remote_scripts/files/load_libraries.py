"""Loads libraries of NVIDIA's driver, and of what stands beside CUDA, as programs do, and asks those that can tell it
what they can.

Run by layers/nvidia_verification.py with their sonames. Prints a line for each: `NAME: loaded`, with what it
said behind a comma, or the loader's error. NVENC tells the newest version of its interface; NVDEC has no such call.
Works with any Python 3; status 3: this one has no ctypes.
"""

import sys

try:
    import ctypes
except ImportError:
    sys.exit(3)


def interface_of_encoder(library: ctypes.CDLL) -> str:
    """NvEncodeAPIGetMaxSupportedVersion: the major version above the lowest four bits, the minor in them."""
    version = ctypes.c_uint32()
    status = library.NvEncodeAPIGetMaxSupportedVersion(ctypes.byref(version))
    if status:
        return f"NVENC error {status}"
    return f"NVENC {version.value >> 4}.{version.value & 15}"


def version_of_cudnn(library: ctypes.CDLL) -> str:
    """cudnnGetVersion, 91002 of 9.10.2, and cudnnGetCudartVersion, 12090 of CUDA 12.9."""
    library.cudnnGetVersion.restype = library.cudnnGetCudartVersion.restype = ctypes.c_size_t
    own, cuda = library.cudnnGetVersion(), library.cudnnGetCudartVersion()
    return f"cuDNN {dotted(own)} for CUDA {cuda // 1000}.{cuda % 1000 // 10}"


def version_of_nccl(library: ctypes.CDLL) -> str:
    """ncclGetVersion, 22703 of 2.27.3."""
    version = ctypes.c_int()
    status = library.ncclGetVersion(ctypes.byref(version))
    return f"NCCL error {status}" if status else f"NCCL {dotted(version.value)}"


def dotted(number: int) -> str:
    """Major, minor and patch in two decimal digits each."""
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


ASKED = {
    "libnvidia-encode.so.1": interface_of_encoder,
    "libcudnn.so.9": version_of_cudnn,
    "libnccl.so.2": version_of_nccl,
}

for name in sys.argv[1:]:
    try:
        library = ctypes.CDLL(name)
        said = ASKED[name](library) if name in ASKED else ""
        print(f"{name}: loaded, {said}" if said else f"{name}: loaded")
    except (OSError, AttributeError) as error:
        text = str(error)
        print(f"{name}: {text[len(name) + 2 :] if text.startswith(f'{name}: ') else text}")
    sys.stdout.flush()
