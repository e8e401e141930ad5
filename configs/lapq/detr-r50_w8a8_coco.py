_base_ = [
    'mmdet::detr/detr_r50_8xb2-150e_coco.py', '../_base_/quantizers/w8a8_affine.py',
    '../_base_/algorithms/lapq_det.py', '../_base_/calibration/coco_256.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='https://download.openmmlab.com/mmdetection/v3.0/detr/detr_r50_8xb2-150e_coco/'
    'detr_r50_8xb2-150e_coco_20221023_153551-436d03e8.pth')
train_cfg = dict(
    _delete_=True,
    type='mmquant.CalibrationLoop',
    dataloader=_base_.calibration_dataloader,
    steps=_base_.lapq,
    chunk_size=2)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
