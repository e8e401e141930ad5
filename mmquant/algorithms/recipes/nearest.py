"""Ranges and nearest rounding: nothing is trained. The grid is that of https://arxiv.org/abs/1712.05877.

Steps of ``configs/_base_/algorithms/nearest.py``: ``fold``, ``insert``, then ``nearest_weights`` and ``nearest``, which
find ranges by the error to the power 2.4 as BRECQ does, where the paper trains and takes extremes.

``nearest_integer`` makes what integer kernels run: ``deploy`` adds quantizers between operations, ``biases`` gives each
output channel its mean back, ``rounded_biases`` puts the biases on the grid of the sums.
"""
