# A detector's reconstruction with nearest rounding beside it, with the head quantized and, as in the detection results
# of BRECQ and QDrop, with backbone and neck alone.
body = dict(scope=['backbone', 'neck'])

variants = {
    'Nearest': dict(steps=dict(weights=None, activations=None)),
    'BRECQ': dict(),
    'Nearest, backbone and neck only': dict(steps=dict(weights=None, activations=None), quantizer=body),
    'BRECQ, backbone and neck only': dict(quantizer=body),
}
