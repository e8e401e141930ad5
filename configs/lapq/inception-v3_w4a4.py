_base_ = [
    'mmpretrain::inception_v3/inception-v3_8xb32_in1k.py', '../_base_/quantizers/w4a4_affine.py',
    '../_base_/algorithms/lapq.py', '../_base_/calibration/imagenet_512_299px.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/inception-v3/'
    'inception-v3_3rdparty_8xb32_in1k_20220615-dcd4d910.pth')
train_cfg = dict(
    _delete_=True, type='mmquant.CalibrationLoop', dataloader=_base_.calibration_dataloader, steps=_base_.lapq)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
