"""The tables a user sees: coverage, units, summary."""
from collections import Counter

from mmquant.models.cost import FLOAT_BITS, ModelCost
from mmquant.structures.unit import Unit
from mmquant.utils.tables import render


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


def _unit_bits(unit: Unit, bits: dict[str, tuple[int, int]]) -> list[str]:
    return list(dict.fromkeys('/'.join(bits_text(b) for b in bits[name]) for name in unit.layers if name in bits))


def summary_table(stages: list[dict], cost: ModelCost, seconds: float, peak_bytes: int) -> str:
    """Accuracy after each stage, then size, bit operations, time and memory."""
    keys, rows = stage_rows(stages)
    table = render('Accuracy', ('stage', *keys, 'seconds'), rows)
    saving = cost.float_size_mb / cost.size_mb
    return table + (f'size {cost.size_mb:.3f} MB (float {cost.float_size_mb:.3f} MB, {saving:.1f} times smaller), '
                    f'{cost.bops / 1e9:.3f} GBOPs, {seconds:.0f} s in all, peak memory {peak_bytes / 2**30:.2f} GiB')
