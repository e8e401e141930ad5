# The 1000 train images of CIFAR-10, in an order that the seed of the run draws.
_base_ = ['./cifar10_1000.py']

calibration_dataloader = dict(sampler=dict(shuffle=True))
