# BRECQ with 1000 steps per unit for weights and 500 for step sizes: for small models, or machines without a GPU. The
# rate of the roundings is ten times the paper's, so that they reach a decision within a twentieth of its steps.
_base_ = './brecq.py'

brecq = dict(weights=dict(num_iters=1000, train=dict(rounding=dict(lr=1e-2))), activations=dict(num_iters=500))
