# As scopes.py, for a recipe that corrects biases.
_base_ = ['./scopes.py']

uncorrected = dict(weights=None, activations=None, biases=None)
variants = {
    'Nearest': dict(steps=uncorrected),
    'Nearest, backbone and neck only': dict(steps=uncorrected),
    'Nearest, biases corrected': dict(steps=dict(weights=None, activations=None)),
}
