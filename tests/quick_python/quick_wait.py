"""How the program waits for its outputs in tests: a sixth of its time with one host, more with several."""

from __future__ import annotations

import asyncio
from typing import Any


class QuickWait:
    """asyncio, for the SDK's module that waits for a program's outputs. For each that is done, it looks at all others once more."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def wait(self, tasks: list[asyncio.Future[Any]], *, return_when: str) -> tuple[set[Any], set[Any]]:
        """What has failed, as soon as something has, and what isn't done by then; nothing when all are done, also those that came meanwhile."""
        from pulumi.runtime.settings import SETTINGS

        assert return_when == asyncio.FIRST_COMPLETED
        waiting: set[asyncio.Future[Any]] = set()
        done: list[asyncio.Future[Any]] = []
        woken = asyncio.Event()

        def ended(task: asyncio.Future[Any]) -> None:
            done.append(task)
            woken.set()

        while True:
            for task in tasks:
                task.add_done_callback(ended)
            waiting.update(tasks)
            if not waiting:
                return set(), set()
            await woken.wait()
            woken.clear()
            waiting.difference_update(done)
            if failed := {task for task in done if task.cancelled() or task.exception()}:
                for task in waiting:
                    task.remove_done_callback(ended)
                return failed, waiting
            done.clear()
            with SETTINGS.lock:
                tasks = [task for task in SETTINGS.outputs if task not in waiting]
                SETTINGS.outputs.clear()
