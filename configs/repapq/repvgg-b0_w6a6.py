_base_ = [
    'mmpretrain::repvgg/repvgg-B0_8xb32_in1k.py', '../_base_/quantizers/w6a6_affine.py',
    '../_base_/algorithms/repapq_w6.py', '../_base_/calibration/imagenet_1024.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=dict(_base_.quantizer, block_types=['RepVGGBlock']),
    float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/repvgg/repvgg-B0_8xb32_in1k_20221213-5091ecc7.pth')
train_cfg = dict(
    _delete_=True, type='mmquant.CalibrationLoop', dataloader=_base_.calibration_dataloader, steps=_base_.repapq)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
