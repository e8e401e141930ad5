_base_ = [
    '../_base_/models/resnet20_cifar10.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/lapq.py',
    '../_base_/algorithms/brecq_short.py', '../_base_/calibration/cifar10_1000.py'
]

_base_.quantizer.weight.bits = 2
_base_.quantizer.activation.bits = 4
# A little more than the short recipe: images are small.
_base_.brecq.weights.num_iters = 2000
_base_.brecq.activations.num_iters = 1000
model = dict(quantizer=_base_.quantizer)
# LAPQ's clips, then BRECQ's two stages from them.
train_cfg = dict(
    dataloader=_base_.calibration_dataloader,
    steps=dict(_base_.lapq, weights=_base_.brecq.weights, activations=_base_.brecq.activations))
