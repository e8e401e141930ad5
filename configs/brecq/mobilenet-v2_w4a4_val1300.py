# The losses of blocks are large here: with the usual factor of the regularizer many roundings stay undecided (records
# of kind 'unit' in results.json tell the share), so it is relative to the loss. Batches of 16 in bfloat16: for CPUs.
_base_ = './mobilenet-v2_w8a8_val1300.py'

model = dict(quantizer=dict(weight=dict(bits=4), activation=dict(bits=4)))
train_cfg = dict(
    amp=True,
    steps=dict(
        weights=dict(batch_size=16, terms=dict(rounding=dict(weight=100, relative=True))),
        activations=dict(batch_size=16)))
