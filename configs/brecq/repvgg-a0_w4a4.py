_base_ = [
    '../_base_/models/repvgg-a0.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/brecq.py',
    '../_base_/calibration/imagenet_1024.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
model = dict(quantizer=_base_.quantizer)
# The training-time branches of RepVGG merge first.
train_cfg = dict(
    dataloader=_base_.calibration_dataloader,
    steps=dict(merge=dict(type='mmquant.Reparameterize'), **_base_.brecq))
