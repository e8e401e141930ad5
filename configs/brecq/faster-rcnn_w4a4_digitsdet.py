_base_ = [
    '../_base_/models/faster-rcnn_digitsdet.py', '../_base_/quantizers/affine.py',
    '../_base_/algorithms/brecq_short.py', '../_base_/calibration/digitsdet_600.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
# The regularizer is relative to the loss of a unit and pushes hard: with less, many roundings of a two-stage head's
# linear layers stay undecided (records of kind 'unit' in results.json tell the share). Ranges of 8-bit activations
# stay: the rate that suits 4 bits overshoots their steps.
_base_.brecq.weights.update(batch_size=16)
_base_.brecq.weights.terms.rounding.update(weight=1000, relative=True)
_base_.brecq.activations.update(batch_size=16, num_iters=250)
_base_.brecq.activations.train.activation_scale.max_bits = 7
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.brecq)
