# mmdet publishes no weights for this model: train them with its config.
_base_ = 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             quantizer=dict(depthwise_channels=True),
             float_checkpoint='weights/yolox_nano_8xb8-300e_coco.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop', chunk_size=2)
custom_hooks = []  # those of the base are for training
