# GPTQ (arXiv 2210.17323): codes of the weights layer by layer, from the second moments of what each layer reads. The
# paper stops there; activations get ranges by search.
gptq = dict(
    fold=dict(type='mmquant.FoldBatchNorm'),
    insert=dict(type='mmquant.InsertQuantizers'),
    nearest_weights=dict(type='mmquant.InitWeightRange', observer=dict(type='mmquant.LpNormObserver', p=2.4)),
    nearest=dict(
        type='mmquant.InitActivationRange', observer=dict(type='mmquant.LpNormObserver', p=2.4, max_samples=2**17)),
    # On float activations: those ranges were found with weights that only round to nearest.
    weights=dict(
        type='mmquant.SolveWeights',
        solver=dict(type='mmquant.GPTQ', percdamp=0.01, act_order=True),
        inputs='weights'),
    activation_ranges=dict(
        type='mmquant.InitActivationRange', observer=dict(type='mmquant.LpNormObserver', p=2.4, max_samples=2**17)))
