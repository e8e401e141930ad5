_base_ = [
    '../float/mobilenet-v2_val1300.py', '../_base_/quantizers/w4a8_affine.py',
    '../_base_/algorithms/lapq_64.py', '../_base_/calibration/val1300_calib1000.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    # bias correction: rounding takes most from the means of depthwise kernels
    quantizer=dict(_base_.quantizer, weight=dict(_base_.quantizer.weight, keep_mean=True)),
    float_checkpoint='{{$MMQUANT_REAL_DATA:data}}/weights/mobilenet_v2_1.0_224_tf_mmpretrain.pth')
train_cfg = dict(
    _delete_=True, type='mmquant.CalibrationLoop', dataloader=_base_.calibration_dataloader, steps=_base_.lapq)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
