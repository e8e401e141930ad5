"""Gate G1: a runtime computes what the executor says, code for code, on every quantized tensor and output."""
from dataclasses import dataclass, field
from os import PathLike

import numpy as np

from mmquant.export.executor.graph_executor import GraphExecutor, Island
from mmquant.export.runtime import RuntimeSession
from mmquant.export.saturation import cpu_saturates, saturates


@dataclass
class Comparison:
    """``largest`` is in codes; outputs in float count in ``outputs_differing``, with ``output_difference``.

    ``behind_islands`` of the differing codes lie behind a float island, which is not exact. ``saturating`` names the
    layers whose sums this CPU cuts off, if the runtime was asked to. ``reason`` is '' where all is equal.
    """
    tensors: int = 0
    codes: int = 0
    differing: int = 0
    behind_islands: int = 0
    largest: int = 0
    worst: str = ''
    outputs: int = 0
    outputs_differing: int = 0
    output_difference: float = 0.0
    islands: list[Island] = field(default_factory=list)
    saturating: list[str] = field(default_factory=list)
    integer_share: float = 1.0
    reason: str = ''
    shares: dict[str, float] = field(default_factory=dict)
    nodes: list[tuple[str, str, bool]] = field(default_factory=list)  # name, operator, whether it runs in integers

    @property
    def passed(self) -> bool:
        """No code differs in front of the first island, and no output if there is none."""
        return self.differing == self.behind_islands and (bool(self.islands) or not self.outputs_differing)


def compare(path: str | PathLike, images: np.ndarray | dict[str, np.ndarray], batch: int = 16, exact_sums: bool = True,
            disabled_optimizers: tuple[str, ...] = ()) -> Comparison:
    """Run both on the images, in batches, and count.

    Args:
        path (str | PathLike | onnx.ModelProto): The exported file.
        images (np.ndarray | dict): Input of the model (N, ...), or all inputs by name, with the same N.
        batch (int): Images of a run; a file of fixed batch size needs that one. Default 16.
        exact_sums (bool): See :class:`~mmquant.export.runtime.RuntimeSession`.
        disabled_optimizers (tuple[str, ...]): See there.

    Raises:
        ValueError: See the executor and the session; no images.
    """
    executor = GraphExecutor(path)
    taps = executor.tensors()
    session = RuntimeSession(executor.view.model, taps=taps, exact_sums=exact_sums,
                             disabled_optimizers=disabled_optimizers)
    if not isinstance(images, dict):
        images = {session.inputs[0].name: images}
    count = len(next(iter(images.values())))
    if not count:
        raise ValueError('compare needs at least one image')
    result = Comparison(tensors=len(taps), islands=executor.islands)
    behind = _behind_islands(executor)
    wrong: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for start in range(0, count, batch):
        feed = {name: array[start:start + batch] for name, array in images.items()}
        ours, theirs = executor.run(feed, taps), session.run(feed)
        for name in ours:
            _add(result, name, ours[name], theirs[name], name in taps)
            if name in taps:
                wrong[name] = wrong.get(name, 0) + int((ours[name] != theirs[name]).sum())
                sizes[name] = sizes.get(name, 0) + ours[name].size
    result.behind_islands = sum(n for name, n in wrong.items() if name in behind)
    result.shares = {name: n / sizes[name] for name, n in wrong.items() if n}
    result.worst = max(result.shares, key=result.shares.get, default='')
    result.integer_share = executor.integer_share
    result.nodes = [(s.node.name, s.node.op, s.kind != 'float') for s in executor.steps
                    if s.kind in ('kernel', 'table', 'float')]
    result.saturating = saturates(executor) if cpu_saturates() and not exact_sums else []
    result.reason = _reason(result)
    return result


def _add(result: Comparison, name: str, ours: np.ndarray, theirs: np.ndarray, codes: bool) -> None:
    differing = int((ours != theirs).sum())
    if codes:
        result.codes += ours.size
        result.differing += differing
        gap = int(np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max()) if differing else 0
        result.largest = max(result.largest, gap)
    else:
        result.outputs += ours.size
        result.outputs_differing += differing
        gap = float(np.abs(ours.astype(np.float64) - theirs).max()) if differing else 0.0
        result.output_difference = max(result.output_difference, gap)


def _behind_islands(executor: GraphExecutor) -> set[str]:
    """Tensors that depend on a float island."""
    behind: set[str] = set()
    for step in executor.steps:
        if step.kind == 'float' or behind.intersection(step.inputs):
            behind |= set(step.outputs)
    return behind


def _reason(result: Comparison) -> str:
    if not result.differing and not result.outputs_differing:
        return ''
    if result.saturating:
        return (f'this CPU has no VNNI: sums of two products are cut off to 16 bits in {len(result.saturating)} '
                f'layers, first {result.saturating[0]!r}; keep exact_sums, or weight codes within -64..64')
    if result.differing == result.behind_islands and result.islands:
        return f'behind the float {result.islands[0].op} {result.islands[0].name!r}: {result.islands[0].reason}'
    return f'codes differ, most in {result.worst!r}' if result.differing else 'outputs differ, codes do not'
