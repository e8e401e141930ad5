"""QDrop: Randomly Dropping Quantization for Extremely Low-bit PTQ (https://arxiv.org/abs/2203.05740).

    min over v, s    E |block~(x~; w_hat(v), s) - block(x; w)|^2  +  lambda sum(1 - |2 h(v) - 1|^beta)
    x~ = m x_q + (1 - m) x          input of the block: of the quantized prefix, or of the float one
    a~ = m' Q_s(a) + (1 - m') a     every activation inside of it, its output included
    m, m' ~ Bernoulli(1/2)          for each element, drawn anew in each step; the probability of being *quantized*

Roundings (AdaRound) and activation scales (LSQ) are learnt together while half of the activations are quantized. Noise
of an activation acts as noise of the weights: seeing parts of it at random makes the solution flat in more directions.
For a linear unit it adds ``p (1 - p) E[(x_q - x)^2]`` to the diagonal of the normal equations.

Steps of ``configs/_base_/algorithms/qdrop.py``:

- ``fold``, ``insert``, ``nearest_weights``: as in BRECQ.
- ``nearest``: ranges of activations by the error to the power 2.4, on 256 images of the *float* network.
- ``joint``: 20000 steps; roundings at 1e-3, activation scales at 4e-5 along a cosine. MobileNetV2 has lambda 0.1.

``qdrop_short`` has 800 steps and about twenty times the rates.

Where this differs from the authors' code: a block that is not better than its start on held-out images keeps its start;
rows are drawn without replacement, and remainders of batches are used; the first layer stays at nearest rounding where
no activation of its unit trains; the tensor behind the first layer has 8 bits, where their code gives it the low width.
"""
