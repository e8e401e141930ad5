"""Registries of mmquant.

A type written ``mmquant.Name`` in a config is found without ``import mmquant``: mmengine imports this module by the
scope's name, and each registry imports its ``locations`` on first use. Keep this file free of heavy imports, because
mmengine swallows an ImportError raised here and then reports "not in the registry".
"""
import mmengine.registry as roots
from mmengine.registry import Registry

# Tensors in, representable values out.
QUANTIZERS = Registry('quantizer', scope='mmquant', locations=['mmquant.quantizers'])
# How a weight picks its level.
ROUNDINGS = Registry('rounding', scope='mmquant', locations=['mmquant.roundings'])
# Structural changes of a model that a plan holds.
EDITS = Registry('edit', scope='mmquant', locations=['mmquant.models'])
# What a runtime takes.
PROFILES = Registry('profile', scope='mmquant', locations=['mmquant.models.deploy_profiles'])
# From a quantized model to files.
EXPORTERS = Registry('exporter', scope='mmquant', locations=['mmquant.export.files'])
# Statistics of tensors to a range.
OBSERVERS = Registry('observer', scope='mmquant', locations=['mmquant.observers'])
# Reconstruction: what a unit is fitted to, what it is given, what happens around its steps, what trains it.
TERMS = Registry('term', scope='mmquant', locations=['mmquant.reconstruction'])
MIXERS = Registry('mixer', scope='mmquant', locations=['mmquant.reconstruction'])
FIT_HOOKS = Registry('fit_hook', scope='mmquant', locations=['mmquant.reconstruction'])
OPTIMIZERS = Registry('optimizer', parent=roots.OPTIMIZERS, scope='mmquant', locations=['mmquant.reconstruction'])
# Codes of a layer's weight, without back-propagation.
SOLVERS = Registry('solver', scope='mmquant', locations=['mmquant.solvers'])
# What a search over clips minimises, and how it searches.
OBJECTIVES = Registry('objective', scope='mmquant', locations=['mmquant.losses'])
SEARCHERS = Registry('searcher', scope='mmquant', locations=['mmquant.search'])
# Where calibration images come from.
SOURCES = Registry('source', scope='mmquant', locations=['mmquant.engine'])
# One stage of an algorithm.
STEPS = Registry('step', scope='mmquant', locations=['mmquant.algorithms'])

LOOPS = Registry('loop', parent=roots.LOOPS, scope='mmquant', locations=['mmquant.engine'])
HOOKS = Registry('hook', parent=roots.HOOKS, scope='mmquant', locations=['mmquant.engine'])
MODELS = Registry('model', parent=roots.MODELS, scope='mmquant', locations=['mmquant.models', 'mmquant.architectures'])
DATASETS = Registry('dataset', parent=roots.DATASETS, scope='mmquant', locations=['mmquant.datasets'])
TRANSFORMS = Registry('transform', parent=roots.TRANSFORMS, scope='mmquant', locations=['mmquant.datasets'])
