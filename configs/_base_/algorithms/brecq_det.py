# BRECQ for detectors: settings of the paper, two images per step as in QDrop's detection code. Ranges of 8-bit
# activations stay: the rate that suits steps of 4 bits overshoots theirs.
_base_ = './brecq.py'

brecq = dict(
    nearest=dict(num_images=32, chunk=2),
    weights=dict(batch_size=2, hooks=dict(keep_best=dict(type='mmquant.KeepBest', held_out=32))),
    activation_ranges=dict(num_images=32, chunk=2),
    activations=dict(
        batch_size=2, train=dict(activation_scale=dict(max_bits=7)), hooks=dict(keep_best=dict(held_out=32))))
