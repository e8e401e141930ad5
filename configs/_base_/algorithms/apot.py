# APoT (arXiv 1909.13144) after training: the clips of least squared error, then GPTQ on the grid. The paper trains.
apot = dict(
    fold=dict(type='mmquant.FoldBatchNorm'),
    insert=dict(type='mmquant.InsertQuantizers'),
    nearest_weights=dict(type='mmquant.InitWeightRange', observer=dict(type='mmquant.LpNormObserver', p=2)),
    nearest=dict(
        type='mmquant.InitActivationRange', observer=dict(type='mmquant.LpNormObserver', p=2, max_samples=2**17)),
    weights=dict(type='mmquant.SolveWeights', solver=dict(type='mmquant.GPTQ')),
    # Other weights change what flows through the network, so ranges of activations are searched once more.
    activation_ranges=dict(
        type='mmquant.InitActivationRange', observer=dict(type='mmquant.LpNormObserver', p=2, max_samples=2**17)))
