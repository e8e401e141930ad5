"""The verdict on exported files: three gates, and how much of the work runs in integers.

G1: the runtime against the executor, every code. G2: every operation alone, fed with the simulation's codes, at most
one code and a thousandth of a tensor off. G3: the whole model against the simulation: arg max on calibration images and
the metric of the test loop. A flipped code grows in low-bit nets, so whole models are never compared code by code.
"""
from __future__ import annotations

import os.path as osp
import time
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from mmquant.export.compare import compare
from mmquant.export.evaluation import deployed, fixed_batch, runner_of
from mmquant.export.files import Exported, read_sidecar
from mmquant.export.parts import padding, parts_of
from mmquant.export.runtime import RuntimeSession
from mmquant.export.simulated_codes import alone
from mmquant.models import QuantizedModel
from mmquant.utils.files import read_json, write_json

LARGEST_SHARE = 1e-3
LEAST_AGREEMENT = 0.99
LARGEST_CHANGE = 0.1
"""Points of a percentage, of accuracy, or one image if that is more; twice this for a detector's AP."""
AGREEING = 256
"""Images on which arg max is compared, so that one of them is less than the share that may differ."""


@dataclass
class Verdict:
    """What was found; plain values but for methods.

    ``codes_differing`` of ``codes`` (G1), ``worst_share`` and ``largest_step`` of an operation alone (G2),
    ``agreement`` of arg max (G3, None for detectors), ``metrics``: name -> (simulation, runtime). ``integer_share`` of
    the multiplications, ``islands``: (operator, reason) of float operators, ``operators`` of the optimized graph, by
    file. ``latency_ms`` of one image on one thread, least of 20 runs. ``nodes`` in order: (name, operator, whether it
    runs in integers).
    """
    codes: int = 0
    codes_differing: int = 0
    behind_islands: int = 0
    largest_difference: int = 0
    reason: str = ''
    worst_share: float = 0.0
    largest_step: int = 0
    agreement: float | None = None
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    integer_share: float = 1.0
    islands: list[tuple[str, str]] = field(default_factory=list)
    operators: dict[str, dict[str, int]] = field(default_factory=dict)
    packed_equal: bool | None = None
    evaluated: int = 0  # images of the test loop
    latency_ms: float = 0.0
    nodes: list[tuple[str, str, bool]] = field(default_factory=list)

    def failures(self) -> list[str]:
        """Gates that are not passed, in words."""
        found = []
        if self.codes_differing != self.behind_islands:
            found.append(f'G1: {self.codes_differing} of {self.codes} codes of the runtime are not the executor\'s '
                         f'({self.reason})')
        if self.worst_share > LARGEST_SHARE or self.largest_step > 1:
            found.append(f'G2: an operation alone gives other codes than the simulation, {self.worst_share:.3%} of a '
                         f'tensor, by {self.largest_step}')
        if self.agreement is not None and self.agreement < LEAST_AGREEMENT:
            found.append(f'G3: simulation and runtime agree on {self.agreement:.1%} of the images')
        for name, (simulated, ran) in self.metrics.items():
            image = 100 / self.evaluated if self.evaluated else 0.0
            limit = max(LARGEST_CHANGE, image) if 'accuracy' in name else 0.02 * LARGEST_CHANGE  # AP is a share of 1
            if 'mAP_' not in name and abs(simulated - ran) > limit + 1e-9:
                found.append(f'G3: {name} {simulated:.4g} in simulation, {ran:.4g} in the runtime')
        if self.packed_equal is False:
            found.append('the packed file computes something else')
        return found

    def text(self) -> str:
        """One paragraph for the log."""
        lines = [f'G1: {self.codes_differing} of {self.codes} codes differ between runtime and executor',
                 f'G2: at most {self.worst_share:.4%} of a tensor, by at most {self.largest_step} code',
                 *([] if self.agreement is None else [f'G3: arg max agrees on {self.agreement:.2%}']),
                 *(f'{name}: {a:.4f} in simulation, {b:.4f} in the runtime' for name, (a, b) in self.metrics.items()),
                 f'{self.integer_share:.2%} of the multiplications run in integers']
        return 'Deployed: ' + '; '.join(lines)


@torch.no_grad()
def verify(model: QuantizedModel, files: Exported, chunks: list[Tensor], num_images: int = 64,
           classifier: bool = True) -> Verdict:
    """Gates G1, G2 and the arg max of G3, on preprocessed images; part by part.

    Args:
        model (QuantizedModel): The exported model, after the export.
        files (Exported): Its files.
        chunks (list[Tensor]): Images (N, C, H, W) of the exported size.
        num_images (int): Of them are compared. Default 64.
        classifier (bool): Whether outputs are logits. Default True.
    """
    images = torch.cat([x.cpu() for x in chunks])[:num_images]
    about = read_sidecar(files.qdq[0])
    disabled = tuple(about['runtime']['disabled_optimizers'])
    verdict, shares = Verdict(), []
    for index, (part, file) in enumerate(zip(parts_of(model), files.qdq)):
        inputs = part.example(model, images)[:num_images]
        found = compare(file, inputs.numpy(), disabled_optimizers=disabled)
        verdict.codes += found.codes
        verdict.codes_differing += found.differing
        verdict.behind_islands += found.behind_islands
        verdict.largest_difference = max(verdict.largest_difference, found.largest)
        verdict.reason = verdict.reason or found.reason
        verdict.islands += [(x.op, x.reason) for x in found.islands]
        shares.append(found.integer_share)
        worst, step = alone(model, part, file, inputs[:8])
        verdict.worst_share, verdict.largest_step = max(verdict.worst_share, worst), max(verdict.largest_step, step)
        session = RuntimeSession(file, disabled_optimizers=disabled)
        verdict.operators[osp.basename(file)] = dict(session.optimized_ops())
        verdict.latency_ms += latency(session, inputs)
        verdict.nodes += found.nodes
        name = session.inputs[0].name
        if classifier:
            rows = torch.cat([x.cpu() for x in chunks])[:max(num_images, AGREEING)].split(32)
            simulated = torch.cat([part(x)[0] for x in rows])
            ran = torch.cat([runner_of(session, fixed_batch(session))(x)[0] for x in rows])
            verdict.agreement = float((simulated.argmax(1) == ran.argmax(1)).float().mean())
        if files.packed:
            small = RuntimeSession(files.packed[index], disabled_optimizers=disabled)
            feed = {name: inputs[:4].numpy()}
            same = all(np.array_equal(a, b) for a, b in zip(session.run(feed).values(), small.run(feed).values()))
            verdict.packed_equal = same and verdict.packed_equal is not False
    verdict.integer_share = min(shares)
    return verdict


def latency(session: RuntimeSession, inputs: Tensor, runs: int = 20) -> float:
    """Milliseconds of a run on one row, or as many as the file takes; the least of some runs."""
    fixed = session.inputs[0].type.tensor_type.shape.dim[0].dim_value or 1
    feed, times = {session.inputs[0].name: inputs[:fixed].numpy()}, []
    for _ in range(runs):
        begin = time.perf_counter()
        session.run(feed)
        times.append(time.perf_counter() - begin)
    return min(times) * 1e3


def deployed_metrics(model: QuantizedModel, files: Exported, runner) -> dict[str, tuple[float, float]]:
    """Metrics of the runner's test loop in simulation and in the runtime, on images padded alike."""
    shape = tuple(read_sidecar(files.qdq[0])['input']['shape'])
    with padding(model, shape), model.frozen(*model.ready):
        simulated = runner.test()
    with deployed(model, files.qdq[0]):
        ran = runner.test()
    return {name: (float(value), float(ran[name])) for name, value in simulated.items()}


def note_verdict(folder: str, files: Exported, verdict: Verdict) -> None:
    """Write the verdict into ``results.json`` of a work dir, as ``deployed``, beside what is there."""
    path = osp.join(folder, 'results.json')
    results = read_json(path) if osp.isfile(path) else {}
    sizes = {osp.basename(x): osp.getsize(x) for x in (*files.qdq, *files.packed)}
    results['deployed'] = dict(asdict(verdict), failures=verdict.failures(), bytes=sizes)
    write_json(path, results)
