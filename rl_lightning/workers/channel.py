"""Messages between two processes, over a socket that neither waits on for ever."""

from __future__ import annotations

import math
import select
import socket
import struct
from typing import NamedTuple

_HEADER = struct.Struct("<QB")
_CHUNK = 1 << 16

RING, MESSAGE, FAILURE, DONE = range(4)
"""Kinds of frames: wake up; a pickled object; a worker's traceback; its work is done."""


def wait_for(fd: int, event: int, timeout_s: float | None) -> bool:
    """Whether `event` (`select.POLLIN`, `POLLOUT`) or the other side's end comes in that time. None: wait for ever.

    Unlike `select.select`, this takes descriptors above 1,023.
    """
    poller = select.poll()
    poller.register(fd, event)
    return bool(poller.poll(None if timeout_s is None else math.ceil(1000 * timeout_s)))


class Frame(NamedTuple):
    """One message, or what stands in for one."""

    kind: int
    content: bytes


class Channel:
    """One end of a two-way stream of frames.

    Attributes:
        closed: the other end is gone, and all that came is read.
    """

    closed = False

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._incoming, self._outgoing = bytearray(), bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, kind: int, content: bytes = b"") -> bool:
        """Send, as far as the other end has room; the rest with `flush`. Returns whether all is gone."""
        self._outgoing += _HEADER.pack(len(content), kind)
        self._outgoing += content
        return self.flush()

    def flush(self) -> bool:
        """Send what is left, as far as there is room. Returns whether all is gone, or nobody is there to read it."""
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            return False
        except OSError:  # the other end is gone
            self._outgoing.clear()
        return True

    def receive(self, *, wait: bool = False) -> list[Frame]:
        """The frames that have come, whole ones only; with `wait` at least a part of one has, or the end is gone."""
        flags = 0 if wait else socket.MSG_DONTWAIT
        while True:
            try:
                chunk = self._socket.recv(_CHUNK, flags)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                self.closed = True
                break
            self._incoming += chunk
            if len(chunk) < _CHUNK:
                break
            flags = socket.MSG_DONTWAIT
        return self._whole_frames()

    def _whole_frames(self) -> list[Frame]:
        frames: list[Frame] = []
        start = 0
        while len(self._incoming) - start >= _HEADER.size:
            size, kind = _HEADER.unpack_from(self._incoming, start)
            end = start + _HEADER.size + size
            if len(self._incoming) < end:
                break
            frames.append(Frame(kind, bytes(self._incoming[start + _HEADER.size : end])))
            start = end
        del self._incoming[:start]
        return frames

    def end_sending(self) -> None:
        """Let the other end know that nothing more will come."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it is gone, and knows

    def close(self) -> None:
        self._socket.close()
