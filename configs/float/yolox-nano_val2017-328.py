# YOLOX-nano, evaluated with given weights.
_base_ = ['mmdet::yolox/yolox_nano_8xb8-300e_coco.py', '../_base_/datasets/val2017-328.py']

train_dataloader = None
train_cfg = None
optim_wrapper = None
param_scheduler = None
custom_hooks = []
val_dataloader = dict(_delete_=True, **_base_.val2017_328_dataloader)
val_evaluator = dict(_delete_=True, **_base_.val2017_328_evaluator)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
