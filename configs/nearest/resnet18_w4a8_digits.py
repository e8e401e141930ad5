_base_ = './resnet18_w8a8_digits.py'

model = dict(quantizer=dict(weight=dict(bits=4)))
