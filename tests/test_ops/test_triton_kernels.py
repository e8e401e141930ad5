"""Kernels for GPUs against tensor operations; skipped without one."""
import pytest
import torch

from mmquant.ops import fake_quantize, regularized_soft_weight, soft_weight, triton_kernels

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


def test_tensors_on_a_cpu_are_not_for_it():
    assert not triton_kernels.usable(torch.zeros(3, 3))


@needs_gpu
@pytest.mark.parametrize('shape, scale_shape', [((6, 5), (6, 1)), ((20, 100, 3, 3), (20, 1, 1, 1)), ((7, 3000), ())])
@pytest.mark.parametrize('last', [False, True])
def test_same_as_on_the_cpu(shape, scale_shape, last):
    torch.manual_seed(0)
    v, base, direction = torch.randn(shape) * 2, torch.randint(-6, 5, shape).float(), torch.randn(shape)
    scale, zero_point = torch.rand(scale_shape) + 0.1, torch.full(scale_shape, 3.)
    if last and len(shape) == 4:
        v, base = (x.contiguous(memory_format=torch.channels_last) for x in (v, base))
    found = []
    for device in ('cpu', 'cuda'):
        x = v.to(device).requires_grad_()
        rest = [t.to(device) for t in (base, scale, zero_point)]
        beta = 7.3 if device == 'cpu' else torch.tensor(7.3, device=device)
        weight, penalty = regularized_soft_weight(x, *rest, 0, 7, beta)
        both, = torch.autograd.grad((weight * direction.to(device)).sum() + 0.3 * penalty, x)
        alone, = torch.autograd.grad((soft_weight(x, *rest, 0, 7) * direction.to(device)).sum(), x)
        found.append([t.detach().cpu() for t in (weight, penalty, both, alone)])
        assert device == 'cpu' or triton_kernels.usable(x.detach(), rest[0])
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@needs_gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('last', [False, True])
def test_fake_quantization_is_the_same(dtype, last):
    torch.manual_seed(0)
    x = torch.cat([torch.randn(7, 5, 33, 9) * 3, torch.arange(-20, 20).reshape(1, 5, 1, 8).expand(1, 5, 33, 8).repeat(
        1, 1, 1, 2)[..., :9] * 0.25]).to(dtype)  # many ties
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    direction, found = torch.randn(x.shape).to(dtype), []
    for device in ('cpu', 'cuda'):
        a, scale = x.to(device).requires_grad_(), torch.tensor(0.5, device=device, requires_grad=True)
        out = fake_quantize(a, scale, torch.tensor(3., device=device), 0, 15)
        grads = torch.autograd.grad((out.float() * direction.to(device).float()).sum(), [a, scale])
        found.append([t.detach().cpu().float() for t in (out, *grads)])
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
