_base_ = [
    'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py', '../_base_/quantizers/w4a4_affine.py',
    '../_base_/algorithms/brecq.py', '../_base_/calibration/imagenet_1024.py'
]

# The depthwise convolutions read the residual stream, which no normalisation bounds: it stays at 8 bits.
model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=dict(
        _base_.quantizer, overrides=[*_base_.quantizer.overrides, dict(pattern=r'.*\.depthwise_conv', a_bits=8)]),
    float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/'
    'convnext/convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth')
train_cfg = dict(
    _delete_=True, type='mmquant.CalibrationLoop', dataloader=_base_.calibration_dataloader, steps=_base_.brecq)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
