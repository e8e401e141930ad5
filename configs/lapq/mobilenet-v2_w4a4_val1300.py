_base_ = [
    '../_base_/models/mobilenet-v2_val1300.py', '../_base_/quantizers/affine.py',
    '../_base_/algorithms/lapq_short.py', '../_base_/calibration/val1300_calib1000.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
_base_.quantizer.weight.keep_mean = True
# 64 images, clips begun with them, and two sweeps: a larger network without a GPU. The loss is the divergence: the
# distance of logits prefers a silent network where nearest rounding leaves little of it.
_base_.lapq.nearest.update(num_images=64, init_images=64)
_base_.lapq.nearest.objective.type = 'mmquant.OutputDivergence'
_base_.lapq.joint.num_images = 64
_base_.lapq.joint.objective.type = 'mmquant.OutputDivergence'
_base_.lapq.joint.searcher.num_sweeps = 2
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.lapq)
