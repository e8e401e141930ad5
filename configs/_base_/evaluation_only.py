# For float models whose weights are given: nothing to train here, so the training slot of the runner is empty.
train_dataloader = None
train_cfg = None
optim_wrapper = None
val_cfg = dict()
test_cfg = dict()
