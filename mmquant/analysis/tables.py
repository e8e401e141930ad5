"""The tables a user sees: coverage, units, summary."""
from collections import Counter

from mmquant.models import QuantizedModel
from mmquant.models.cost import FLOAT_BITS, ModelCost, model_cost
from mmquant.structures.unit import Unit
from mmquant.utils.building import ConfigError
from mmquant.utils.tables import render

SHOWN = 5  # float layers in a short summary


def bits_text(bits: int) -> str:
    """Bits as a user reads them."""
    return 'float' if bits == FLOAT_BITS else str(bits)


def stage_rows(stages: list[dict]) -> tuple[list[str], list[tuple]]:
    """Names of the metrics, and a row a stage: its name, its metrics, seconds."""
    keys = list(dict.fromkeys(k for s in stages for k in s['metrics']))
    return keys, [(s['name'], *(s['metrics'].get(k) for k in keys), s['seconds']) for s in stages]


def coverage_table(cost: ModelCost) -> str:
    """Every layer with weights: bits, parameters, MACs, and why it is not quantized."""
    rows = [(x.name, bits_text(x.w_bits), bits_text(x.a_bits), f'{x.params:,}', f'{x.macs / 1e6:,.2f}', x.note)
            for x in cost.layers]
    done = sum(x.w_bits != FLOAT_BITS for x in cost.layers)
    title = f'Coverage: {done} of {len(cost.layers)} layers with weights are quantized'
    return render(title, ('layer', 'W bits', 'input bits', 'params', 'MACs (M)', 'note'), rows)


def units_table(units: list[Unit], bits: dict[str, tuple[int, int]]) -> str:
    """Units in execution order with their layers and bits (weights / input)."""
    rows = [(u.name or '(net)', u.kind, len(u.layers), ' '.join(_unit_bits(u, bits)), u.layers[0] if u.layers else '')
            for u in units]
    kinds = ', '.join(f'{n} {k}' for k, n in Counter(u.kind for u in units).items())
    return render(f'Units: {len(units)} ({kinds})', ('unit', 'kind', 'layers', 'W/A bits', 'first layer'), rows)


def summary(model: QuantizedModel, granularity: str = 'block') -> str:
    """Units, coverage and cost of a model with inserted quantizers; ConfigError without."""
    if model.plan is None or model.flow is None:
        raise ConfigError('summary: this model has no quantizers yet, or its data flow was not observed since it was '
                          'loaded; run model.observe(images) on two images first')
    cost = model_cost(model, model.flow.shapes[model.flow.network_inputs[0]][0])
    bits = {x.name: (x.w_bits, x.a_bits) for x in cost.layers}
    return f'{units_table(model.units(granularity), bits)}\n{coverage_table(cost)}\n{size_line(cost)}'


def size_line(cost: ModelCost) -> str:
    """Size and operations in one line."""
    return (f'size {cost.size_mb:.3f} MB (float {cost.float_size_mb:.3f} MB), {cost.macs / 1e9:.3f} GMACs, '
            f'{cost.bops / 1e9:.3f} GBOPs for one image')


def short_summary(model: QuantizedModel, granularity: str) -> str:
    """Widths, units and what stays float, in a few lines."""
    widths = Counter(p.bits for p in model.plan.weights.values())
    rest = model.plan.float_layers
    lines = [f'{len(model.plan.weights)} of {len(model.plan.layers)} layers with weights are quantized'
             + (f' ({", ".join(f"{n} at {b} bits" for b, n in sorted(widths.items()))})' if widths else '')]
    kinds = Counter(u.kind for u in model.units(granularity))
    lines.append(f'{sum(kinds.values())} units ({", ".join(f"{n} {k}" for k, n in kinds.items())})')
    lines += [f'float: {name or "the model itself"} ({reason})' for name, reason in rest[:SHOWN]]
    lines += [f'float: {len(rest) - SHOWN} more; mmquant.summary(model) lists all'] if len(rest) > SHOWN else []
    return '\n'.join(lines)


def _unit_bits(unit: Unit, bits: dict[str, tuple[int, int]]) -> list[str]:
    return list(dict.fromkeys('/'.join(bits_text(b) for b in bits[name]) for name in unit.layers if name in bits))


def summary_table(stages: list[dict], cost: ModelCost, seconds: float, peak_bytes: int) -> str:
    """Accuracy after each stage, then size, bit operations, time and memory."""
    keys, rows = stage_rows(stages)
    table = render('Accuracy', ('stage', *keys, 'seconds'), rows)
    saving = cost.float_size_mb / cost.size_mb
    return table + (f'size {cost.size_mb:.3f} MB (float {cost.float_size_mb:.3f} MB, {saving:.1f} times smaller), '
                    f'{cost.bops / 1e9:.3f} GBOPs, {seconds:.0f} s in all, peak memory {peak_bytes / 2**30:.2f} GiB')
