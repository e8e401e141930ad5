"""What a net that has run up to some time holds: calls that are complete, values that are needed further on."""
from bisect import bisect

from mmquant.models.dataflow import Call, DataFlow, Op

Key = tuple[str, int]  # name of a module and number of its call


def leaking_calls(flow: DataFlow) -> set[int]:
    """Calls that a stub cannot stand for: a tensor made inside is read outside, but is not among their outputs."""
    def find():
        reads = [(op.tick, v) for op in flow.ops for v in op.inputs]
        reads += [(flow.calls[0].exit - 0.5, v) for v in flow.calls[0].outputs]
        found = set()
        for tick, value in reads:
            made = flow.producer.get(value)
            for call in flow.ancestors(made.call) if made else ():
                if call.enter < tick < call.exit:
                    break
                if value not in call.outputs:
                    found.add(call.index)
        return found

    return flow.once('leaking calls', find)


def completed_calls(flow: DataFlow, tick: float, leaking: set[int]) -> dict[Key, Call]:
    """Outermost calls that ended before ``tick`` and do not leak; looks into calls that are open or leak only."""

    def ended(calls):
        for call in calls:  # in order of entry
            if call.enter >= tick:
                return
            if 0 <= call.exit < tick and call.index not in leaking:
                yield call
            else:
                yield from ended(flow.calls[i] for i in call.children)

    return {c.key: c for c in ended(flow.once('outermost', lambda: [c for c in flow.calls if c.parent < 0]))}


def ops_outside(flow: DataFlow, spans: list[tuple[int, int]], begin: float, end: float) -> list[Op]:
    """Operations between two ticks, but for those inside of spans (enter, exit), which are sorted and disjoint."""
    starts, ends = (begin, *(leave for _, leave in spans)), (*(enter for enter, _ in spans), end)
    return [op for gap in zip(starts, ends) for op in flow.ops_between(*gap)]


def live_values(flow: DataFlow, completed: dict[Key, Call], tick: float) -> set[int]:
    """Values, made by completed calls or between them, that are needed after ``tick``: by operations that are still to
    run, or to run operations between the completed calls again, which no stub answers."""
    spans = sorted((c.enter, c.exit) for c in completed.values())  # disjoint
    begins = [enter for enter, _ in spans]

    def is_inside(tick):
        place = bisect(begins, tick) - 1
        return place >= 0 and tick < spans[place][1]

    between = ops_outside(flow, [span for span in spans if span[1] < tick], 0, tick)
    made = {v for call in completed.values() for v in call.outputs} | {v for op in between for v in op.outputs}
    returned = set(flow.calls[0].outputs)
    live = {v for v in made if v in returned
            or any(op.tick > tick and not is_inside(op.tick) for op in flow.readers.get(v, ()))}
    for op in reversed(between):
        if not live.isdisjoint(op.outputs):
            live.update(op.inputs)
    return live


def outermost(flow: DataFlow, targets: list[Call], accept) -> dict[Key, Call]:
    """Outermost calls between the first and the last target, outside of all targets, that ``accept(call)``."""
    found, inside = {}, {t.index for t in targets}
    for call in flow.calls:
        if call.parent in inside or call.index in inside:
            inside.add(call.index)
        elif targets[0].enter < call.enter and call.exit < targets[-1].enter and accept(call):
            inside.add(call.index)
            found[call.key] = call
    return found


def pending_values(flow: DataFlow, pending: frozenset[str]) -> set[int]:
    """Values computed from the output of a layer that is still to be tuned."""
    calls, values = set(), set()
    for call in flow.calls:  # callers before what they call
        if call.name in pending or call.parent in calls:
            calls.add(call.index)
    for op in flow.ops:
        if op.call in calls or not values.isdisjoint(op.inputs):
            values.update(op.outputs)
    return values


def ancestor_values(flow: DataFlow, targets: list[Call]) -> set[int]:
    """Values that the inputs of some calls were computed from, these included."""
    needed = {v for t in targets for v in t.inputs}
    for op in reversed(flow.ops):
        if op.tick < targets[-1].enter and not needed.isdisjoint(op.outputs):
            needed |= set(op.inputs)
    return needed
