"""Ranges of activation quantizers from what passes them."""
import contextlib
import copy
from collections.abc import Callable, Mapping

from mmquant.observers import Observer
from mmquant.quantizers import Quantizer
from mmquant.utils.distributed import gather_rows

DEFAULT_OBSERVER = {'type': 'mmquant.LpNormObserver', 'p': 2.4}  # BRECQ


@contextlib.contextmanager
def observed_ranges(quantizers: Mapping[str, Quantizer], observer: Observer, images: Callable[[], int],
                    at_once: bool = True):
    """Set the ranges of quantizers from the tensors that they meet inside this block; quantizers need no range yet.

    Args:
        quantizers (Mapping[str, Quantizer]): By place, for messages; each gets a copy of the observer.
        images (Callable): Number of images of this process in the pass under way.
        at_once (bool): Set a range before the quantizer itself works on the tensor, so that what follows meets it.
            False: when the block ends.

    ValueError, with the place, for NaN or infinite values.
    """
    observers, handles = {}, []

    def set_range(name):
        quantizers[name].set_range(*observers[name].range(quantizers[name]))

    def watch(name):
        def hook(quantizer, args):
            try:
                observers[name].observe(gather_rows(args[0], images()))
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
        yield
    finally:
        for handle in handles:
            handle.remove()
    for name in () if at_once else quantizers:
        if observers[name].low is not None:  # else no image reached it, which callers tell better
            set_range(name)
