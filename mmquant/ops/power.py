"""Power of a non-negative tensor, in place."""
from torch import Tensor


def power_(x: Tensor, exponent: float | Tensor) -> Tensor:
    """``x ** exponent`` in place, for ``x >= 0``, without gradient; returns ``x``.

    On a CPU the vectorised ``exp(exponent * log(x))`` is four times faster than ``pow`` and good to about 1e-6 relative
    (0 and 1 stay exact).

    The exponent is >= 0; a scalar tensor where its value must not be looked at (captured CUDA graphs).
    """
    if not isinstance(exponent, Tensor) and exponent in (1, 2):
        return x if exponent == 1 else x.square_()
    if isinstance(exponent, Tensor) or x.device.type != 'cpu' or exponent == 0:
        return x.pow_(exponent)
    return x.log_().mul_(exponent).exp_()
