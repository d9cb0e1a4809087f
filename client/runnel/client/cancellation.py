"""Whether work was called off, where its clean-up has raised something else."""

from __future__ import annotations

import asyncio


def is_called_off() -> bool:
    """Whether the current task is being cancelled: an error that it has then is of its clean-up, and it has to end.

    Not to be asked within an ``asyncio.timeout``, which cancels the task too.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
