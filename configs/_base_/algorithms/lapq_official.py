# LAPQ as in the authors' code: ten norms, cross-entropy with labels, two iterations of Powell's method, no folding.
objective = dict(type='mmquant.CrossEntropy')
lapq = [
    dict(type='mmquant.InsertQuantizers'),
    dict(
        type='mmquant.NormSweep',
        norms=(2, 2.22, 2.44, 2.67, 2.89, 3.11, 3.33, 3.56, 3.78, 4),
        num_images=512,
        objective=objective,
        name='nearest'),
    dict(
        type='mmquant.JointSearch',
        num_images=512,
        objective=objective,
        searcher=dict(type='mmquant.PowellSearch', num_iters=2)),
]
