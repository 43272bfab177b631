"""TCP proxies that misbehave on command: they delay, cut and swallow what passes through them.

One thread with an event loop serves all proxies. Every method may be called from any thread and returns when it is done.
"""

import asyncio
import socket
import struct
import threading

CHUNK_BYTES = 64 * 1024
CONNECT_SECONDS = 5


class Proxies:
    """`with Proxies() as proxies: proxy = proxies.add(lambda: port)`; leaving closes all of them."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies")
        self._all = []

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        for proxy in self._all:
            proxy.close()
        self.call(self._end_tasks)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end_tasks(self):
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def call(self, function, *arguments):
        return asyncio.run_coroutine_threadsafe(function(*arguments), self._loop).result()

    def add(self, target_port):
        """`target_port()` is asked at every new connection."""
        proxy = Proxy(self, target_port)
        self._all.append(proxy)
        return proxy


class Proxy:
    """Listens on 127.0.0.1:`port`. A blackhole keeps what it swallows and passes it on when it ends, as TCP would."""

    def __init__(self, proxies, target_port):
        self._proxies, self._target_port = proxies, target_port
        self._delay_seconds = 0.0
        self._writers = set()
        proxies.call(self._start)

    async def _start(self):
        self._open = asyncio.Event()
        self._open.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def delay(self, seconds):
        """Every chunk in either direction waits this long; 0 ends it."""
        self._proxies.call(self._set, "_delay_seconds", seconds)

    async def _set(self, name, value):
        setattr(self, name, value)

    def blackhole(self, on):
        self._proxies.call(self._set_blackhole, on)

    async def _set_blackhole(self, on):
        self._open.clear() if on else self._open.set()

    def cut(self):
        """Resets (RST) every connection; returns how many."""
        return self._proxies.call(self._cut)

    async def _cut(self):
        writers, self._writers = self._writers, set()
        for writer in writers:
            reset(writer)
        return len(writers)

    def close(self):
        self._proxies.call(self._close)

    async def _close(self):
        self._server.close()
        await self._cut()

    async def _serve(self, reader, writer):
        self._writers.add(writer)
        far_writer = None
        try:
            await self._open.wait()
            far_reader, far_writer = await asyncio.wait_for(
                asyncio.open_connection("127.0.0.1", self._target_port()), CONNECT_SECONDS)
            self._writers.add(far_writer)
            pumps = [asyncio.ensure_future(self._pump(*ends)) for ends in ((reader, far_writer), (far_reader, writer))]
            # The first side that ends ends the connection: gRPC does not use half-open ones.
            _, rest = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in rest:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.TimeoutError):
            pass  # nobody listens behind: the caller sees a reset
        finally:
            for end in (writer, far_writer):
                if end is not None:
                    self._writers.discard(end)
                    reset(end)

    async def _pump(self, reader, writer):
        while data := await reader.read(CHUNK_BYTES):
            if self._delay_seconds:
                await asyncio.sleep(self._delay_seconds)
            await self._open.wait()
            writer.write(data)
            await writer.drain()


def reset(writer):
    """Closes with RST: what is in flight is lost."""
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
