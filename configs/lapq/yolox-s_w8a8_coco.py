_base_ = [
    'mmdet::yolox/yolox_s_8xb8-300e_coco.py', '../_base_/quantizers/w8a8_affine.py',
    '../_base_/algorithms/lapq_det.py', '../_base_/calibration/coco_256_640.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='https://download.openmmlab.com/mmdetection/v2.0/yolox/yolox_s_8x8_300e_coco/'
    'yolox_s_8x8_300e_coco_20211121_095711-4592a793.pth')
train_cfg = dict(
    _delete_=True,
    type='mmquant.CalibrationLoop',
    dataloader=_base_.calibration_dataloader,
    steps=_base_.lapq,
    chunk_size=2)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
