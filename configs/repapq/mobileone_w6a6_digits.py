_base_ = [
    '../float/mobileone_digits.py', '../_base_/quantizers/w6a6_affine.py',
    '../_base_/algorithms/repapq.py', '../_base_/calibration/digits_256.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=dict(_base_.quantizer, block_types=['MobileOneBlock']),
    float_checkpoint='checkpoints/mobileone_digits.pth')
train_cfg = dict(
    _delete_=True, type='mmquant.CalibrationLoop', dataloader=_base_.calibration_dataloader, steps=_base_.repapq)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
