# mmdet publishes no weights for this model: train them with its config.
_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py', '../_base_/quantizers/w8a8_affine.py',
    '../_base_/algorithms/lapq_det.py', '../_base_/calibration/coco_256.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='weights/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.pth')
train_cfg = dict(
    _delete_=True,
    type='mmquant.CalibrationLoop',
    dataloader=_base_.calibration_dataloader,
    steps=_base_.lapq,
    chunk_size=2)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
