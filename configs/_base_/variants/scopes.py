# A detector's reconstruction with nearest rounding beside it, with the head quantized and, as in the detection results
# of BRECQ and QDrop, with backbone and neck alone; and with plain squared errors.
body = dict(scope=['backbone', 'neck'])

variants = {
    'Nearest': dict(steps=dict(Reconstruction=None)),
    'BRECQ': dict(),
    'Nearest, backbone and neck only': dict(steps=dict(Reconstruction=None), quantizer=body),
    'BRECQ, backbone and neck only': dict(quantizer=body),
    'BRECQ with squared errors': dict(steps=dict(Reconstruction=dict(loss=dict(type='mmquant.LpLoss', p=2)))),
}
