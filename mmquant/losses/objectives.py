"""What a search over clips minimises: losses of the whole network, summed over images."""
from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mmquant.losses.divergence import divergence, float_tensors, output_kinds
from mmquant.registry import OBJECTIVES
from mmquant.utils.building import ConfigError, build


class Objective(ABC):
    """A loss of some images, given the quantized network's output for them.

    Deterministic: the same outputs give the same number to the bit.
    """

    @abstractmethod
    def prepare(self, calibration) -> None:
        """Take in what the calibration set is compared with.

        Args:
            calibration (CalibrationContext): ``run(chunk)`` gives the float network's output, ``sizes`` the images of
                each chunk, ``labels`` their class numbers or None, ``samples`` their data samples, ``model`` the
                network.

        Raises:
            ConfigError: If something is missing or of the wrong shape.
        """

    @abstractmethod
    def __call__(self, output, chunk: int, rows: Tensor | None = None) -> Tensor:
        """Sum of the loss over images, a float64 scalar with gradients.

        Args:
            output: The quantized network's output for these images.
            chunk (int): The chunk they are from.
            rows (Tensor | None): Their numbers within it; None: all.
        """


@OBJECTIVES.register_module()
class CrossEntropy(Objective):
    """Cross-entropy with the true labels, without label smoothing: the objective of LAPQ's paper."""

    def prepare(self, calibration) -> None:
        if calibration.labels is None:
            raise ConfigError('the objective mmquant.CrossEntropy needs one label for each calibration image, but the '
                              'calibration set has none; use objective=dict(type="mmquant.OutputDivergence"), which '
                              'compares with the float network instead, or give a data set with gt_label')
        self.labels = calibration.labels

    def __call__(self, output, chunk: int, rows: Tensor | None = None) -> Tensor:
        found, labels = float_tensors(output), self.labels[chunk]
        if len(found) != 1 or found[0].dim() != 2:
            raise ConfigError('CrossEntropy needs one output of shape (images, classes), got '
                              f'{[tuple(x.shape) for x in found]}; use '
                              'objective=dict(type="mmquant.OutputDivergence")')
        labels = labels if rows is None else labels[rows]
        return F.cross_entropy(found[0].float(), labels, reduction='none').double().sum()


@OBJECTIVES.register_module()
class OutputDivergence(Objective):
    """Divergence of the outputs from the float network's; needs no labels, and is 0 for the float network.

    For class logits KL(float || quantized); for the outputs of detectors see
    :mod:`mmquant.losses.divergence`.
    """

    def prepare(self, calibration) -> None:
        self.sizes = calibration.sizes
        self.references = [calibration.run(chunk) for chunk in range(len(self.sizes))]
        if not float_tensors(self.references):
            raise ConfigError('the objective mmquant.OutputDivergence found no floating point tensor among the outputs')

    def __call__(self, output, chunk: int, rows: Tensor | None = None) -> Tensor:
        reference, count = self.references[chunk], self.sizes[chunk]
        if rows is not None:
            reference, count = tree_map_only(Tensor, lambda x: x[rows], reference), len(rows)
        return divergence(output, reference).double() * count


@OBJECTIVES.register_module()
class LogitDistance(OutputDivergence):
    """As :class:`OutputDivergence`, but class logits count by their mean squared distance from the float network's.

    Both have their mean over the classes taken off, which no probability depends on. Where networks are sure of
    themselves, the divergence of a few wrong guesses outweighs all other images, and a search pays for it with classes
    of the others; the distance of the logits has no such tail. This project's, not the paper's.
    """

    def __call__(self, output, chunk: int, rows: Tensor | None = None) -> Tensor:
        reference, found = float_tensors(self.references[chunk]), float_tensors(output)
        if output_kinds(self.references[chunk]) != ['logits']:
            return super().__call__(output, chunk, rows)
        exact, got = (x.double() - x.double().mean(1, keepdim=True)
                      for x in (reference[0] if rows is None else reference[0][rows], found[0]))
        return (got - exact).square().mean(1).sum()


@torch.no_grad()
def build_objective(context, cfg: dict | None, where: str) -> Objective:
    """Build an objective and let it take in the float network's outputs.

    Args:
        context (CalibrationContext): The images it is evaluated on.
        cfg (dict | None): Its config. Default: :class:`CrossEntropy` for images with labels, :class:`OutputDivergence`
            for others.
        where (str): Place in the config, for messages.
    """
    if cfg is None:
        objective = OutputDivergence() if context.labels is None else CrossEntropy()
    else:
        objective = build(OBJECTIVES, cfg, where)
    context.settle_decisions()
    with context.model.quantization(weights=False, activations=False):
        objective.prepare(context)
    return objective
