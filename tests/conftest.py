import torch

# The tensors of the tests are small: more threads would only wait for each other.
torch.set_num_threads(1)
# Where a CPU has no AVX-512, oneDNN of torch 2.13 writes beyond its memory in the backward pass of a strided 1x1
# convolution of 4 channels that lie last (a few lines of plain torch end in heap corruption); toys here have one.
torch.backends.mkldnn.enabled = torch.backends.cpu.get_cpu_capability() != 'AVX2'
