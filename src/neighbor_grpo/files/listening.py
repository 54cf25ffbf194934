"""Where a server listens: the socket, its address, and whether other machines reach it."""

import socket
from ipaddress import ip_address

from neighbor_grpo.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """Open a socket to listen at; port 0 chooses a free port.  Raises UserError if the address cannot be used."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, ValueError, OverflowError) as error:  # ValueError: a name that cannot be one
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}:{port} ({reason}): choose another host or port") from error
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or the second part of a reply may wait for 40 ms
    return listening


def url_of(host: str, listening: socket.socket) -> str:
    """Return the address that a client opens, without a slash at its end."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
