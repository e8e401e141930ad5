_base_ = './resnet50_w4a4.py'

model = dict(quantizer=dict(weight=dict(bits=2), activation=dict(bits=2)))
