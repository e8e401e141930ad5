_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '../_base_/quantizers/w4a8_affine.py',
    '../_base_/algorithms/lapq_det.py', '../_base_/calibration/coco_256.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/'
    'faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth')
train_cfg = dict(
    _delete_=True,
    type='mmquant.CalibrationLoop',
    dataloader=_base_.calibration_dataloader,
    steps=_base_.lapq,
    chunk_size=2)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
