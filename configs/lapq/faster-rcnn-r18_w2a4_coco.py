_base_ = './faster-rcnn-r18_w4a4_coco.py'

model = dict(quantizer=dict(weight=dict(bits=2)))
