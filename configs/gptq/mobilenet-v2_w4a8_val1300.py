_base_ = [
    '../_base_/models/mobilenet-v2_val1300.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/gptq.py',
    '../_base_/calibration/val1300_calib1000.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 8
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.gptq)
