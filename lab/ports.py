"""The ports of a lab: bound for as long as it exists, so that nobody else gets them while the host, or a guest, is down."""

from __future__ import annotations

import socket


def bind(port: int, address: str = "127.0.0.1") -> socket.socket:
    """A socket on the port (0: a free one) of a loopback address that doesn't listen: whoever connects is refused.

    Raises:
        OSError: the port is taken.
    """
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
    except OSError:
        bound.close()
        raise
    return bound


def guest_address(vmid: int) -> str:
    """A guest's own address on loopback: 127.64.0.103 for 103; ids beyond four millions share those of smaller ones.

    Linux answers to all of 127.0.0.0/8 without any being configured. 127.0.0.0/10 stays free for others.
    """
    number = vmid % (1 << 22)
    return f"127.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
