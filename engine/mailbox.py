"""The engine's end of the socket: a ROUTER that knows which server asked for which request.

A server process that dies cannot cancel what it asked for, so another one, which saw it die, says
`Forget`. What the dead one had sent may still come in after that, and is dropped.
"""

import os
from collections import defaultdict
from collections.abc import Iterator

import zmq

from engine.client import EngineInfo
from engine.ipc import (
    Cancel,
    Deltas,
    Failed,
    Forget,
    Heartbeat,
    Hello,
    Ready,
    Submit,
    ToEngine,
    ToServer,
    decode_to_engine,
    encode,
)
from engine.request import TokenDelta


class SocketMailbox:
    """Implements `engine.loop.Mailbox`. Used by the loop's thread only."""

    def __init__(self, address: str, info: EngineInfo) -> None:
        """Bind `address`, an ipc:// endpoint in a folder that only this user can enter."""
        self._info = info
        self._socket = zmq.Context.instance().socket(zmq.ROUTER)
        # Never drop, never wait. A server process takes what comes whatever its clients do, and
        # bounds what they leave unread (`unread.py`). One that hangs can be owed no more than what
        # the requests it had sent may still generate: it sends no others.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)
        os.chmod(address.removeprefix("ipc://"), 0o600)
        self._peers: list[bytes] = []
        self._peer_of: dict[str, bytes] = {}  # by request id, until its end
        self._gone: set[bytes] = set()

    def receive(self, timeout_s: float) -> Iterator[Submit | Cancel]:
        if not self._socket.poll(int(timeout_s * 1000)):
            return
        while True:
            try:
                peer, frame = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message: ToEngine = decode_to_engine(frame)
            if peer in self._gone:
                continue
            match message:
                case Hello():
                    self._peers.append(peer)
                    self._send_to(peer, Ready(self._info))
                case Submit() as submit:
                    self._peer_of[submit.request.id] = peer
                    yield submit
                case Cancel() as cancel:
                    self._peer_of.pop(cancel.request_id, None)
                    yield cancel
                case Forget(gone):
                    yield from self._forget(gone)

    def send(self, message: Deltas | Failed | Heartbeat) -> None:
        match message:
            case Heartbeat():
                for peer in self._peers:
                    self._send_to(peer, message)
            case Failed():
                if peer := self._peer_of.pop(message.request_id, None):
                    self._send_to(peer, message)
            case Deltas():
                by_peer: defaultdict[bytes, list[TokenDelta]] = defaultdict(list)
                for delta in message.deltas:
                    if peer := self._peer_of.get(delta.request_id):
                        by_peer[peer].append(delta)
                    if delta.finish is not None:
                        self._peer_of.pop(delta.request_id, None)
                for peer, deltas in by_peer.items():
                    self._send_to(peer, Deltas(tuple(deltas)))

    def _forget(self, gone: bytes) -> Iterator[Cancel]:
        self._gone.add(gone)
        if gone in self._peers:
            self._peers.remove(gone)
        for request_id in [i for i, peer in self._peer_of.items() if peer == gone]:
            del self._peer_of[request_id]
            yield Cancel(request_id)

    def _send_to(self, peer: bytes, message: ToServer) -> None:
        self._socket.send_multipart((peer, encode(message)))
