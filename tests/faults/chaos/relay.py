"""TCP links that can be frozen and dropped at will: a port of its own for each member, all to one master."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any, Callable, Coroutine, Set, TypeVar

HOST = "127.0.0.1"
_PIECE = 1 << 16
_MOMENT_S = 0.01
_T = TypeVar("_T")


class Relay:
    """The thread that carries the bytes of all links. Leaving the block drops them all."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay")
        self._links: Set[Link] = set()

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            self._run(link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def link(self, port: int) -> Link:
        """A new link to that port of this machine."""
        link = Link(port, self._call)
        self._run(link.listen())
        self._links.add(link)
        return link

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _call(self, function: Callable[[], None]) -> None:
        """Have the thread call this, and wait for it."""

        async def call() -> None:
            function()

        self._run(call())


class Link:
    """The way of one member to the master; `port` is where it begins."""

    def __init__(self, target: int, call: Callable[[Callable[[], None]], None]) -> None:
        self.port = 0
        self._flow: asyncio.Event  # in Python 3.9 it belongs to the loop in which it is made
        self._target = target
        self._call = call
        self._carriers: Set[asyncio.Task[None]] = set()
        self._writers: Set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        """Open it. In the relay's thread, like `close`."""
        self._flow = asyncio.Event()
        self._flow.set()
        self._server = await asyncio.start_server(self._carry, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Drop everything and let nobody in any more."""
        await asyncio.sleep(
            _MOMENT_S
        )  # a server that is closed while it lets somebody in forgets that socket
        self._server.close()
        self._flow.set()
        while self._carriers:
            self._abort()
            await asyncio.sleep(_MOMENT_S)
        await self._server.wait_closed()

    def freeze(self) -> None:
        """Let nothing through, as if a cable had been pulled: no end of a connection either."""
        self._call(lambda: self._flow.clear())

    def thaw(self) -> None:
        """Go on, with what has been sent meanwhile."""
        self._call(lambda: self._flow.set())

    def drop(self) -> None:
        """Break all connections, at both ends. New ones are welcome."""
        self._call(self._abort)

    def _abort(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end."""
        carrier = asyncio.current_task()
        assert carrier is not None
        self._carriers.add(carrier)
        self._writers.add(writer)
        onward = None
        try:
            await self._flow.wait()
            back, onward = await asyncio.open_connection(HOST, self._target)
            self._writers.add(onward)
            await asyncio.gather(self._pump(reader, onward), self._pump(back, writer))
        except OSError:
            pass  # no master there, or one of the ends is gone: so is the other in a moment
        finally:
            for end in filter(None, (writer, onward)):
                self._writers.discard(end)
                end.transport.abort()
                with contextlib.suppress(OSError):
                    await end.wait_closed()
            self._carriers.discard(carrier)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one direction until its end, and pass that on."""
        while True:
            piece = await reader.read(_PIECE)
            await self._flow.wait()
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
