# BRECQ for detectors: settings of the paper, two images a step as in QDrop's detection code.
_base_ = ['./brecq_bias.py']

brecq = [
    dict(s, batch_size=2, held_out=32, chunk=2) if 'target' in s else
    dict(s, num_images=32, chunk=2) if s['type'] == 'mmquant.InitActivationRange' else s for s in _base_.brecq
]
