# As scopes.py, for a recipe that corrects biases.
body = dict(scope=['backbone', 'neck'])
uncorrected = dict(InsertOutputAffine=None, CorrectBias=None)
nearest = dict(Reconstruction=None, **uncorrected)

variants = {
    'Nearest': dict(steps=nearest),
    'Nearest, biases corrected': dict(steps=dict(Reconstruction=None)),
    'BRECQ': dict(),
    'BRECQ without corrected biases': dict(steps=uncorrected),
    'Nearest, backbone and neck only': dict(steps=nearest, quantizer=body),
    'BRECQ, backbone and neck only': dict(quantizer=body),
}
