# BRECQ for detectors: settings of the paper, two images a step as in QDrop's detection code. Ranges of 8-bit
# activations stay: the rate that suits steps of 4 bits overshoots theirs.
_base_ = ['./brecq.py']

changes = dict(weight=dict(), activation=dict(max_activation_bits=7))
brecq = [
    dict(s, batch_size=2, held_out=32, chunk=2, **changes[s['target']]) if 'target' in s else
    dict(s, num_images=32, chunk=2) if s['type'] == 'mmquant.InitActivationRange' else s for s in _base_.brecq
]
