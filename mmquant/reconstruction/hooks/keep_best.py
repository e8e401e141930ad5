"""Choose the best decided state on held-out calibration rows."""
from mmquant.reconstruction.hooks.hook import FitHook
from mmquant.registry import FIT_HOOKS


@FIT_HOOKS.register_module()
class KeepBest(FitHook):
    """Measure decided states on held-out calibration rows; the one before the fit stays unless another is better.

    So no unit ends worse than nearest rounding (or its initial scales) there; a loss that is not finite never wins.

    Args:
        held_out (int): Calibration rows kept out of fitting to choose by; at most one in eight. Default 64.
        every (int | float): Also measure after so many steps, or this share of them (below 1). Default 0: at the end.
        choose (bool): False: measure only, and keep the last state. Default True.

    Raises:
        ValueError: For a negative number.
    """

    def __init__(self, held_out: int = 64, every: float = 0, choose: bool = True) -> None:
        if min(held_out, every) < 0:
            raise ValueError(f'held_out and every must be at least 0, got held_out={held_out}, every={every}')
        self.held_out, self.every, self.choose = held_out, every, choose

    def before_fit(self, fit) -> None:
        self._best, self._best_loss, self._losses = fit.initial, fit.initial_loss, []
        every = self.every * fit.num_iters if self.every < 1 else self.every
        self._every = max(1, int(every)) if self.every else fit.num_iters

    def after_step(self, fit, step: int) -> None:
        if (step + 1) % self._every == 0 or step + 1 == fit.num_iters:
            state = fit.variables.tuned()
            loss = fit.loss_of(state)
            self._losses.append(loss)
            if loss < self._best_loss or not self.choose:
                self._best, self._best_loss = state, loss

    def after_fit(self, fit) -> dict:
        fit.variables.restore(self._best)
        return dict(held_nearest=fit.initial_loss, held_tuned=min(self._losses, default=float('nan')),
                    kept='nearest' if self._best is fit.initial else 'tuned')
