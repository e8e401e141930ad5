_base_ = [
    '../_base_/models/resnet50.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/qdrop.py',
    '../_base_/calibration/imagenet_1024.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.qdrop)
