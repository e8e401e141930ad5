_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r50_caffe_fpn_gn-head_1x_coco/fcos_r50_caffe_fpn_gn-head_1x_coco-821213aa.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop', chunk_size=2)
