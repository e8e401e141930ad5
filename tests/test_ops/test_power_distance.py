"""Sums of powers against plain autograd, by the compiled kernel and by tensor operations."""
import pytest
import torch

from mmquant.ops import c_kernels, power_distance


@pytest.mark.parametrize('p', [1.0, 2.0, 2.4, 3.0])
@pytest.mark.parametrize('compiled', [True, False])
def test_value_and_gradient(p, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(c_kernels, 'library', lambda: None)
    torch.manual_seed(0)
    x, y = torch.randn(3, 5, 40, 70, requires_grad=True), torch.randn(3, 5, 40, 70)
    with torch.no_grad():
        x[0, 0, 0, :5] = y[0, 0, 0, :5]  # equal elements
    loss = power_distance(x, y, p)
    loss.backward()
    reference = (x.detach().double() - y.double())
    assert loss.item() == pytest.approx(reference.abs().pow(p).sum().item(), rel=1e-5)
    slope = p * reference.abs().pow(p - 1) * reference.sign()
    assert torch.allclose(x.grad.double(), slope, rtol=1e-4, atol=1e-6)
    assert (x.grad[0, 0, 0, :5] == 0).all()


def test_channels_last_and_strides_that_differ():
    x = torch.randn(2, 4, 9, 9).contiguous(memory_format=torch.channels_last)
    y = torch.randn(2, 4, 9, 9)
    assert power_distance(x, y, 2.4).item() == pytest.approx((x - y).abs().pow(2.4).sum().item(), rel=1e-5)


def test_compiled_kernels_agree_with_tensor_operations(monkeypatch):
    from mmquant.ops import fake_quantize, rounding_regularizer, soft_weight
    if c_kernels.library() is None:
        pytest.skip('no C compiler here: there is nothing to compare')
    torch.manual_seed(0)
    v0, base = torch.randn(6, 50, 3, 3) * 3, torch.randint(-3, 3, (6, 50, 3, 3)).float()
    scale, zero_point = torch.rand(6, 1, 1, 1) + 0.1, torch.randint(0, 4, (6, 1, 1, 1)).float()
    x0, g = torch.randn(4, 8, 40, 40) * 3, torch.randn(4, 8, 40, 40)

    def everything():
        v, x = v0.clone().requires_grad_(), x0.clone().requires_grad_()
        step, zero = torch.tensor(0.37, requires_grad=True), torch.tensor(3.0)
        weight = soft_weight(v, base, scale, zero_point, 0, 3)
        (weight.square().sum() + 0.1 * rounding_regularizer(v, 7.3)).backward()
        x_hat = fake_quantize(x, step, zero, 0, 15)
        (x_hat * g).sum().backward()
        return weight.detach(), v.grad, x_hat.detach(), x.grad, step.grad

    compiled = everything()
    monkeypatch.setattr(c_kernels, 'library', lambda: None)
    for a, b in zip(compiled, everything()):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert torch.equal(compiled[2], everything()[2])  # forward values to the bit


@pytest.mark.parametrize('p', [1.0, 2.0, 2.4])
def test_bfloat16_predictions_keep_a_float32_sum(p):
    torch.manual_seed(0)
    x, y = torch.randn(3, 5, 40, 70).bfloat16().requires_grad_(), torch.randn(3, 5, 40, 70)
    loss = power_distance(x, y, p, 7)
    assert loss.dtype == torch.float32
    (3 * loss).backward()
    error = x.detach().double() - y.double()
    assert loss.item() == pytest.approx(error.abs().pow(p).sum().item() / 7, rel=1e-5)
    slope = 3 / 7 * p * error.abs().pow(p - 1) * error.sign()
    assert x.grad.dtype == torch.bfloat16 and torch.allclose(x.grad.double(), slope, rtol=2**-7, atol=1e-6)
