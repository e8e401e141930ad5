_base_ = [
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', '../_base_/quantizers/w8a8_affine.py',
    '../_base_/algorithms/lapq_det.py', '../_base_/calibration/coco_256_640.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet_tiny_8xb32-300e_coco/'
    'rtmdet_tiny_8xb32-300e_coco_20220902_112414-78e30dcc.pth')
train_cfg = dict(
    _delete_=True,
    type='mmquant.CalibrationLoop',
    dataloader=_base_.calibration_dataloader,
    steps=_base_.lapq,
    chunk_size=2)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
