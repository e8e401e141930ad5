_base_ = '../../float/yolox-nano_val2017-328.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='{{$MMQUANT_REAL_DATA:data}}/weights/yolox_nano_coco_mmdet.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop', chunk_size=32)
