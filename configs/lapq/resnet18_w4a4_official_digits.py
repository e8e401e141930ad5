_base_ = [
    '../float/resnet18_digits.py', '../_base_/quantizers/w4a4_lapq_official.py',
    '../_base_/algorithms/lapq_official.py', '../_base_/calibration/digits_256.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=dict(_base_.quantizer, overrides=[
        *_base_.quantizer.overrides,
        dict(pattern=r'backbone\.layer4\.1\.conv2', w_bits=None),
    ]),
    float_checkpoint='checkpoints/resnet18_digits.pth')
train_cfg = dict(
    _delete_=True, type='mmquant.CalibrationLoop', dataloader=_base_.calibration_dataloader, steps=_base_.lapq)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
