"""BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction (https://arxiv.org/abs/2102.05426).

    w_hat = s (clip(floor(w / s) + h(v) + z, q_min, q_max) - z),    h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)
    weights        min over v    E |block(x_q; w_hat) - block(x; w)|^2  +  lambda sum(1 - |2 h(v) - 1|^beta)
    activations    min over s    E |block_q(x) - block(x)|^2.4

A second-order view of the loss makes a block's output error, weighed by curvature, stand for the damage to the net.

Steps of ``configs/_base_/algorithms/brecq.py``:

- ``fold``, ``insert``: BatchNorm into the convolutions, then quantizers where data flow says that tensors are made.
- ``nearest_weights``, ``nearest``: ranges by the error to the power 2.4, as in the authors' code; what nearest rounding
  gives, with which every unit is compared.
- ``weights``: AdaRound block by block, 20000 steps at 1e-3. ``beta`` falls from 20 to 2 after a fifth of the steps.
- ``activation_ranges``: once more, since learned roundings change what flows through the net.
- ``activations``: step sizes block by block, 5000 steps, on float inputs.

``brecq_short`` has 1000 and 500 steps and ten times the rate of the roundings: at 1e-3 a quarter of them would still be
undecided at the end. ``brecq_det`` takes two images per step, as QDrop's detection code does. What one network needs
(a relative regularizer, corrected biases) stands in its leaf, with the reason.

Where this differs from the authors' code, on purpose:

- The plain squared error, as their code and not as the paper; ``FisherLoss`` weighs by squared gradients.
- Up to 64 images, at most one in eight, are held out; a unit that is better on them with nearest rounding, or with its
  initial step sizes, keeps those.
- The tensor that the head really reads has 8 bits; their code sets the quantizer of the last but one layer, which in
  ResNet and RegNet is switched off.
- Zero is always representable, remainders of batches are used, the model never leaves eval mode, ranges of activations
  are searched on a sample of the values, activations are handed on from block to block instead of computed anew.
- Blocks and what folds come from data flow: no wrapper classes. The search for bit widths is not here.
"""
