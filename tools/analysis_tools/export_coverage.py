"""Which models of a zoo become files that a runtime computes as the simulation does: one model, or the table of all."""
from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from model_coverage import W8A8, apart, calibrated, merged_or_not, told
from noise_sources import powers

from mmquant.algorithms import InsertDeployQuantizers, RoundBiases
from mmquant.algorithms.preparation import InsertQuantizers
from mmquant.analysis.inspection import sqnr_db
from mmquant.export.compare import compare
from mmquant.export.parts import Part, parts_of
from mmquant.export.qdq import export_qdq
from mmquant.export.runtime import RuntimeSession
from mmquant.export.simulated_codes import differences
from mmquant.export.tracing import ExportError
from mmquant.models import QuantizedModel

RECIPE = dict(W8A8, weight=dict(W8A8['weight'], symmetric=True))
LARGEST_SHARE, FEW = 1e-3, 3
CLOSE, EQUAL = 20, 200.0  # dB


@dataclass(frozen=True)
class Exported:
    """What was found about one model.

    Attributes:
        calibrated (bool): It could be quantized, so that a failure is one of the export.
        files (int): That were written: one for each part.
        batch (int): 0 for files that take any number of images, else the number.
        share (float): Of the multiplications in integer kernels; the least of the files.
        kept (int): Layers whose weights stay float in the file.
        codes, differing, behind (int): Gate G1: codes of the runtime, how many are not the executor's, and how many of
            these lie behind a float operator.
        worst, step (float, int): Gate G2: share and step of the differing codes of an operation alone, where more than
            ``FEW`` of a tensor differ; values that the simulation rounded near the middle of two codes do not count.
        ties (float): Their largest share.
        sqnr (float): Of the outputs in simulation against the float model's, in dB.
        apart (float): The same of the runtime's outputs, without its optimizations, against the simulation's.
        seconds (float): Of processor time.
        reason (str): Of the failure.
    """
    calibrated: bool = False
    files: int = 0
    batch: int = 0
    share: float = 0.0
    kept: int = 0
    codes: int = 0
    differing: int = 0
    behind: int = 0
    worst: float = 0.0
    step: int = 0
    ties: float = 0.0
    sqnr: float = float('nan')
    apart: float = float('nan')
    seconds: float = 0.0
    reason: str = ''

    def failures(self) -> list[str]:
        """Why it is not verified."""
        found = [self.reason] if self.reason else []
        if self.differing != self.behind:
            found.append(f'G1: {self.differing - self.behind} of {self.codes} codes in front of float operators are '
                         'not the executor\'s')
        if self.worst > LARGEST_SHARE or self.step > 1:
            found.append(f'G2: an operation alone gives {self.worst:.2%} other codes, by up to {self.step}')
        if self.files and not self.apart >= min(CLOSE, self.sqnr):
            found.append(f'outputs {self.apart:.1f} dB from the simulation')
        return found


@torch.no_grad()
def measure_export(build, shape: tuple[int, int, int], seed: int = 0) -> Exported:
    """Export a model with random weights at W8A8 with min-max ranges and symmetric weights, and compare.

    Args: see :func:`~model_coverage.measure_coverage`.
    """
    started, found = time.process_time(), {}

    def measure(model: QuantizedModel, shape, merge: bool) -> None:
        found.clear()
        _measure(model, shape, merge, found)

    try:
        merged_or_not(build, shape, seed, measure, RECIPE)
    except Exception as error:  # whatever a model of the zoo may raise: it goes into the table
        found['reason'] = str(error) if isinstance(error, ExportError) else told(error, 300)
    return Exported(seconds=time.process_time() - started, **found)


def export_apart(build, shape: tuple[int, int, int], limit: float) -> Exported:
    """:func:`measure_export` in a process of its own, see :func:`~model_coverage.apart`."""
    return apart(measure_export, build, shape, limit, Exported)


def _measure(model: QuantizedModel, shape: tuple[int, int, int], merge: bool, found: dict) -> None:
    """Fills ``found`` as it goes, so that a failure leaves what was before."""
    context, reference = calibrated(model, shape, merge, (InsertQuantizers(), InsertDeployQuantizers()))
    RoundBiases().run(context)
    found['calibrated'] = True
    with model.frozen(*model.ready):
        found['sqnr'] = sqnr_db(*powers(reference, context.run(0)))
    with model.quantization(weights=True, activations=True):
        parts = [(part, part.example(model, context.chunks[0])) for part in parts_of(model)]
    kept: dict[str, str] = {}
    protos = []
    for part, example in parts:
        proto, batch = _exported(model, part, example, kept)
        found['batch'] = max(found.get('batch', 0), batch)
        protos.append(proto)
    found |= dict(files=len(protos), kept=len(kept), share=1.0, codes=0, differing=0, behind=0, worst=0.0, step=0,
                  ties=0.0, apart=EQUAL)
    for (part, example), proto in zip(parts, protos):
        _verify(model, part, example, proto, found)


def _exported(model: QuantizedModel, part: Part, example: torch.Tensor, kept: dict):
    """(ONNX model, 0), or (ONNX model, its batch size) if torch can export no other."""
    try:
        return export_qdq(model, part, example, batch=None, float_layers=kept), 0
    except ExportError as error:
        if 'give a fixed one' not in str(error):
            raise
        return export_qdq(model, part, example, batch=len(example), float_layers=kept), len(example)


def _verify(model: QuantizedModel, part: Part, example: torch.Tensor, proto, found: dict) -> None:
    gate = compare(proto, example.numpy(), batch=len(example))
    found['share'] = min(found['share'], gate.integer_share)
    for name, value in dict(codes=gate.codes, differing=gate.differing, behind=gate.behind_islands).items():
        found[name] += value
    for x in differences(model, part, proto, example).values():
        count = x.differing - x.ties
        found['step'] = max(found['step'], x.step)
        found['worst'] = max(found['worst'], count / x.size if count > FEW else 0.0)
        found['ties'] = max(found['ties'], x.ties / x.size if x.ties > FEW else 0.0)
    session = RuntimeSession(proto, optimize=False)
    ran = [torch.from_numpy(np.asarray(x)) for x in session.run({part.input_name: example.numpy()}).values()]
    with model.frozen(*model.ready):
        simulated = [x.clone() for x in part(example)]
    found['apart'] = min(found['apart'], sqnr_db(*powers(simulated, ran)))


HEADER = '''# Exports of the model zoos

Made by `tools/analysis_tools/zoo_coverage.py --export`: the models of [the coverage table](zoo_coverage.md), with
random weights and one random image, at W8A8 with min-max ranges and symmetric weights, with deploy quantizers and
rounded biases, exported for the profile `ort_cpu`. Detectors with regions are several files: backbone, neck and region
proposals in one, and one for each head behind them. Files take any number of images where the remark names none.

A family is verified when, on that image,

- no code of ONNX Runtime differs from the integer executor's in front of the first float operator (gate G1);
- each operation alone, fed with the codes of the simulation, gives the simulation's codes: at most one step off, in at
  most 0.1 % of a tensor, or in up to three codes of a small one (gate G2). Values that the simulation rounded within a
  thousandth of a step from the middle of two codes do not count here: scales in small ratios, as average pools have,
  make them frequent, and each runtime rounds them its way. The remark tells how many, if more than 0.1 %;
- the outputs of ONNX Runtime without its optimizations are at least 20 dB from those of the simulation, or as near as
  the simulation is to the float model where that is less: in nets so sensitive one flipped code changes the outputs.

"Integer share" is the part of all multiplications of convolutions and matrix products that integer kernels do, of the
file with the least; the others have an operand that is not quantized, or no integer kernel (transposed and deformable
convolutions). "SQNR" is that of the simulation against the float model, "Runtime" that of the runtime against the
simulation; 200 stands for equal outputs. Times are of one processor core, with calibration and comparison.

'''
TABLE = ('| {0} | Config | Files | Verified | Integer share | SQNR (dB) | Runtime (dB) | Time (s) | Remark |\n'
         '| --- | --- | :---: | :---: | ---: | ---: | ---: | ---: | --- |')


def table(rows: dict[str, dict], first: str) -> str:
    """Markdown table of the rows that hold an export, and the percentages."""
    found = {name: (row['config'], exported_of(row['export'])) for name, row in rows.items() if row.get('export')}
    total, written = max(1, len(found)), sum(x.files > 0 for _, x in found.values())
    good = sum(x.files > 0 and not x.failures() for _, x in found.values())
    lines = [f'{written} of {len(found)} ({written / total:.1%}) are exported, {good} ({good / total:.1%}) also '
             'verified.', '', TABLE.format(first)]
    for name, (path, x) in sorted(found.items(), key=lambda item: item[0].lower()):
        remarks = [*x.failures(), f'{x.kept} layers stay float' if x.kept else '',
                   f'fixed batch size {x.batch}' if x.batch else '',
                   f'{x.behind} codes behind float operators differ' if x.behind else '',
                   f'{x.ties:.1%} of a tensor at ties' if x.ties > LARGEST_SHARE else '']
        remark = '; '.join(r.replace('|', '/') for r in remarks if r)
        figures = f'{x.share:.1%} | {x.sqnr:.1f} | {x.apart:.1f}' if x.files else '- | - | -'
        lines.append(f'| {name} | `{path}` | {x.files or "-"} | {"-" if x.failures() else "yes"} | {figures} | '
                     f'{x.seconds:.0f} | {remark} |')
    return '\n'.join(lines) + '\n'


def exported_of(row: dict) -> Exported:
    """The result that the JSON file holds, which has null for a number that is none."""
    return Exported(**{k: v for k, v in row.items() if v is not None})
