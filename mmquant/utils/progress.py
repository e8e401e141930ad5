"""Progress bars with an estimate of the time left; plain log lines where no terminal shows them."""
from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace

from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class _Bar:

    def __init__(self, description: str, total: int, bar: Progress | None) -> None:
        self.description, self.total, self.bar = description, total, bar
        self.task = bar.add_task(description, total=total, note='') if bar else None
        self.started = self.logged = time.monotonic()

    def update(self, done: int, text: str = '') -> None:
        """``done`` of ``total`` parts are finished; ``text`` says on what."""
        if self.bar:
            self.bar.update(self.task, completed=done, note=text)
            return
        now = time.monotonic()
        if done and (now - self.logged > 15 or done == self.total):
            self.logged = now
            left = (now - self.started) / done * (self.total - done)
            MMLogger.get_current_instance().info(
                f'{self.description}: {done / self.total:.0%}, {text}, elapsed {now - self.started:.0f} s, '
                f'left {left:.0f} s')


@contextlib.contextmanager
def progress(description: str, total: int):
    """A bar for ``total`` parts of work; yields an object with ``update(done, text)``."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Bar(description, total, None)
        return
    columns = TextColumn('{task.description}'), BarColumn(), TextColumn('{task.percentage:>3.0f}%'), \
        TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn(), TextColumn('{task.fields[note]}')
    with Progress(*columns, console=console) as bar:
        yield _Bar(description, total, bar)


def silent(description: str, total: int):
    """As :func:`progress`, for nobody to see."""
    return contextlib.nullcontext(SimpleNamespace(update=lambda done, text='': None))
