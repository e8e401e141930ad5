"""RepAPQ, accurate quantization of re-parameterised networks (https://arxiv.org/abs/2402.16121).

    y_hat = a conv(x, Q(w)) + d,  a = 1 at the start;  after the fit scale <- a scale, integers unchanged
    min over w, s, a, d and step sizes    E |y_hat - y|  +  E |rest_of_stage(y_hat) - rest_of_stage(y)|

Branches that train apart and run as one convolution leave a few values far larger than the rest. Known from the paper's
abstract: the channel-wise affine layer, the absolute error, the two scopes of the loss. Where the affine stands, how it
begins, rates and numbers of steps are this project's; ``configs/repapq/README.md`` tells one from the other.

Steps of ``configs/_base_/algorithms/repapq.py``, for 8 bits:

- ``merge``: branches become one convolution, exactly; before ``fold``, which could not reach the branches afterwards.
- ``fold``, ``insert``: as in BRECQ. Merged blocks have no residual sum to be found by: the leaf names their class.
- ``affines``: a factor and a bias for each output channel of the merged convolutions.
- ``nearest_weights``: full ranges, since the absolute error would clip the taps of the identity branch away.
- ``nearest``: ranges of activations by the absolute error, which outliers do not decide.
- ``joint``: everything trains together, straight through the rounding, 500 steps of 64 images.
- ``folded``: factors go into the scales. With one scale per tensor they stay, as multipliers of the channels.

``repapq_w4`` learns roundings as BRECQ does, in 10000 steps. ``repapq_plain`` is for networks without branches: ranges
of weights by the squared error, biases but no factors. 6-bit leaves take 2000 steps.
"""
