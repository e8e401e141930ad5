_base_ = [
    'mmpretrain::regnet/regnetx-3.2gf_8xb64_in1k.py', '../_base_/quantizers/w4a4_affine.py',
    '../_base_/algorithms/brecq.py', '../_base_/calibration/imagenet_1024.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/'
    'regnet/regnetx-3.2gf_8xb64_in1k_20211213-1fdd82ae.pth')
train_cfg = dict(
    _delete_=True, type='mmquant.CalibrationLoop', dataloader=_base_.calibration_dataloader, steps=_base_.brecq)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
