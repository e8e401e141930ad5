_base_ = [
    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '../_base_/quantizers/w8a8_affine.py',
    '../_base_/algorithms/lapq_det.py', '../_base_/calibration/coco_256.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r18_fpn_1x_coco/'
    'retinanet_r18_fpn_1x_coco_20220407_171055-614fd399.pth')
train_cfg = dict(
    _delete_=True,
    type='mmquant.CalibrationLoop',
    dataloader=_base_.calibration_dataloader,
    steps=_base_.lapq,
    chunk_size=2)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
