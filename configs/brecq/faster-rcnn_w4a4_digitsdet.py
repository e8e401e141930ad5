_base_ = [
    '../float/faster-rcnn_digitsdet.py', '../_base_/quantizers/w4a4_affine.py',
    '../_base_/algorithms/brecq_det_1k_b16.py', '../_base_/calibration/digitsdet_600.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='checkpoints/faster-rcnn_digitsdet.pth')
train_cfg = dict(
    _delete_=True,
    type='mmquant.CalibrationLoop',
    dataloader=_base_.calibration_dataloader,
    steps=_base_.brecq,
    chunk_size=16)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
