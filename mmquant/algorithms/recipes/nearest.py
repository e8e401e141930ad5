"""Ranges and nearest rounding: nothing is trained. The grid is that of https://arxiv.org/abs/1712.05877.

Steps of ``configs/_base_/algorithms/nearest.py``: ``fold``, ``insert``, then ``nearest_weights`` and ``nearest``, which
find ranges by the error to the power 2.4 as BRECQ does, where the paper trains and takes extremes.
"""
