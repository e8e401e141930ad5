_base_ = [
    '../float/yolox-nano_val2017-328.py', '../_base_/quantizers/w8a8_affine.py',
    '../_base_/algorithms/brecq_det_1k_bias.py', '../_base_/calibration/train2017-128_416.py'
]

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=dict(_base_.quantizer, depthwise_channels=True),
    float_checkpoint='{{$MMQUANT_REAL_DATA:data}}/weights/yolox_nano_coco_mmdet.pth')
train_cfg = dict(
    _delete_=True,
    type='mmquant.CalibrationLoop',
    dataloader=_base_.calibration_dataloader,
    steps=_base_.brecq,
    chunk_size=32)
custom_hooks = [dict(type='mmquant.EvaluationHook')]
