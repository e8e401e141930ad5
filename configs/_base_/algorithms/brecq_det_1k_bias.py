# As brecq_det_1k, with corrected biases: at 8 bits most of what is lost is a shift of the mean.
_base_ = ['./brecq_bias.py']

regularizer = dict(weight=100, relative=True, beta_start=20, beta_end=2, warmup=0.2)
changes = dict(
    weight=dict(num_iters=1000, lr=1e-2, batch_size=8, regularizer=regularizer),
    activation=dict(num_iters=500, batch_size=8))
brecq = [dict(s, **changes[s['target']]) if 'target' in s else s for s in _base_.brecq]
