_base_ = [
    'mmpretrain::resnet/resnet18_8xb32_in1k.py', '../_base_/quantizers/w32a4_affine.py',
    '../_base_/algorithms/lapq.py', '../_base_/calibration/imagenet_512.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet18_8xb32_in1k_20210831-fbbb1da6.pth')
train_cfg = dict(
    _delete_=True, type='mmquant.CalibrationLoop', dataloader=_base_.calibration_dataloader, steps=_base_.lapq)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
