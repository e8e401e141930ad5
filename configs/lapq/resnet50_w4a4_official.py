_base_ = [
    '../_base_/models/resnet50.py', '../_base_/quantizers/lapq_official.py', '../_base_/algorithms/lapq_official.py',
    '../_base_/calibration/imagenet_512.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
_base_.quantizer.overrides.append(dict(pattern=r'backbone\.layer4\.2\.conv3', w_bits=None))
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.lapq)
