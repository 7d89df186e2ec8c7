"""Which thread of a process waits for which connection: asked of Linux' /proc, without the program's help.

Threads share their process' address, and a pool hands a connection from one to another. So whose a request is, is found
out each time: it belongs to the thread that sleeps until that very socket can be read from. Its system call names the
descriptor, or a list of them in the process' memory; the descriptor's inode is that of the other end of our socket.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bankrun.schedule.cast import outside
from bankrun.schedule.cast.participant import Call, Participant
from bankrun.schedule.errors import Unsupported
from bankrun.schedule.protocol.proxy import Link, Proxy

_POLL, _PPOLL, _SELECT, _PSELECT = 7, 271, 23, 270
_READ, _RECVFROM, _RECVMSG = 0, 45, 47
_EPOLL_WAIT, _EPOLL_PWAIT = 232, 281


class Threads:
    """Finds the owners of requests that are held on shared connections."""

    def __init__(self, proxy: Proxy, members: Sequence[Participant]) -> None:
        self._proxy = proxy
        self._members = members
        for group in self._groups():
            if not outside.is_known():
                raise Unsupported(
                    f"threads of one process: they are told apart on Linux (x86-64) only, not on {sys.platform}"
                )
            if group[0].address.host.startswith("/"):
                raise Unsupported("threads of one process are told apart by their TCP ports: use tcp=True")
            proxy.shared |= {member.name for member in group}

    def _groups(self) -> list[list[Participant]]:
        """Return the participants that are threads of one process and do not say what they do."""
        groups: dict[str, list[Participant]] = {}
        for member in self._members:
            if isinstance(member.spec, Call) and not member.spec.kept and member.spec.process:
                groups.setdefault(member.spec.process, []).append(member)
        return [group for group in groups.values() if len(group) > 1]

    def find_owners(self) -> bool:
        """Give each connection on which a request is held to the thread that waits for it; whether one is missing."""
        if not self._proxy.shared:
            return False
        is_missing = False
        for group in self._groups():
            for member in group:
                for link in list(self._proxy.links(member.name)):
                    if not link.is_owned and link.conversation.pending:
                        is_missing = not self._find_owner(link, group) or is_missing
        return is_missing

    def _find_owner(self, link: Link, group: Sequence[Participant]) -> bool:
        alive = [member for member in group if not member.has_ended]
        if not alive:
            self._proxy.give(link, link.participant)
            return True
        running = [member for member in alive if member.pid and member.thread]
        if not running:
            return False  # its request came before it told which thread it is
        pid = running[0].pid
        assert pid is not None
        if link.conversation.client_is_gone:
            return False
        link.inode = link.inode or find_inode(link.client.socket)
        descriptors = find_descriptors(pid, link.inode) if link.inode else set()
        for member in running:
            if descriptors & waits_for(pid, member.thread):
                self._proxy.give(link, member.name)
                return True
        return False


def find_inode(here: socket.socket) -> int:
    """Return the number of the socket at the other end of a loopback connection; 0 if it is not found.

    Both ends are compared: a closed connection keeps its port for a minute, and another one may have the same.
    """
    ends = [
        f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"
        for host, port in (here.getpeername(), here.getsockname())
    ]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == ends:
            return int(fields[9])
    return 0


def find_descriptors(pid: int, inode: int) -> set[int]:
    """Return the descriptors by which a process has a socket."""
    wanted, found = f"socket:[{inode}]", set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # it was closed meanwhile
            if str(link.readlink()) == wanted:
                found.add(int(link.name))
    return found


def waits_for(pid: int, thread: int) -> set[int]:
    """Return the descriptors that a thread sleeps on."""
    try:
        words = Path(f"/proc/{pid}/task/{thread}/syscall").read_text().split()
        if words[0] in ("running", "-1"):
            return set()
        return _descriptors(pid, int(words[0]), [int(word, 16) for word in words[1:7]])
    except (OSError, ValueError, IndexError, struct.error):
        return set()


def _descriptors(pid: int, number: int, arguments: Sequence[int]) -> set[int]:
    if number in (_POLL, _PPOLL):
        polled = _memory(pid, arguments[0], 8 * arguments[1])
        return {struct.unpack_from("i", polled, 8 * one)[0] for one in range(arguments[1])}
    if number in (_READ, _RECVFROM, _RECVMSG):
        return {arguments[0]}
    if number in (_EPOLL_WAIT, _EPOLL_PWAIT):
        lines = Path(f"/proc/{pid}/fdinfo/{arguments[0]}").read_text().splitlines()
        return {int(line.split()[1]) for line in lines if line.startswith("tfd")}
    if number in (_SELECT, _PSELECT) and arguments[1]:
        bits = _memory(pid, arguments[1], (arguments[0] + 63) // 64 * 8)
        return {one for one in range(arguments[0]) if bits[one // 8] >> (one % 8) & 1}
    return set()


def _memory(pid: int, address: int, count: int) -> bytes:
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        memory.seek(address)
        return memory.read(count)
