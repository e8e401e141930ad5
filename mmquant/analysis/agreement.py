"""How far a quantized model agrees with the float model it was made from."""
import math

import torch

from mmquant.models.reference import Reference


@torch.no_grad()
def agreement(model, images: list | None = None) -> dict:
    """SQNR of all outputs, and the share of images whose largest class stays the same.

    Compared are the quantized weights and activations that have a range with the original float model, on the images
    that ``model.reference`` keeps. A model loaded from a quantized checkpoint has none: ``images`` (chunks of tensors)
    are then compared with its own float mode. ValueError without both.

    Returns:
        dict: ``sqnr_db`` (inf where nothing differs, NaN if the original is all zero or outputs are not finite; both
        are null in results.json), ``top1_agreement`` (0..1; None unless the outputs are one tensor (N, classes)),
        ``images``, ``reference`` (``'original'`` or ``'float mode'``).
    """
    reference, kind = model.reference, 'original'
    if reference is None:
        if not images:
            raise ValueError('this model was loaded quantized and keeps no outputs of its float original: give images')
        reference, kind = Reference(model, [(chunk, None) for chunk in images]), 'float mode'
    signal = noise = 0.0
    same, count, logits = 0, 0, True
    with model.frozen(*model.ready):
        for index, before in enumerate(reference.outputs):
            after = reference.run(model, index)
            for a, b in zip(before, after):
                if a.is_floating_point():
                    signal += a.double().square().sum().item()
                    noise += (a.double() - b.double()).square().sum().item()
            logits = logits and len(before) == 1 and before[0].dim() == 2 and before[0].shape[1] > 1
            if logits:
                same += int((before[0].argmax(1) == after[0].argmax(1)).sum())
            count += len(reference.batches[index][0])
    sqnr = 10 * math.log10(max(signal / noise, 1e-30)) if signal and noise else math.inf if signal else math.nan
    return dict(sqnr_db=sqnr, top1_agreement=same / count if logits else None, images=count, reference=kind)


def agreement_line(found: dict) -> str:
    """What :func:`agreement` found, in one line."""
    whose = 'the original float model' if found['reference'] == 'original' else 'its own float mode'
    top1 = '' if found['top1_agreement'] is None else f', top-1 agreement {found["top1_agreement"]:.1%}'
    return f'Outputs against {whose} on {found["images"]} calibration images: {_sqnr_text(found["sqnr_db"])}{top1}'


def _sqnr_text(sqnr: float) -> str:
    if math.isfinite(sqnr):
        return f'SQNR {sqnr:.1f} dB'
    return 'no difference' if sqnr > 0 else 'no SQNR (outputs that are all zero or not finite)'
