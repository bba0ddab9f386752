"""A uvicorn server that ends without tracebacks: what has not ended in time is disconnected.

A request then ends as one of a client that went away, and nothing is cancelled from outside.
"""

import asyncio
import logging
import signal
import socket

import uvicorn

logger = logging.getLogger(__name__)
POLL = 0.05  # seconds


class EndingServer(uvicorn.Server):  # type: ignore[misc]  # uvicorn is an extra, mypy does not follow it
    """Ends at the first signal: running answers have `seconds`; a second Ctrl-C disconnects them."""

    should_exit: bool

    def __init__(self, config: uvicorn.Config, seconds: float) -> None:
        super().__init__(config)
        self.seconds = seconds
        self.is_hurried = False
        self.num_cut = 0
        """Connections that were closed before their answers were whole."""

    def handle_exit(self, sig: int, frame: object = None) -> None:
        """Note a signal, in the place of uvicorn's handler, which raises it again at the end."""
        self.is_hurried |= self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and wait for the running ones as long as they may take."""
        logger.info("no more requests are taken")
        cutting = asyncio.ensure_future(self._cut_late())
        await super().shutdown(sockets)
        cutting.cancel()

    async def _cut_late(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.seconds
        while loop.time() < end and not self.is_hurried:
            await asyncio.sleep(POLL)
        connections = list(self.server_state.connections)
        self.num_cut = len(connections)
        if connections:
            logger.warning("%d connections were cut before their answers were whole", self.num_cut)
        for connection in connections:
            connection.transport.abort()
