"""What a search over clips minimises: losses of the whole network, summed over images."""
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mmquant.losses.divergence import divergence, float_tensors, output_kinds
from mmquant.registry import OBJECTIVES
from mmquant.utils.building import ConfigError, build
from mmquant.utils.contexts import seeded

INSTEAD = 'use objective=dict(type="mmquant.OutputDivergence"), which compares with the float network, without labels'


class Objective(ABC):
    """A loss of some images, given the quantized network's output for them; deterministic to the bit."""

    @abstractmethod
    def prepare(self, calibration) -> None:
        """Take in what the images of a ``CalibrationContext`` are compared with; its ``run(chunk)`` is float here.

        ConfigError if something is missing or of the wrong shape.
        """

    @abstractmethod
    def __call__(self, output, chunk: int, rows: Tensor | None = None) -> Tensor:
        """Sum of the loss over images, a float64 scalar with gradients: all of a chunk, or its ``rows``."""


@OBJECTIVES.register_module()
class CrossEntropy(Objective):
    """Cross-entropy with the true labels, without label smoothing: the objective of LAPQ's paper."""

    def prepare(self, calibration) -> None:
        if calibration.labels is None:
            raise ConfigError('the objective mmquant.CrossEntropy needs one label for each calibration image, but the '
                              f'calibration set has none; {INSTEAD}, or give a data set with gt_label')
        self.labels = calibration.labels

    def __call__(self, output, chunk: int, rows: Tensor | None = None) -> Tensor:
        found, labels = float_tensors(output), self.labels[chunk]
        if len(found) != 1 or found[0].dim() != 2:
            raise ConfigError('CrossEntropy needs one output of shape (images, classes), got '
                              f'{[tuple(x.shape) for x in found]}; {INSTEAD}')
        labels = labels if rows is None else labels[rows]
        return F.cross_entropy(found[0].float(), labels, reduction='none').double().sum()


@OBJECTIVES.register_module()
class OutputDivergence(Objective):
    """Divergence of the outputs from the float network's; needs no labels, and is 0 for the float network.

    For class logits KL(float || quantized); for the outputs of detectors see :mod:`mmquant.losses.divergence`.
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


@OBJECTIVES.register_module()
class TrainingLoss(Objective):
    """Training loss of a detector of one stage, against the boxes of the calibration images.

    The head computes it from the raw outputs alone (mmdet's ``bbox_head.loss_by_feat``), so that a search still keeps
    the prefix of the network. Detectors of two stages draw regions from features and are refused. Unlike
    :class:`OutputDivergence` it is not 0 for the float network, and can fall below the float network's loss.

    Args:
        seed (int): Of samplers that draw boxes at random; the same draw in every evaluation. Default 0.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def prepare(self, calibration) -> None:
        model = calibration.model.architecture
        self.head = getattr(model, 'bbox_head', None)
        if not callable(getattr(self.head, 'loss_by_feat', None)):
            raise ConfigError(f'TrainingLoss needs a detector of one stage, whose head computes its loss from its raw '
                              f'outputs (bbox_head.loss_by_feat), got {type(model).__name__}; {INSTEAD}')
        truths = [getattr(sample, 'gt_instances', ()) for chunk in calibration.samples or () for sample in chunk]
        if not truths or not all('bboxes' in truth for truth in truths):
            raise ConfigError('TrainingLoss needs the boxes of the calibration images: put '
                              'dict(type="LoadAnnotations", with_bbox=True) in front of PackDetInputs in the pipeline '
                              f'of train_cfg.dataloader.dataset; or {INSTEAD}')
        if not any(len(truth) for truth in truths):
            raise ConfigError('TrainingLoss found no object on any calibration image; check the annotations, or '
                              f'{INSTEAD}')
        self.model, self.samples = model, calibration.samples

    def __call__(self, output, chunk: int, rows: Tensor | None = None) -> Tensor:
        from mmdet.models.utils import unpack_gt_instances
        samples = self.samples[chunk] if rows is None else [self.samples[chunk][i] for i in rows.tolist()]
        truth, ignored, info = unpack_gt_instances(samples)
        ignored = ignored if any(x is not None for x in ignored) else None
        output = tree_map_only(Tensor, lambda x: x.float() if x.is_floating_point() else x, output)
        device = next(self.head.parameters()).device
        with seeded(self.seed, device):
            losses = self.head.loss_by_feat(*output, [x.to(device) for x in truth], info, ignored)
        return self.model.parse_losses(losses)[0].double() * len(samples)


@torch.no_grad()
def build_objective(context, cfg: dict | None, where: str) -> Objective:
    """Build an objective and let it take in the float network's outputs for the images of a ``CalibrationContext``.

    Without a config :class:`CrossEntropy` for images with labels, :class:`OutputDivergence` for others. ``where`` is
    the place in the config, for messages.
    """
    if cfg is None:
        objective = OutputDivergence() if context.labels is None else CrossEntropy()
    else:
        objective = build(OBJECTIVES, cfg, where)
    context.settle_decisions()
    with context.model.quantization(weights=False, activations=False):
        objective.prepare(context)
    return objective
