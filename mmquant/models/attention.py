"""``nn.MultiheadAttention`` with its projections as layers of their own, so that they can be quantized."""
import torch
from torch import nn

from mmquant.models.layers import computed_parts

PARTS = ('weight', 'bias', 'in_proj_weight', 'in_proj_bias', 'q_proj_weight', 'k_proj_weight', 'v_proj_weight')


class SplitMultiheadAttention(nn.MultiheadAttention):
    """What :func:`split_attention` turns ``nn.MultiheadAttention`` into: the same arguments, outputs and numbers.

    ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj`` are linear layers that are called; the two products of matrices
    are plain ``torch.matmul``. Evaluation only: there is no dropout.
    """

    def forward(self, query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None,
                average_attn_weights=True, is_causal=False):
        batched = query.dim() == 3
        q, k, v = (x if batched else x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value))
        if not self.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # (N, L, E)
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, heads, L, E / heads)
                   for layer, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v)))
        scores = torch.matmul(q * q.shape[-1]**-0.5, k.transpose(-2, -1))  # (N, heads, L, S)
        for mask, shape in ((attn_mask, None), (key_padding_mask, (-1, 1, 1, k.shape[2]))):
            if mask is not None:
                shape = shape or ((-1, self.num_heads, *mask.shape[1:]) if mask.dim() == 3 else mask.shape)
                mask = mask.reshape(shape)
                scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        weights = scores.softmax(-1)
        out = self.out_proj(torch.matmul(weights, v).transpose(1, 2).flatten(2))  # (N, L, E)
        out = out if self.batch_first else out.transpose(0, 1)
        if average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            out, weights = out.squeeze(0 if self.batch_first else 1), weights.squeeze(0)
        return out, weights if need_weights else None


def splittable(model: nn.Module) -> dict[str, nn.MultiheadAttention]:
    """What :func:`split_attention` splits: plain modules, without learned extra keys, zero attention, own forward."""
    return {n: m for n, m in model.named_modules() if type(m) is nn.MultiheadAttention and m.bias_k is None
            and not m.add_zero_attn and 'forward' not in vars(m)
            and not any(computed_parts(x, PARTS) for x in (m, m.out_proj))}


@torch.no_grad()
def split_attention(model: nn.Module, skipped: tuple[str, ...] = ()) -> int:
    """Split every ``nn.MultiheadAttention`` that can be split but some, in place; returns how many."""
    found = [m for n, m in splittable(model).items() if n not in skipped]
    for module in found:
        weights = module.in_proj_weight.chunk(3) if module._qkv_same_embed_dim else (
            module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        for name in PARTS[2:]:  # None, where the layers around ask for it: no fast path then
            module._parameters[name] = None
        for name, weight, bias in zip(('q_proj', 'k_proj', 'v_proj'), weights, biases):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype)
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
            setattr(module, name, layer)
        module.__class__ = SplitMultiheadAttention
    for encoder in model.modules() if found else ():
        if isinstance(encoder, nn.TransformerEncoder):
            encoder.use_nested_tensor = False  # ragged batches are for the fast path alone
    return len(found)
