"""Proof that a structural change leaves the float outputs as they are, on one batch."""
import contextlib
from collections import defaultdict

import torch
from mmengine.logging import print_log
from torch.utils._pytree import tree_leaves, tree_map_only

from mmquant.models.detection import Decisions

ROUNDING = 32  # times what the last bit of the inputs changes: a net that amplifies so much amplifies rounding, too
SAMPLES = 256  # values of each module's output that are compared, to name the first that differs


class Proof:
    """Runs a model before and after a change, in float mode; a detector keeps the proposals of the first run.

    ``tolerance`` is the largest allowed change of an output, relative to its largest magnitude, in float32; of outputs
    in half precision 8 units in the last place are allowed. Other arguments: as for ``QuantizedModel.run``.
    """

    def __init__(self, model, inputs, data_samples=None, tolerance: float = 1e-4) -> None:
        self.model, self.inputs, self.data_samples, self.tolerance = model, inputs, data_samples, tolerance
        self.decisions = Decisions()
        self.outputs, self.traces = self._run()

    def check(self, edits: tuple) -> None:
        """RuntimeError, which names edit and module, if an output now differs by more than the tolerance."""
        outputs, traces = self._run()
        change, allowed = _change(self.outputs, outputs, self.tolerance)
        if change <= allowed:
            return
        nudged = tree_map_only(torch.Tensor, lambda x: torch.nextafter(x, torch.full_like(x, float('inf')))
                               if x.is_floating_point() else x, self.inputs)
        for again, factor, why in ((self.inputs, 1, 'answers the same batch differently each time'),
                                   (nudged, ROUNDING, 'amplifies the last bit of its inputs as much')):
            if change <= factor * _change(outputs, self._run(again)[0], self.tolerance)[0]:
                print_log(f'{type(self.model.architecture).__name__} {why}, so a change of its outputs by {change:.0e} '
                          'proves nothing against its structural changes', 'current')
                return
        first, guilty = self._first(traces, edits, allowed)
        module = type(self.model.architecture.get_submodule(first)).__name__
        raise RuntimeError(f'{guilty} changed the float output by {change:.2e} of its largest value, more than the '
                           f'tolerance {allowed:.0e}; the first module whose output differs is '
                           f'{first or "the model itself"} ({module}). Leave the step out, or report the model')

    def _first(self, traces: dict, edits: tuple, allowed: float) -> tuple[str, object]:
        """The first module whose output differs though it should not, and the edit just before it."""
        by_module, guilty = {name: edit for edit in edits for name in edit.changed}, edits[0]
        for (name, call), trace in traces.items():  # modules in the order in which they return
            guilty = by_module.get(name, guilty)
            before = self.traces.get((name, call))
            if name and name not in by_module and before is not None \
                    and _change([before], [trace], self.tolerance)[0] > allowed:
                return name, guilty
        return '', guilty

    @torch.no_grad()
    def _run(self, inputs=None) -> tuple[list, dict]:
        """Tensors that the model returns, and a few values of what each module call returned."""
        traces, counts = {}, defaultdict(int)  # by name and number of the call; calls by name

        def hook(name):
            def note(module, args, output):
                if isinstance(output, torch.Tensor) and output.is_floating_point() and output.numel():
                    flat = output.detach().flatten()
                    traces[name, counts[name]] = flat[::max(1, flat.numel() // SAMPLES)].clone()
                counts[name] += 1
            return note

        model = self.model
        with model.quantization(weights=False, activations=False), _exact_products(), \
                self.decisions.pinned(model.architecture, 0), contextlib.ExitStack() as stack:
            for name, module in model.architecture.named_modules():
                stack.enter_context(module.register_forward_hook(hook(name)))
            returned = model.run(self.inputs if inputs is None else inputs, self.data_samples)
        return [x for x in tree_leaves(returned) if isinstance(x, torch.Tensor)], traces


def _change(before: list, after: list, tolerance: float) -> tuple[float, float]:
    """Largest difference relative to the largest magnitude, and what is allowed; infinite for other shapes."""
    if [x.shape for x in before] != [x.shape for x in after]:
        return float('inf'), tolerance
    change, allowed = 0.0, tolerance
    for a, b in zip(before, after):
        if a.is_floating_point() and a.numel() and torch.isfinite(a).all():
            allowed = max(allowed, 8 * torch.finfo(a.dtype).eps)
            difference = ((a - b).abs().max() / a.abs().max().clamp_min(1e-12)).item()
            change = max(change, float('inf') if difference != difference else difference)
    return change, allowed


@contextlib.contextmanager
def _exact_products():
    """Products in full float32: TensorFloat-32 alone differs by more than any exact change does."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
