_base_ = [
    '../_base_/models/convnext-tiny.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/brecq.py',
    '../_base_/calibration/imagenet_1024.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
# The depthwise convolutions read the residual stream, which no normalisation bounds: it stays at 8 bits.
_base_.quantizer.overrides.append(dict(pattern=r'.*\.depthwise_conv', a_bits=8))
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.brecq)
