"""Proof that a structural change leaves the float outputs as they are, on one batch."""
import contextlib
import logging
from collections import defaultdict

import torch
from mmengine.logging import print_log
from torch.utils._pytree import tree_map_only

from mmquant.models.reference import Reference, change_of
from mmquant.utils.contexts import hooked

ROUNDING = 32  # times what the last bit of the inputs changes: a net that amplifies so much amplifies rounding, too
SAMPLES = 256  # values of each module's output that are compared, to name the first that differs


class Proof:
    """Runs a model before and after a change, in float mode; a detector keeps the proposals of the first run.

    ``tolerance`` is the largest allowed change of an output, see :func:`change_of`. Other arguments: as for
    ``QuantizedModel.run``.
    """

    def __init__(self, model, inputs, data_samples=None, tolerance: float = 1e-4) -> None:
        self.model, self.inputs, self.tolerance = model, inputs, tolerance
        with self._traced() as self.traces:
            self.reference = Reference(model, [(inputs, data_samples)])

    @property
    def blind(self) -> bool:
        """Whether the outputs are all zero (a head that begins at zero), so that they show no change."""
        return not any(bool(x.any()) for x in self.reference.outputs[0])

    def holds(self, outputs: list) -> bool:
        """Whether outputs for the batch show no change beyond the tolerance."""
        change, allowed = change_of(self.reference.outputs[0], outputs, self.tolerance)
        return change <= allowed and not self.blind

    def check(self, edits: tuple) -> None:
        """RuntimeError, which names edit and module, if an output now differs by more than the tolerance.

        A net that answers differently each time, or amplifies rounding, proves nothing: a warning says so.
        """
        with self._traced() as traces:
            outputs = self._run()
        change, allowed = change_of(self.reference.outputs[0], outputs, self.tolerance)
        if change <= allowed and not self.blind:
            return
        first, guilty = self._first(traces, edits, allowed)
        if change <= allowed:
            if first:
                print_log(f'the outputs are all zero, so whether {guilty} is right is NOT proven: the first module '
                          f'whose own output changed is {first}. Load trained weights', 'current', logging.WARNING)
            return
        module = type(self.model.architecture.get_submodule(first)).__name__
        nudged = tree_map_only(torch.Tensor, lambda x: torch.nextafter(x, torch.full_like(x, float('inf')))
                               if x.is_floating_point() else x, self.inputs)
        seen = (f'{guilty} changed the float output by {change:.2e} of its largest value, more than the tolerance '
                f'{allowed:.0e}; the first module whose output differs is {first or "the model itself"} ({module})')
        for again, factor, why in ((self.inputs, 1, 'answers the same batch differently each time'),
                                   (nudged, ROUNDING, 'amplifies the last bit of its inputs as much')):
            if change <= factor * change_of(outputs, self._run(again), self.tolerance)[0]:
                print_log(f'{seen}. {type(self.model.architecture).__name__} {why}, so whether this change is right '
                          'is NOT proven: compare the accuracy of the float model before and after', 'current',
                          logging.WARNING)
                return
        raise RuntimeError(f'{seen}. Leave the step out, or report the model')

    def _first(self, traces: dict, edits: tuple, allowed: float) -> tuple[str, object]:
        """The first module whose output differs though it should not, and the edit just before it."""
        by_module, guilty = {name: edit for edit in edits for name in getattr(edit, 'changed', ())}, edits[0]
        for (name, call), trace in traces.items():  # modules in the order in which they return
            guilty = by_module.get(name, guilty)
            before = self.traces.get((name, call))
            if name and name not in by_module and before is not None \
                    and change_of([before], [trace], self.tolerance)[0] > allowed:
                return name, guilty
        return '', guilty

    def _run(self, inputs=None) -> list:
        with self.model.quantization(weights=False, activations=False):
            return self.reference.run(self.model, 0, inputs)

    @contextlib.contextmanager
    def _traced(self):
        """A few values of what each module call inside returns, by name and number of the call."""
        traces, counts = {}, defaultdict(int)

        def note(name, module, args, output):
            plain = isinstance(output, torch.Tensor) and output.layout is torch.strided and not output.is_nested
            if plain and output.is_floating_point() and output.numel():
                flat = output.detach().flatten()
                traces[name, counts[name]] = flat[::max(1, flat.numel() // SAMPLES)].clone()
            counts[name] += 1

        with hooked(dict(self.model.architecture.named_modules()), note):
            yield traces
