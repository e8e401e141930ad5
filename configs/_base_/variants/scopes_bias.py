# A detector's reconstruction with nearest rounding beside it, with the head quantized and, as in the detection results
# of BRECQ and QDrop, with backbone and neck alone; and its parts.
body = dict(scope=['backbone', 'neck'])
uncorrected = dict(InsertOutputAffine=None, CorrectBias=None)
nearest = dict(Reconstruction=None, **uncorrected)

variants = {
    'Nearest': dict(steps=nearest),
    'Nearest, biases corrected': dict(steps=dict(Reconstruction=None)),
    'BRECQ': dict(),
    'Nearest, backbone and neck only': dict(steps=nearest, quantizer=body),
    'BRECQ, backbone and neck only': dict(quantizer=body),
    'BRECQ without corrected biases': dict(steps=uncorrected),
    'BRECQ with squared gradients as weights': dict(
        steps=dict(Reconstruction=dict(loss=dict(type='mmquant.FisherDiagLoss', p=None)))),
}
