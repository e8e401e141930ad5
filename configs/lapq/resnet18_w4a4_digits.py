_base_ = [
    '../float/resnet18_digits.py', '../_base_/quantizers/w4a4_affine.py',
    '../_base_/algorithms/lapq_128.py', '../_base_/calibration/digits_256_drawn.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='checkpoints/resnet18_digits.pth')
train_cfg = dict(
    _delete_=True, type='mmquant.CalibrationLoop', dataloader=_base_.calibration_dataloader, steps=_base_.lapq)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
