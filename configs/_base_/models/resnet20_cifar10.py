_base_ = '../../float/resnet20_cifar10.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='{{$MMQUANT_REAL_DATA:data}}/weights/resnet20_cifar10_mmpretrain.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
