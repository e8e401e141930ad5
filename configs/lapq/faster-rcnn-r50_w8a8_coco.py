_base_ = './faster-rcnn-r50_w4a8_coco.py'

model = dict(quantizer=dict(weight=dict(bits=8)))
