"""Progress bars with an estimate of the time left; plain log lines where no terminal shows them."""
import contextlib
import time
from types import SimpleNamespace

from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress(description: str, total: int):
    """A bar for ``total`` parts of work; yields an object with ``update(done, text)``, ``text`` saying on what."""
    console = Console(stderr=True)
    started = logged = time.monotonic()

    def log(done: int, text: str = '') -> None:
        nonlocal logged
        now = time.monotonic()
        if done and (now - logged > 15 or done == total):
            logged = now
            left = (now - started) / done * (total - done)
            MMLogger.get_current_instance().info(f'{description}: {done / total:.0%}, {text}, elapsed '
                                                 f'{now - started:.0f} s, left {left:.0f} s')

    if not console.is_terminal:
        yield SimpleNamespace(update=log)
        return
    columns = (TextColumn('{task.description}'), BarColumn(), TextColumn('{task.percentage:>3.0f}%'),
               TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn(), TextColumn('{task.fields[note]}'))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, note='')
        yield SimpleNamespace(update=lambda done, text='': bar.update(task, completed=done, note=text))


def silent(description: str, total: int):
    """As :func:`progress`, for nobody to see."""
    return contextlib.nullcontext(SimpleNamespace(update=lambda done, text='': None))
