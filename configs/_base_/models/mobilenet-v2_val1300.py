_base_ = '../../float/mobilenet-v2_val1300.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='{{$MMQUANT_REAL_DATA:data}}/weights/mobilenet_v2_1.0_224_tf_mmpretrain.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
