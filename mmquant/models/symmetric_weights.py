"""8-bit weights with zero points, which integer kernels do not take, on a symmetric grid instead."""
from dataclasses import replace

import torch

from mmquant.models.builder import quantizer_of
from mmquant.models.quantizer_index import QuantizerIndex


@torch.no_grad()
def make_symmetric(model, names: list[str]) -> dict[str, float]:
    """Give layers a symmetric weight quantizer of the same width that covers their values, and the nearest codes.

    Plan and index follow, so that a checkpoint holds it. ``names``: layers whose codes are decided. Returns, by layer,
    the root mean square change of its weights relative to their own.
    """
    changed, places = {}, {}
    for name in names:
        layer, place = model.architecture.get_submodule(name), model.plan.weights[name]
        old = layer.weight_quantizer
        values = old.decode(old.codes)
        places[name] = replace(place, quantizer={**place.quantizer, 'symmetric': True})
        new = quantizer_of(places[name], layer).to(values.device)
        most = new.granularity.to_groups(values).abs().amax(1)
        new.set_range(-most, most)
        new.set_codes(new.encode(values))
        layer.weight_quantizer = new
        shift = (new.decode(new.codes) - values).square().mean().sqrt()
        changed[name] = float(shift / values.square().mean().sqrt().clamp(min=1e-30))
    model.plan = replace(model.plan, places=tuple(
        places.get(p.name, p) if p.what == 'weight' else p for p in model.plan.places))
    model.index = QuantizerIndex(model.architecture, model.plan)
    model.train(False)
    return changed
