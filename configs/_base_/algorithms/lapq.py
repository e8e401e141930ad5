# LAPQ (arXiv 1911.07190): layer-wise optima for several norms, then all clips at once by the network's loss.
objective = dict(type='mmquant.LogitDistance')
lapq = [
    dict(type='mmquant.FoldBatchNorm'),
    dict(type='mmquant.InsertQuantizers'),
    dict(
        type='mmquant.NormSweep',
        norms=(1.5, 2, 2.5, 3, 3.5, 4, 5),
        num_images=512,
        objective=objective,
        name='nearest'),
    dict(
        type='mmquant.JointSearch',
        num_images=512,
        objective=objective,
        searcher=dict(type='mmquant.PatternSearch')),
]
