_base_ = [
    'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', '../_base_/quantizers/w2a4_affine.py',
    '../_base_/algorithms/brecq.py', '../_base_/calibration/imagenet_1024.py'
]

# Products inside attention stay at 8 bits: most probabilities are below half a step of a 4-bit grid.
model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=dict(_base_.quantizer, matmul_bits=8),
    float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/'
    'swin-transformer/swin_tiny_224_b16x64_300e_imagenet_20210616_090925-66df6be6.pth')
train_cfg = dict(
    _delete_=True, type='mmquant.CalibrationLoop', dataloader=_base_.calibration_dataloader, steps=_base_.brecq)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
