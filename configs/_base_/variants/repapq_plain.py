# What absolute errors and the stage term do where no branches merge: nearest rounding with three choices of ranges, and
# each part alone on top of plain reconstruction (squared errors in ranges and loss, no stage term). With one scale a
# tensor for weights, as the configs have it, and with one a channel; activations have one a tensor in both.
full = dict(type='mmquant.MinMaxObserver', p=None, max_samples=None)
squared = dict(observer=dict(p=2))
absolute = dict(observer=dict(p=1))
by_square = dict(nearest_weights=squared, nearest=squared)
by_distance = dict(nearest_weights=absolute, nearest=absolute)
plain = dict(terms=dict(unit=dict(p=2), tail=None))
squares = dict(terms=dict(unit=dict(p=2), tail=dict(p=2)))
channel = dict(weight=dict(granularity='channel'))

variants = {
    'Nearest, min-max': dict(
        steps=dict(joint=None, nearest_weights=dict(observer=full), nearest=dict(observer=full))),
    'Nearest, squared error (p = 2)': dict(steps=dict(joint=None, **by_square)),
    'Nearest, absolute error (p = 1)': dict(steps=dict(joint=None, **by_distance)),
    'Plain reconstruction': dict(steps=dict(joint=plain, **by_square)),
    'Plain + absolute error for ranges': dict(steps=dict(joint=plain, **by_distance)),
    'Plain + absolute error as loss': dict(steps=dict(joint=dict(terms=dict(tail=None)), **by_square)),
    'Plain + stage term': dict(steps=dict(joint=squares, **by_square)),
    'All three': dict(steps=by_distance),
    'Nearest, squared error, one scale a channel': dict(
        steps=dict(joint=None, **by_square), quantizer=channel),
    'Nearest, absolute error, one scale a channel': dict(
        steps=dict(joint=None, **by_distance), quantizer=channel),
    'Plain reconstruction, one scale a channel': dict(
        steps=dict(joint=plain, **by_square), quantizer=channel),
    'Plain + absolute error for ranges, one scale a channel': dict(
        steps=dict(joint=plain, **by_distance), quantizer=channel),
    'Plain + absolute error as loss, one scale a channel': dict(
        steps=dict(joint=dict(terms=dict(tail=None)), **by_square), quantizer=channel),
    'Plain + stage term, one scale a channel': dict(
        steps=dict(joint=squares, **by_square), quantizer=channel),
    'All three, one scale a channel': dict(steps=by_distance, quantizer=channel),
}
