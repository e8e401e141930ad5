"""Plans of checkpoints written before a plan held whole quantizers (format 1): layers, outputs and matmuls with bits.

Such a plan names the quantizer of a layer's input in prose (``note``), and its quantizers in the model's config alone.
"""
from mmquant.models.edits import AddOutputAffine, CallsLayers, Folded, Merged, SplitAttention
from mmquant.models.matmul import OPERANDS
from mmquant.models.plan import Place, Plan
from mmquant.models.policy import QuantizerPolicy

AT = 'quantized at '


def from_old_dict(d: dict, policy: QuantizerPolicy) -> Plan:
    """The plan that ``d``, of format 1, stands for; any error of a wrong key, type or value if it is damaged.

    The policy, of the model that loads it, gives the kinds of quantizers, and ``d`` their bits.
    """
    layers = d['layers']
    scope = [x['name'] for x in layers if policy.covers(x['name'])]
    places = [Place(x['name'], 'output', {**policy.activations, 'bits': x['bits']},
                    tuple(y['name'] for y in layers if y['note'] == AT + x['name'] and y['name'] in scope))
              for x in d['outputs']]
    places += [Place(x['name'], 'weight', {**policy.weights, 'bits': x['w_bits']}, (x['name'], ))
               for x in layers if x['w_bits'] is not None]
    for x in layers:
        if x['a_bits'] is not None and not x.get('shares'):
            places += _inputs(x, [y['name'] for y in layers if y.get('shares') == x['name']], policy)
    places += [Place(x['name'], 'operand', {**policy.operands, 'bits': x['bits']}, call=int(site), role=role)
               for x in d['matmuls'] for site, kind in x['sites'].items() for role in OPERANDS[kind]]
    return Plan(tuple(places), tuple((x['name'], x['note']) for x in layers if x['w_bits'] is None), tuple(_edits(d)))


def _inputs(layer: dict, sharers: list[str], policy: QuantizerPolicy):
    name, calls, channels = layer['name'], layer.get('calls', 1), layer.get('channels', 0)
    quantizer = {**policy.activations, 'bits': layer['a_bits'], **({'granularity': 'channel'} if channels else {})}
    for call in range(calls):
        yield Place(name, 'input', quantizer, (name, *sharers), call if calls > 1 else None,
                    shape=(1, channels, 1, 1) if channels else None)


def _edits(d: dict):
    if d.get('reparameterized'):
        yield Merged()
    for layer, bn in d['folded']:
        yield Folded(layer, bn)
    if d.get('split_attention'):
        yield SplitAttention()
    for owner, names in d.get('functional', {}).items():
        yield CallsLayers(owner, tuple(names))
    for name in d.get('affine', ()):
        yield AddOutputAffine(name)


AFFINE_NAMES = {'output_affine.bias': 'quantized_bias', 'output_affine.scale': 'adapters.0.scale',
                'output_affine.initial_scale': 'adapters.0.initial_scale'}


def convert_state(state: dict, plan: Plan) -> None:
    """Bring a state of format 1 up to date, in place.

    Layers with float weights held a weight quantizer, switched off; output affines had a place of their own.
    """
    idle = tuple(f'{name}.weight_quantizer.' for name, _ in plan.float_layers)
    for key in list(state):
        if key.startswith(idle):
            del state[key]
        for old, new in AFFINE_NAMES.items():
            if key.endswith(f'.{old}'):
                state[key.removesuffix(old) + new] = state.pop(key)
