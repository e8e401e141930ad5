# A detector's search with the best layer-wise norm beside it, with the head quantized and with backbone and neck alone.
body = dict(scope=['backbone', 'neck'])

variants = {
    'Best layer-wise norm': dict(steps=dict(joint=None)),
    'LAPQ': dict(),
    'Best layer-wise norm, backbone and neck only': dict(steps=dict(joint=None), quantizer=body),
    'LAPQ, backbone and neck only': dict(quantizer=body),
}
