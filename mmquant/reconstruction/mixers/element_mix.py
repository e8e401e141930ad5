"""Random dropping of quantization, element by element (QDrop, arXiv 2203.05740)."""
import torch

from mmquant.reconstruction.mixers.mixer import Mixer
from mmquant.registry import MIXERS


@MIXERS.register_module()
class ElementMix(Mixer):
    """Each element comes from the quantized prefix with probability ``quant_prob``, else from the float one.

    QDrop (arXiv 2203.05740). The mask is drawn anew in each training step and for each tensor.

    Args:
        quant_prob (float): In [0, 1]; 1 is the quantized prefix alone, 0 the float one. Default 0.5.
        inside (bool): Also drop the rounding of activations inside the unit, with the same probability. Default False.

    Raises:
        ValueError: For a probability outside [0, 1].
    """

    def __init__(self, quant_prob: float = 0.5, inside: bool = False) -> None:
        if not 0 <= quant_prob <= 1:
            raise ValueError(f'quant_prob must be between 0 and 1, got {quant_prob}')
        self.quant_prob, self.inside = quant_prob, inside

    def __call__(self, quant, exact):
        """Mix two tensors of one shape; tuples one by one, and what is not floating-point not at all."""
        if isinstance(quant, tuple):
            return tuple(self(q, x) for q, x in zip(quant, exact, strict=True))
        if not quant.is_floating_point():
            return quant
        if self.quant_prob in (0, 1):
            return quant if self.quant_prob else exact
        return torch.lerp(exact, quant, _mask(quant, self.quant_prob))


def _mask(like: torch.Tensor, prob: float) -> torch.Tensor:
    """1 with probability ``prob`` (to 2^-16), else 0, in the memory order of ``like``.

    16 random bits an element, and arithmetic with floats: on a CPU ``rand`` and ``where`` are several times slower.
    """
    count, mask = like.numel(), torch.empty_like(like, dtype=torch.float32)
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=like.device).random_(-2**63, 2**63 - 1)
    mask.as_strided((count, ), (1, )).copy_(draws.view(torch.int16)[:count]).lt_(round(prob * 2**16) - 2**15)
    return mask.to(like.dtype)
