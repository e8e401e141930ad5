_base_ = [
    '../float/mobilenet-v2_val1300.py', '../_base_/quantizers/w4a4_affine.py',
    '../_base_/algorithms/brecq_mobilenet_1k_b16_relative.py', '../_base_/calibration/val1300_calib1000.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='{{$MMQUANT_REAL_DATA:data}}/weights/mobilenet_v2_1.0_224_tf_mmpretrain.pth')
train_cfg = dict(
    _delete_=True,
    type='mmquant.CalibrationLoop',
    dataloader=_base_.calibration_dataloader,
    steps=_base_.brecq,
    amp=True)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
