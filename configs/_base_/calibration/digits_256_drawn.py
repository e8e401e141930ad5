# The 256 calibration images of the embedded digits, in an order that the seed of the run draws.
_base_ = ['./digits_256.py']

calibration_dataloader = dict(sampler=dict(shuffle=True))
