_base_ = './resnet18_w4a4.py'

model = dict(quantizer=dict(weight=dict(bits=3), activation=dict(bits=3)))
