# LAPQ as in the authors' code: ten norms, cross-entropy with labels, two iterations of Powell's method, no folding.
_base_ = './lapq.py'

lapq = dict(
    fold=None,
    nearest=dict(
        norms=(2, 2.22, 2.44, 2.67, 2.89, 3.11, 3.33, 3.56, 3.78, 4), objective=dict(type='mmquant.CrossEntropy')),
    joint=dict(
        objective=dict(type='mmquant.CrossEntropy'),
        searcher=dict(type='mmquant.PowellSearch', num_iters=2)))
