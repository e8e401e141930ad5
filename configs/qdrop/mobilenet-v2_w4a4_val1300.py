_base_ = [
    '../_base_/models/mobilenet-v2_val1300.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/qdrop_short.py',
    '../_base_/calibration/val1300_calib1000.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
# The losses of blocks are large here, so the regularizer is relative to them (see the same config of brecq). A third of
# the short recipe's steps, in batches of 16 and bfloat16: minutes on a CPU.
_base_.qdrop.joint.update(num_iters=250, batch_size=16)
_base_.qdrop.joint.terms.rounding.update(weight=100, relative=True)
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.qdrop, amp=True)
