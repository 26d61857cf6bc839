"""One event loop for asynchronous reward functions, in a thread of its own.

It stays the same from call to call, because clients that a function keeps (of a judge behind an
API, for instance) belong to the loop that they were first used in; and it is not the caller's,
because a notebook's is already running.
"""

import asyncio
import threading
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from typing import Any


def await_all(awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
    """Await all at the same time and give their results in order.

    Args:
        awaitables: coroutines that were made and not awaited yet.

    Raises:
        Exception: what the first failing one raised.
    """

    async def gather() -> list[Any]:
        return await asyncio.gather(*awaitables)

    return asyncio.run_coroutine_threadsafe(gather(), _loop()).result() if awaitables else []


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reward functions", daemon=True).start()
    return loop
