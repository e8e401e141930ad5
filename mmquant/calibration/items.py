"""Which axis of a unit's tensors counts images, found out by running the unit on a few of them.

The rows of a fit are items: what a unit looks at by itself. That is a row of its input mostly, an image where tokens
come first or windows of an image belong together, and several images where they do (the frames of a clip).
"""
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

import torch
from mmengine.logging import MMLogger
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

ATTEMPTS = 16  # ways to cut what does not depend on the images, for each way to cut what does
TOLERANCE = {torch.float32: 3e-3, torch.float64: 3e-3}  # of outputs, relative, root mean square; else 0.03


@dataclass(frozen=True)
class Layout:
    """Where a tensor keeps items: ``size`` neighbours on ``axis`` for each. Axis None: all of it is one item."""
    axis: int | None = 0
    size: int = 1

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """Items first: (N, size, ...), without the second axis where it is 1. ValueError if they do not come out."""
        if self.axis is None:
            return x[None]
        if x.shape[self.axis] % self.size:
            raise ValueError(f'{x.shape[self.axis]} rows cannot be cut into groups of {self.size} that belong together')
        x = x.movedim(self.axis, 0)
        return x if self.size == 1 else x.reshape(-1, self.size, *x.shape[1:])

    def merge(self, items: torch.Tensor) -> torch.Tensor:
        """Back from :meth:`split`; of whole tensors only one at a time."""
        if self.axis is None:
            return items.squeeze(0)
        return (items if self.size == 1 else items.flatten(0, 1)).movedim(0, self.axis)


PLAIN, WHOLE = Layout(), Layout(None)


@dataclass(frozen=True)
class Items:
    """How one call of a unit keeps its items."""
    inputs: Mapping[int, Layout]  # by place among the leaves of its (args, kwargs); all else is constant
    outputs: tuple[Layout, ...] = field(default=())  # of its floating-point outputs; none: all plain
    images: float = 1.0  # in an item; below 1 where an image has several, infinite for whole chunks

    def rows(self, images: int) -> int:
        """Items that hold about so many images; as many where an image has several."""
        return max(1, int(images // max(1.0, self.images)))


def first_tensor(parts: list, places=None) -> Items:
    """The rows of the first tensor are items."""
    leaves = tree_flatten(parts[0][0])[0]
    return Items({next(i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)): PLAIN})


def find_items(run: Callable, parts: list[tuple], places: tuple[int, ...], axes: Mapping[int, int] | None = None,
               images: float | None = None) -> Items:
    """How a unit keeps its items: the finest way in which it answers some of them as it answers all.

    Args:
        run (Callable): ``run(arguments)`` -> its floating-point outputs, a tensor or a tuple.
        parts (list[tuple]): ((args, kwargs), number of images) of one or two chunks.
        places (tuple[int, ...]): Leaves of (args, kwargs) that depend on the images.
        axes (Mapping | None): The axis of some leaves that is known to count images.
        images (float | None): Images an item must have. Default: any number.

    Returns:
        Items: Whole chunks where nothing finer holds.
    """
    flat = [tree_flatten(arguments) for arguments, _ in parts]
    leaves, spec = flat[0]
    count = parts[0][1]
    if any(s != spec for _, s in flat) or sum(n for _, n in parts) < 2:
        return first_tensor(parts) if not places else _one_by_one(leaves, places)
    references = [_tuple(run(_copied(arguments))) for arguments, _ in parts]
    for per_item, layouts in _candidates(leaves, places, axes or {}, count):
        if images is not None and per_item != images:
            continue
        outputs = _holds(run, layouts, [x for x, _ in flat], spec, references)
        if outputs is not None:
            return Items(layouts, outputs, per_item)
    return Items({i: WHOLE for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)},
                 (WHOLE, ) * len(references[0]), inf)


def _one_by_one(leaves: list, places) -> Items:  # where a single image leaves nothing to compare
    rows = leaves[places[0]].shape[:1]
    return Items({i: PLAIN for i in places if leaves[i].dim() and leaves[i].shape[:1] == rows})


def _candidates(leaves: list, places: tuple[int, ...], axes: Mapping[int, int], count: int
                ) -> Iterator[tuple[float, dict[int, Layout]]]:
    """Yields (images an item, layouts of the leaves), the finest first."""
    first = leaves[places[0]]
    begin = axes.get(places[0], 0 if not first.dim() or first.shape[0] % count == 0
                     else next((a for a, n in enumerate(first.shape) if n == count), 0))
    counts = [(first.shape[begin], begin)] if first.dim() else []
    counts += [(count, a) for a in dict.fromkeys((begin, *range(first.dim())))
               if first.shape[a] % count == 0 and (a == begin or count > 1 or first.shape[a] == 1)]
    counts += [(count // d, begin) for d in range(2, count) if count % d == 0]
    others = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.dim() and i not in places]
    for number, axis in dict.fromkeys(counts):
        own = {i: _layout(leaves[i], axes.get(i), axis, number) for i in places}
        if number < 1 or None in own.values():
            continue
        ways = [(None, *filter(None, [_layout(leaves[i], None, axis, number)])) for i in others]
        for chosen in itertools.islice(itertools.product(*ways), ATTEMPTS):
            yield count / number, own | {i: x for i, x in zip(others, chosen) if x}


def _layout(x: torch.Tensor, known: int | None, axis: int, count: int) -> Layout | None:
    for a in (known, ) if known is not None else dict.fromkeys((axis, 0, 1)):
        if a < x.dim() and x.shape[a] and x.shape[a] % count == 0:
            return Layout(a, x.shape[a] // count)
    return None


def _holds(run: Callable, layouts: dict[int, Layout], flat: list[list], spec, references: list[tuple]
           ) -> tuple[Layout, ...] | None:
    """Layouts of the outputs, if some items in another order give what all of them gave."""
    try:
        items = {i: _joined([x.split(leaves[i]) for leaves in flat]) for i, x in layouts.items()}
    except ValueError:
        return None
    total = {len(x) for x in items.values()}
    if len(total) != 1:
        return None
    total, found = total.pop(), None
    generator = torch.Generator().manual_seed(total)
    for count in (8, 1 if total <= 3 else 3):
        rows = torch.randperm(total, generator=generator)[:count].to(next(iter(items.values())).device)
        some = list(flat[0])
        for i, layout in layouts.items():
            some[i] = layout.merge(items[i].index_select(0, rows))
        try:
            answers = _tuple(run(_copied(tree_unflatten(some, spec))))
        except Exception:  # a view of a fixed number of rows, a mask of all of them: anything
            return None
        if len(answers) != len(references[0]):
            return None
        axis = next(iter(layouts.values())).axis
        ways = [{x for x in _ways(reference, axis, total, len(flat)) if _alike(answer, reference, x, rows)}
                for answer, reference in zip(answers, zip(*references))]
        found = ways if found is None else [a & b for a, b in zip(found, ways)]
    if not all(found):
        return None
    return tuple(min(ways, key=lambda x: (x.axis != axis, x.axis)) for ways in found)


def _ways(parts: tuple, axis: int, total: int, chunks: int) -> list[Layout]:
    """Layouts that an output, of one or two chunks, may have."""
    found = []
    for a in range(parts[0].dim()):
        rows = sum(x.shape[a] for x in parts)
        if rows and rows % total == 0:
            found.append(Layout(a, rows // total))
    return found


def _alike(answer: torch.Tensor, parts: tuple, layout: Layout, rows: torch.Tensor) -> bool:
    if answer.dim() != parts[0].dim() or answer.shape[layout.axis] != len(rows) * layout.size:
        return False
    try:
        expected = _joined([layout.split(x) for x in parts]).index_select(0, rows).double()
    except (ValueError, RuntimeError):
        return False
    got = layout.split(answer).double()
    if got.shape != expected.shape:
        return False
    got, expected = got.nan_to_num(0, 0, 0), expected.nan_to_num(0, 0, 0)
    allowed = TOLERANCE.get(answer.dtype, 0.03)
    return bool((got - expected).square().sum() <= allowed**2 * expected.square().sum())


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _tuple(x) -> tuple:
    return x if isinstance(x, tuple) else (x, )


def _copied(arguments):
    return tree_map_only(torch.Tensor, torch.clone, arguments)  # a unit may write into what it is given


def tell_of_groups(name: str, items: Items) -> None:
    """Log what is unusual about the rows of a unit."""
    if items.images > 1:
        what = 'all images of a chunk' if items.images == inf else f'groups of {items.images:g} images'
        MMLogger.get_current_instance().warning(
            f'{name or "the net"}: {what} belong together (the output for one image depends on its neighbours), so it '
            'is fitted to them as they are; let the chunk size be a multiple of a group')
