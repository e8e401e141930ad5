"""The loss a detector was trained with, as what a search over clips minimises."""
from __future__ import annotations

from torch import Tensor
from torch.utils._pytree import tree_map_only

from mmquant.losses.objectives import Objective
from mmquant.registry import OBJECTIVES
from mmquant.utils.building import ConfigError
from mmquant.utils.contexts import seeded

INSTEAD = ('use objective=dict(type="mmquant.OutputDivergence"), which compares with the float network and needs no '
           'labels')


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
        samples = self.samples[chunk]
        samples = samples if rows is None else [samples[i] for i in rows.tolist()]
        truth, ignored, info = unpack_gt_instances(samples)
        ignored = ignored if any(x is not None for x in ignored) else None
        output = tree_map_only(Tensor, lambda x: x.float() if x.is_floating_point() else x, output)
        device = next(self.head.parameters()).device
        with seeded(self.seed, device):
            losses = self.head.loss_by_feat(*output, [x.to(device) for x in truth], info, ignored)
        total, _ = self.model.parse_losses(losses)
        return total.double() * len(samples)
