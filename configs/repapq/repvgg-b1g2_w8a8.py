_base_ = [
    '../_base_/models/repvgg-b1g2.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/repapq.py',
    '../_base_/calibration/imagenet_1024.py'
]

_base_.quantizer.weight.bits = 8
_base_.quantizer.activation.bits = 8
model = dict(quantizer=dict(_base_.quantizer, block_types=['RepVGGBlock']))
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.repapq)
