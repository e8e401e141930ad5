# LAPQ (arXiv 1911.07190): layer-wise optima for several norms, then all clips at once by the network's loss.
lapq = dict(
    fold=dict(type='mmquant.FoldBatchNorm'),
    insert=dict(type='mmquant.InsertQuantizers'),
    nearest=dict(
        type='mmquant.NormSweep',
        norms=(1.5, 2, 2.5, 3, 3.5, 4, 5),
        num_images=512,
        objective=dict(type='mmquant.LogitDistance')),
    joint=dict(
        type='mmquant.JointSearch',
        num_images=512,
        objective=dict(type='mmquant.LogitDistance'),
        searcher=dict(type='mmquant.PatternSearch')))
