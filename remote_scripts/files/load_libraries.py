"""Loads libraries of NVIDIA's driver, and of what stands beside CUDA, as programs do, and asks those that can tell it
what they can.

Run by layers/nvidia_verification.py with their sonames. Prints a line for each: `NAME: loaded`, with what it
said behind a comma, or the loader's error. NVENC tells the newest version of its interface; NVDEC has no such call, so
it is asked what the first card decodes. Works with any Python 3; status 3: this one has no ctypes.
"""

import sys

try:
    import ctypes
except ImportError:
    sys.exit(3)


class DecoderCapabilities(ctypes.Structure):
    """CUVIDDECODECAPS of cuviddec.h (interface of NVDEC from 8.0 on)."""

    _fields_ = [
        ("codec", ctypes.c_int),
        ("chroma_format", ctypes.c_int),
        ("bit_depth_minus_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("is_supported", ctypes.c_ubyte),
        ("engines", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_macroblocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("reserved2", ctypes.c_uint * 11),
    ]


# cudaVideoCodec_H264 and cudaVideoChromaFormat_420.
H264, YUV_420 = 4, 1


def interface_of_encoder(library: ctypes.CDLL) -> str:
    """NvEncodeAPIGetMaxSupportedVersion: the major version above the lowest four bits, the minor in them."""
    version = ctypes.c_uint32()
    status = library.NvEncodeAPIGetMaxSupportedVersion(ctypes.byref(version))
    if status:
        return f"NVENC error {status}"
    return f"NVENC {version.value >> 4}.{version.value & 15}"


def decoding(library: ctypes.CDLL) -> str:
    """cuvidGetDecoderCaps for H.264, on the first card."""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    error = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
    error = error or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    if error:
        return f"CUDA error {error}"
    capabilities = DecoderCapabilities(codec=H264, chroma_format=YUV_420)
    error = cuda.cuCtxSetCurrent(context) or library.cuvidGetDecoderCaps(ctypes.byref(capabilities))
    cuda.cuDevicePrimaryCtxRelease_v2(device)
    if error:
        return f"CUDA error {error}"
    return f"H.264 to {capabilities.max_width}x{capabilities.max_height}" if capabilities.is_supported else "no H.264"


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
    "libnvcuvid.so.1": decoding,
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
