# Nearest rounding for integer kernels: quantizers between operations from the start, means of the layers' outputs given
# back by their biases, which end on the grid of the sums.
_base_ = './nearest.py'

nearest = dict(
    deploy=dict(type='mmquant.InsertDeployQuantizers', profile='ort_cpu', after='insert'),
    biases=dict(type='mmquant.CorrectBias'),
    rounded_biases=dict(type='mmquant.RoundBiases', profile='ort_cpu'))
