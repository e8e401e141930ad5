_base_ = '../../float/faster-rcnn_digitsdet.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='checkpoints/faster-rcnn_digitsdet.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop', chunk_size=16)
