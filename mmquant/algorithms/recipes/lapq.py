"""LAPQ: Loss Aware Post-Training Quantization (https://arxiv.org/abs/1911.07190). Nothing is trained: clips alone.

    phase 1   alpha_i(p) = argmin E |Q(x_i; alpha) - x_i|^p      for every quantizer i and some values of p
    phase 2   p* = vertex of the parabola through (p, L(alpha(p)))
    phase 3   min over alpha of L(alpha), from the best of these, all clips at once; L is the network's own loss

At 4 bits and below clips depend on each other, so that a layer-wise optimum is none of the network.

Steps of ``configs/_base_/algorithms/lapq.py``:

- ``fold``, ``insert``: as in BRECQ. Weights round to nearest throughout.
- ``nearest``: phases 1 and 2, seven norms on 512 images; the stage that shows the best layer-wise optimum.
- ``joint``: phase 3, by the squared distance of the logits and a pattern search.

``lapq_short`` uses 128 images, ``lapq_det`` 32. ``lapq_official`` is the authors' way: ten norms, cross-entropy with
labels, two iterations of Powell's method, no folding; with the quantizers of the same name (no level at zero, means
kept, first and last layer float). BRECQ's stages may follow: the configs named ``brecq`` put ``weights`` and
``activations`` after ``joint``.

Where this differs from the authors' code, on purpose:

- Calibration images are training images; theirs are drawn, with labels, from the validation set.
- The vertex counts only where the parabola has a minimum within the sampled p, and only if the loss there is smallest;
  the best of all evaluated points stays, ranges of whole tensors included. No phase ends above the one before.
- Clips are searched in logarithms, so none becomes negative; a layer with one clip per channel has one common factor.
- Activation clips come from 128 images that went through the quantized layers upstream, not from one batch.
- Layer-wise optima are found on a refined grid, whatever version of SciPy; the model is not built anew for each p.
"""
