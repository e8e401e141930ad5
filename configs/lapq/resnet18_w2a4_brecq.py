_base_ = [
    '../_base_/models/resnet18.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/lapq.py',
    '../_base_/algorithms/brecq.py', '../_base_/calibration/imagenet_1024.py'
]

_base_.quantizer.weight.bits = 2
_base_.quantizer.activation.bits = 4
model = dict(quantizer=_base_.quantizer)
# LAPQ's clips, then BRECQ's two stages from them.
train_cfg = dict(
    dataloader=_base_.calibration_dataloader,
    steps=dict(_base_.lapq, weights=_base_.brecq.weights, activations=_base_.brecq.activations))
