# Rounding to 6 bits takes more steps to repair.
_base_ = './mobileone-s1_w8a8.py'

model = dict(quantizer=dict(weight=dict(bits=6), activation=dict(bits=6)))
train_cfg = dict(steps=dict(joint=dict(num_iters=2000)))
