"""LAPQ (arXiv 1911.07190): phases 1 and 2 are :class:`NormSweep`, phase 3 is :class:`JointSearch`.

Formulas, and where this differs from the authors' code: :mod:`mmquant.algorithms.recipes.lapq`.
"""
import math
from collections.abc import Sequence
from dataclasses import asdict

from mmengine.logging import print_log

from mmquant.algorithms.ranges import InitActivationRange, InitWeightRange
from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.losses.objectives import Objective, build_objective
from mmquant.registry import OBJECTIVES, OBSERVERS, SEARCHERS, STEPS
from mmquant.search import ClipProblem, fit_parabola
from mmquant.utils.building import ConfigError, build
from mmquant.utils.distributed import share

NORMS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
OBSERVER = {'type': 'mmquant.LpNormObserver', 'max_samples': 2**17, 'refinements': 1}
WHOLE_RANGE = {'type': 'mmquant.MinMaxObserver'}


class _LossStep(Step):
    """A step that evaluates the network's loss on the first ``num_images`` calibration images; None: on all."""
    evaluates = (True, True)

    def __init__(self, objective: dict | None, num_images: int | None, name: str) -> None:
        super().__init__(name)
        if num_images is not None and num_images < 1:
            raise ConfigError(f'num_images must be at least 1, or None for all, got {num_images}')
        if objective is not None:
            build(OBJECTIVES, objective, f'{type(self).__name__}.objective')
        self.objective, self.num_images = objective, num_images

    def _loss(self, context: CalibrationContext) -> tuple[CalibrationContext, Objective]:
        """The context on this process's part of the images, and the loss there."""
        images = context.subset(share(self.num_images) if self.num_images else None)
        return images, build_objective(images, self.objective, f'{type(self).__name__}.objective')


@STEPS.register_module()
class NormSweep(_LossStep):
    """Layer-wise optima for several p, and for p* of the parabola through their losses; the best of all stays.

    A unit is one candidate: the range of the whole tensors (p None), each p, p*.

    Args:
        norms (sequence[float]): Values of p, above 0. Default 1.5, 2, ..., 4, 5. With fewer than three different ones
            there is no fit: the best of them stays.
        observer (dict): Search of the optimum; ``p`` is filled in. Default: ``LpNormObserver`` with one refinement.
        num_images (int | None): Calibration images whose loss counts; None for all. Default 512.
        init_images (int): Images that activation clips are found on, in one forward pass. Default 128.
        objective (dict | None): See :class:`JointSearch`.

    Raises:
        ConfigError: For an empty list, a p that is not above 0, or no images.
    """

    def __init__(self, norms: Sequence[float] = NORMS, observer: dict | None = None, num_images: int | None = 512,
                 init_images: int = 128, objective: dict | None = None, name: str = 'norm') -> None:
        super().__init__(objective, num_images, name)
        if not norms or any(not p > 0 for p in norms):
            raise ConfigError(f'norms must be at least one number above 0, got {norms!r}')
        self.norms, self.init_images, self.observer = tuple(map(float, norms)), init_images, dict(observer or OBSERVER)
        for p in self.norms:
            build(OBSERVERS, {**self.observer, 'p': p}, 'NormSweep.observer')

    def run(self, context: CalibrationContext) -> None:
        """Try every candidate and leave the model at the best.

        ConfigError if nothing can be searched, or the objective lacks labels; FloatingPointError if all are infinite.
        """
        if context.first_unit == 0:
            context.state = dict(losses=[])
        images, objective = self._loss(context)
        candidates = [None, *self.norms]
        with context.progress(f'{self.name} ({len(candidates)} values of p)', len(candidates)) as bar:
            for index in range(context.first_unit, len(candidates)):
                loss = self._try(context, images, objective, index, candidates[index])
                bar.update(index + 1, f'p {candidates[index] or "-"} loss {loss:.4g}')
        losses = dict(context.state['losses'])
        fit = fit_parabola(self.norms, [losses[p] for p in self.norms])
        if fit.vertex is not None and len(context.state['losses']) == len(candidates):
            self._try(context, images, objective, len(candidates), fit.vertex)
        losses = dict(context.state['losses'])
        best = min(losses, key=losses.get)
        if math.isinf(losses[best]):
            raise FloatingPointError(f'the loss is NaN or infinite for all of {len(losses)} candidates (whole range, '
                                     f'p = {self.norms}); check the float model and the calibration images')
        context.records.append(dict(kind='norm_fit', step=self.name, branch=fit.branch, p_star=fit.vertex,
                                    coefficients=fit.coefficients and list(fit.coefficients), best_p=best,
                                    loss=losses[best]))
        self._initialize(context, best)
        print_log(f'{self.name}: parabola {fit.branch}, p* {fit.vertex}; best p {best}, loss {losses[best]:.5f} '
                  f'(whole range {losses[None]:.5f})', 'current')

    def _try(self, context: CalibrationContext, images: CalibrationContext, objective: Objective, index: int,
             p: float | None) -> float:
        self._initialize(context, p)
        with ClipProblem(images, objective, context.amp) as problem:
            loss = problem.loss([0.0] * problem.size)
        context.state['losses'].append((p, loss))
        context.records.append(dict(kind='norm', step=self.name, p=p, loss=loss if math.isfinite(loss) else None))
        context.unit_done(index)
        return loss

    def _initialize(self, context: CalibrationContext, p: float | None) -> None:
        observer = WHOLE_RANGE if p is None else {**self.observer, 'p': p}
        InitWeightRange(observer).run(context)
        if context.model.activation_quantizers():
            InitActivationRange(observer, self.init_images, self.init_images).run(context)


@STEPS.register_module()
class JointSearch(_LossStep):
    """Minimise the network's loss over all clips at once, from the present ones.

    A unit is one phase or sweep of the searcher. The result is never worse than the start, on the calibration images.

    Args:
        searcher (dict): ``PowellSearch`` (the paper), ``CoordinateDescent``, ``GradientSearch`` or ``PatternSearch``
            (default).
        objective (dict | None): ``CrossEntropy`` (default where the calibration images have labels),
            ``OutputDivergence`` (default where not), ``LogitDistance``, or ``TrainingLoss`` for detectors of one stage.
        num_images (int | None): Calibration images to evaluate on; None for all. Default 512.
    """

    def __init__(self, searcher: dict | None = None, objective: dict | None = None, num_images: int | None = 512,
                 name: str = 'joint') -> None:
        super().__init__(objective, num_images, name)
        self.searcher = build(SEARCHERS, searcher or {'type': 'mmquant.PatternSearch'}, 'JointSearch.searcher')

    def run(self, context: CalibrationContext) -> None:
        """Search; reports losses, evaluations and image-forwards of each unit.

        ConfigError if nothing can be searched, the loss is random, or the objective lacks labels; FloatingPointError if
        the loss at the start is not finite.
        """
        if context.first_unit == 0:
            context.state = {}
        images, objective = self._loss(context)
        units = self.searcher.num_units
        with context.progress(f'{self.name} ({units} units)', units) as bar, \
                ClipProblem(images, objective, context.amp) as problem:
            problem.on_evaluation = lambda loss: bar.update(
                index, f'{problem.counts.evaluations} evaluations, loss {problem.best_loss:.5g}')
            for index in range(context.first_unit, units):
                start = problem.check_deterministic()
                if math.isinf(start):
                    raise FloatingPointError('the loss is NaN or infinite at the clips that the search starts from')
                self.searcher.run_unit(index, problem, context.state, context.seed_for(index))
                counts, loss = problem.counts, problem.settle()
                context.records.append(dict(kind='search', step=self.name, unit=index, clips=problem.size,
                                            objective=type(objective).__name__, start_loss=start, loss=loss,
                                            **asdict(counts)))
                undefined = f' ({counts.undefined} of them NaN or infinite)' if counts.undefined else ''
                print_log(f'{self.name} {index}: loss {start:.5f} -> {loss:.5f}, {counts.evaluations} evaluations'
                          f'{undefined}, {counts.gradients} gradient steps, {counts.image_forwards:.0f} '
                          f'image-forwards, {counts.image_forwards_saved:.0f} saved', 'current')
                problem.counts = type(counts)()
                context.unit_done(index)
