"""What a search over clips minimises: losses of the whole network, summed over images."""
from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mmquant.registry import OBJECTIVES
from mmquant.utils.building import ConfigError, build


def tensors_of(output) -> list[Tensor]:
    """The floating point tensors of a network's output, in order."""
    return [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]


def labels_of(samples: list[list] | None) -> Tensor | None:
    """Class numbers (images,) of mmpretrain's data samples; None where an image has none, or several."""
    found = [getattr(x, 'gt_label', None) for chunk in samples or () for x in chunk]
    if not found or any(not isinstance(x, Tensor) or x.numel() != 1 for x in found):
        return None
    return torch.stack([x.reshape(()) for x in found]).long()


class Objective(ABC):
    """A loss of some images, given the quantized network's output for them.

    Deterministic: the same outputs give the same number to the bit.

    Attributes:
        needs_float (bool): Whether it compares with the float network's output.
    """
    needs_float = True

    def __init__(self) -> None:
        self.references: list[Tensor] = []
        self.labels: Tensor | None = None

    def prepare(self, references: list, labels: Tensor | None) -> None:
        """Take in what the calibration set is compared with.

        Args:
            references (list): The float network's outputs for each chunk; empty unless ``needs_float``.
            labels (Tensor | None): Class numbers, shape (images,).

        Raises:
            ConfigError: If something is missing or of the wrong shape.
        """
        parts = [tensors_of(output) for output in references]
        self.references = [torch.cat(tensors).float() for tensors in zip(*parts)]
        self.labels = labels
        self._check()

    def _check(self) -> None:  # noqa: B027 (optional)
        """Refuse what does not fit."""

    @abstractmethod
    def __call__(self, output, rows: Tensor) -> Tensor:
        """Sum of the loss over images, a float64 scalar with gradients.

        Args:
            output: The quantized network's output for these images.
            rows (Tensor): Their numbers in the calibration set.
        """

    def _logits(self, output) -> Tensor:
        found = tensors_of(output)
        if len(found) != 1 or found[0].dim() != 2:
            raise ConfigError(f'{type(self).__name__} needs one output of shape (images, classes), got '
                              f'{[tuple(x.shape) for x in found]}; use objective=dict(type="mmquant.OutputDistance")')
        return found[0].float()


@OBJECTIVES.register_module()
class CrossEntropy(Objective):
    """Cross-entropy with the true labels, without label smoothing: the objective of LAPQ's paper."""
    needs_float = False

    def _check(self) -> None:
        if self.labels is None:
            raise ConfigError('the objective mmquant.CrossEntropy needs one label for each calibration image, but the '
                              'calibration set has none; use objective=dict(type="mmquant.OutputKL"), which compares '
                              'with the float network instead, or give a data set with gt_label')

    def __call__(self, output, rows: Tensor) -> Tensor:
        logits = self._logits(output)
        return F.cross_entropy(logits, self.labels[rows], reduction='none').double().sum()


@OBJECTIVES.register_module()
class OutputKL(Objective):
    """KL(float || quantized) of the class probabilities: cross-entropy without labels, 0 for the float network."""

    def _check(self) -> None:
        self._logits(self.references)
        self.log_p = self.references[0].log_softmax(-1)

    def __call__(self, output, rows: Tensor) -> Tensor:
        log_q, log_p = self._logits(output).log_softmax(-1), self.log_p[rows]
        return (log_p.exp() * (log_p - log_q)).sum(-1).double().sum()


@OBJECTIVES.register_module()
class OutputDistance(Objective):
    """Mean squared error of every output tensor over the variance of its float values, mean over tensors.

    For networks with any number of raw outputs, detectors among them: 0 is the float network, 1 an output that is
    constant.
    """

    def _check(self) -> None:
        if not self.references:
            raise ConfigError('the objective mmquant.OutputDistance found no floating point tensor among the outputs')
        self.variances = [x.double().var(correction=0).clamp_min(1e-12).float() for x in self.references]

    def __call__(self, output, rows: Tensor) -> Tensor:
        parts = []
        for q, r, variance in zip(tensors_of(output), self.references, self.variances, strict=True):
            error = (q.float() - r[rows]).square().flatten(1).mean(1) / variance
            parts.append(error.double().sum())
        return torch.stack(parts).mean()


def build_objective(cfg: dict | None, labels: Tensor | None, outputs, where: str) -> Objective:
    """The objective of a config; without one, what the data allow.

    Args:
        cfg (dict | None): None: :class:`CrossEntropy` with labels, :class:`OutputKL` without, :class:`OutputDistance`
            where the network's output is not one tensor (images, classes).
        labels (Tensor | None): Labels of the calibration set.
        outputs: The float network's output for a few images.
        where (str): Place in the config, for messages.
    """
    if cfg is not None:
        return build(OBJECTIVES, cfg, where)
    found = tensors_of(outputs)
    if len(found) != 1 or found[0].dim() != 2:
        return OutputDistance()
    return OutputKL() if labels is None else CrossEntropy()
