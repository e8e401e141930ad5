_base_ = [
    '../float/resnet20_cifar10.py', '../_base_/quantizers/w4a4_affine.py',
    '../_base_/algorithms/lapq.py', '../_base_/calibration/cifar10_1000_drawn.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='{{$MMQUANT_REAL_DATA:data}}/weights/resnet20_cifar10_mmpretrain.pth')
train_cfg = dict(
    _delete_=True, type='mmquant.CalibrationLoop', dataloader=_base_.calibration_dataloader, steps=_base_.lapq)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
