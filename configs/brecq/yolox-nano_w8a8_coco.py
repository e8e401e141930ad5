_base_ = './yolox-nano_w4a8_coco.py'

model = dict(quantizer=dict(weight=dict(bits=8)))
