"""The address that a server of featkit listens on."""

from __future__ import annotations

import socket

from featkit.core.errors import UsageError

LOOPBACK = ("127.", "::1", "localhost")
"""How addresses begin that only this machine can reach."""


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before anything slow. Raises UsageError when it cannot be."""
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:  # the latter of a name that can be no host's
        why = getattr(error, "strerror", None) or "not the name of a host"
        raise UsageError(f"--host {host} --port {port}: {why}; choose another port or address") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """As a browser takes it: http://127.0.0.1:8000."""
    host, port, *_ = bound.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
