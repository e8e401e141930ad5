# QDrop with 800 steps per unit: for small models, or machines without a GPU. A twenty-fifth of the paper's steps needs
# about twenty times its rates.
_base_ = './qdrop.py'

qdrop = dict(
    joint=dict(num_iters=800, train=dict(rounding=dict(lr=2e-2), activation_scale=dict(lr=1e-3))))
