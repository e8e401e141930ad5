_base_ = [
    '../_base_/models/repvgg-a0.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/repapq_w4.py',
    '../_base_/calibration/imagenet_1024.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
model = dict(quantizer=dict(_base_.quantizer, block_types=['RepVGGBlock']))
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.repapq)
