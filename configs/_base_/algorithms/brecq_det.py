# BRECQ for detectors: settings of the paper, two images per step as in QDrop's detection code. Ranges of 8-bit
# activations stay: the rate that suits steps of 4 bits overshoots theirs.
_base_ = './brecq.py'

brecq = dict(
    nearest=dict(num_images=32, chunk=2),
    weights=dict(batch_size=2, held_out=32, chunk=2),
    activation_ranges=dict(num_images=32, chunk=2),
    activations=dict(batch_size=2, held_out=32, chunk=2, max_activation_bits=7))
