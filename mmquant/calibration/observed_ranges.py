"""Ranges of activation quantizers from what passes them."""
import contextlib
import copy
import logging
from collections.abc import Callable, Mapping

import torch
from mmengine.logging import print_log

from mmquant.observers import Observer
from mmquant.quantizers import Quantizer
from mmquant.utils.distributed import gather_rows

DEFAULT_OBSERVER = {'type': 'mmquant.LpNormObserver', 'p': 2.4}  # BRECQ
FAR_APART = 100  # times the largest value of one call is that of another, of the same quantizer, before it is told


@contextlib.contextmanager
def observed_ranges(quantizers: Mapping[str, Quantizer], observer: Observer, images: Callable[[], int],
                    at_once: bool = True):
    """Set the ranges of quantizers from the tensors that they meet inside this block; quantizers need no range yet.

    Yields a dict: place -> largest magnitude of each tensor that was met there, in order.

    Args:
        quantizers (Mapping[str, Quantizer]): By place, for messages; each gets a copy of the observer.
        images (Callable): Number of images of this process in the pass under way.
        at_once (bool): Set a range before the quantizer itself works on the tensor, so that what follows meets it.
            False: when the block ends.

    ValueError, with the place, for NaN or infinite values.
    """
    observers, handles = {}, []
    largest: dict[str, list[float]] = {name: [] for name in quantizers}

    def set_range(name):
        quantizers[name].set_range(*observers[name].range(quantizers[name]))

    def watch(name):
        def hook(quantizer, args):
            try:
                observers[name].observe(gather_rows(args[0], images()))
                largest[name].append(torch.linalg.vector_norm(args[0].detach(), torch.inf).item())
                if at_once:
                    set_range(name)
            except ValueError as error:
                raise ValueError(f'activation at {name}: {error}') from error

        return hook

    for name, quantizer in quantizers.items():
        observers[name] = copy.deepcopy(observer)
        observers[name].reset(quantizer.granularity)
        observers[name].share(quantizer.num_scales)
        quantizer.initialized = False
    try:
        handles += [q.register_forward_pre_hook(watch(name)) for name, q in quantizers.items()]
        yield largest
    finally:
        for handle in handles:
            handle.remove()
    for name in () if at_once else quantizers:
        if observers[name].low is not None:  # else no image reached it, which callers tell better
            set_range(name)


def warn_of_calls_far_apart(largest: Mapping[str, list[float]], passes: int) -> None:
    """Warn of input quantizers that serve several calls of one layer, from what they met in so many passes.

    The range is that of the largest call; what is ``FAR_APART`` times smaller keeps two or three levels of 8 bits.
    """
    found = {}
    for name, met in largest.items():
        calls = len(met) // passes if name.endswith('.input') else 0
        sizes = [x for x in (max(met[call::calls]) for call in range(calls)) if x]  # zero is exact on every grid
        if sizes and max(sizes) >= FAR_APART * min(sizes):
            found[name] = max(sizes) / min(sizes), calls
    if found:
        worst = max(found, key=found.get)
        ratio, calls = found[worst]
        others = f' ({len(found) - 1} other quantizers, too)' if len(found) > 1 else ''
        print_log(f'{worst} is one quantizer for {calls} calls whose largest values differ {ratio:.0f}-fold, so '
                  f'the smaller ones lose nearly all levels{others}: give each call its own with '
                  'quantizer.per_call=True (mmquant.quantize: per_call=True)', 'current', logging.WARNING)
