"""Keeps torch's store and gloo's sockets on the loopback interface, or on one chosen interface.

torch's TCPStore listens on all interfaces even if its address is 127.0.0.1. It can be given a socket that is already
bound, which is done here.
"""

import os
import socket
import sys
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from megatron_octo.errors import RuntimeSetupError

LOOPBACK = "lo"
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def stay_on_loopback(environment: Any = os.environ) -> None:
    """Make gloo and NCCL use the loopback interface, for ranks that are all on one machine."""
    for name in _INTERFACES:
        environment[name] = LOOPBACK


def is_loopback(host: str) -> bool:
    """Whether an address or name is one of the loopback interface."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(str(address[0]).startswith("127.") or address[0] == "::1" for *_, address in found)


def bound_store(host: str, port: int, world_size: int | None, *, is_master: bool, **options: Any) -> TCPStore:
    """A TCPStore that listens on the interface of `host` and on no other.

    Args:
        host: an address of the first rank's machine.
        options: further arguments of TCPStore.

    Raises:
        RuntimeSetupError: the address is not one of this machine, or the port is taken.
    """
    if not is_master:
        return TCPStore(host, port, world_size, False, **options)
    port, descriptor = _listener(host, port)
    return TCPStore(host, port, world_size, True, master_listen_fd=descriptor, **options)


def _listener(host: str, port: int) -> tuple[int, int]:
    """Port and descriptor of a socket that listens on one address only. The store closes it."""
    problem: OSError | None = None
    try:
        candidates = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        candidates, problem = [], error
    for family, kind, protocol, _, address in candidates:
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except OSError as error:
            listener.close()
            problem = error
            continue
        return listener.getsockname()[1], listener.detach()
    raise RuntimeSetupError(
        f"{host}, port {port}: the first rank cannot listen there ({problem}); give an address of its own machine "
        "(MASTER_ADDR) and a free port (MASTER_PORT)"
    )


class _LoopbackStore(TCPStore):
    """A TCPStore that listens only on loopback if its address is one of loopback."""

    def __init__(
        self, host_name: str, port: int, world_size: int | None = None, is_master: bool = False, **options: Any
    ):
        if is_master and "master_listen_fd" not in options and is_loopback(host_name):
            port, options["master_listen_fd"] = _listener(host_name, port)
        super().__init__(host_name, port, world_size, is_master, **options)


def keep_stores_on_loopback() -> None:
    """Make `init_process_group` in this process start stores that listen only on loopback if their address allows it.

    For processes in which vLLM or OpenRLHF call it. Safe to call again.
    """
    # not by attribute: torch.distributed has a function of the same name
    rendezvous: Any = sys.modules["torch.distributed.rendezvous"]
    rendezvous.TCPStore = _LoopbackStore
