_base_ = './faster-rcnn_w4a4_digitsdet.py'

model = dict(quantizer=dict(weight=dict(bits=8), activation=dict(bits=8)))
