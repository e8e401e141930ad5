"""A page for each method of several steps, by the name of its paper: formula, where we differ, what its steps do.

The steps are configs, ``configs/_base_/algorithms/<method>.py``. A new method is such a file, its page here and its
folder of configs; only what no step can do yet is code. A method that is one grid or one solver has its page there.
"""
