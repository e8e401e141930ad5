_base_ = './ssdlite-mobilenet-v2_w4a8_coco.py'

model = dict(quantizer=dict(weight=dict(bits=8)))
