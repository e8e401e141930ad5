# As brecq_det_1k, for the embedded detectors: 16 images a step, 250 steps for step sizes, and a regularizer that pushes
# harder: with less, many roundings of a two-stage head's linear layers stay undecided (records of kind 'unit' in
# results.json tell the share). Ranges of 8-bit activations stay: the rate that suits 4 bits overshoots their steps.
_base_ = ['./brecq_det_1k.py']

brecq = [
    dict(s, batch_size=16, regularizer=dict(s['regularizer'], weight=1000)) if s.get('target') == 'weight' else
    dict(s, batch_size=16, num_iters=250, max_activation_bits=7) if s.get('target') == 'activation' else s
    for s in _base_.brecq
]
