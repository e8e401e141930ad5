_base_ = [
    'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py', '../_base_/quantizers/w4a32_affine.py',
    '../_base_/algorithms/lapq.py', '../_base_/calibration/imagenet_512.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    # bias correction: rounding takes most from the means of depthwise kernels
    quantizer=dict(_base_.quantizer, weight=dict(_base_.quantizer.weight, keep_mean=True)),
    float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/mobilenet_v2/'
    'mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth')
train_cfg = dict(
    _delete_=True, type='mmquant.CalibrationLoop', dataloader=_base_.calibration_dataloader, steps=_base_.lapq)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
