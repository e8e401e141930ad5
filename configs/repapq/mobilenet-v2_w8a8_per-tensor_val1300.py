_base_ = [
    '../float/mobilenet-v2_val1300.py', '../_base_/quantizers/w8a8_per_tensor.py',
    '../_base_/algorithms/repapq_plain_200_b16.py', '../_base_/calibration/val1300_calib1000.py'
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
    steps=_base_.repapq,
    amp=True)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
