"""What the float model returned before its first change: changes and the quantized net are compared with that."""
import contextlib

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mmquant.models.detection import Decisions


class Reference:
    """Outputs of a float model for some batches (inputs, data samples); a detector's proposals are kept with them."""

    def __init__(self, model, batches: list[tuple]) -> None:
        self.batches, self.decisions = batches, Decisions()
        with model.quantization(weights=False, activations=False):
            self.outputs = [self.run(model, index) for index in range(len(batches))]

    @torch.no_grad()
    def run(self, model, index: int = 0, inputs=None) -> list[Tensor]:
        """Tensors that a model returns for a batch, or for other inputs of its size, in its present mode."""
        images, samples = self.batches[index]
        with _exact_products(), self.decisions.pinned(model.architecture, index):
            returned = model.run(images if inputs is None else inputs, samples)
        return [x.detach() for x in tree_leaves(returned) if isinstance(x, Tensor)]


def change_of(before: list[Tensor], after: list[Tensor], tolerance: float) -> tuple[float, float]:
    """Largest difference relative to the largest magnitude, and what is allowed; infinite for other shapes.

    ``tolerance`` holds in float32; of half precision 8 units in the last place are allowed. Whole numbers are choices,
    which may turn over at the last bit: they count only if nothing else is there.
    """
    if [x.shape for x in before] != [x.shape for x in after]:
        return float('inf'), tolerance
    change, allowed = 0.0, tolerance
    pairs = [[torch.view_as_real(x) if x.is_complex() else x for x in pair] for pair in zip(before, after)]
    fractions = [pair for pair in pairs if pair[0].is_floating_point() and pair[0].numel()]
    for a, b in fractions or [[x.double() for x in pair] for pair in pairs if pair[0].numel()]:
        finite = torch.isfinite(a)
        if not torch.equal(finite, torch.isfinite(b)):
            return float('inf'), tolerance
        allowed = max(allowed, 8 * torch.finfo(a.dtype).eps)
        a, b = a[finite], b[finite]
        change = max(change, float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) if a.numel() else 0)
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
