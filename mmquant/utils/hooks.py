"""Hooks of modules that go when they are no longer needed."""
from __future__ import annotations

import contextlib
from collections.abc import Callable

from torch import nn


@contextlib.contextmanager
def hooked(modules: dict[str, nn.Module], make: Callable[[str], Callable], before: bool = False):
    """While this lasts, ``make(name)`` is called after (or ``before``) each call of the module of that name."""
    handles = [(m.register_forward_pre_hook if before else m.register_forward_hook)(make(name))
               for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
