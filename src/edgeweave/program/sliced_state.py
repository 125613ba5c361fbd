"""The tensors of a sliced program: one member's part of a state, and the whole from all parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgeweave.program.fragments import cut_shape
from edgeweave.program.graph import Program
from edgeweave.program.shares import Asked
from edgeweave.program.slice import Sliced
from edgeweave.program.spans import Span

__all__ = ["gather_entries", "gather_state", "put", "slice_entries", "slice_state", "taken"]

_Tensors = Mapping[str, torch.Tensor]


def taken(tensor: torch.Tensor, dim: int | None, span: Span) -> torch.Tensor:
    """Some indices of a dimension; a view if they lie together."""
    if dim is None:
        return tensor
    parts = [tensor.narrow(dim, start, stop - start) for start, stop in span]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def put(into: torch.Tensor, dim: int | None, span: Span, part: torch.Tensor) -> None:
    """Add a part to some indices of a dimension, in place."""
    if dim is None:
        into += part
        return
    done = 0
    for start, stop in span:
        into.narrow(dim, start, stop - start).add_(part.narrow(dim, done, stop - start))
        done += stop - start


def slice_state(
    sliced: Sliced, state: _Tensors, group: int, member: int
) -> dict[str, torch.Tensor]:
    """What one member needs of the user's state. Views where they can be.

    Under ``"grouped"`` the weights between slices of different members belong to nobody.
    """
    return {
        name: _part(state[name], sliced.state[name][1] if name in sliced.state else (), member)
        for name in _needed(sliced, group, member)
    }


def gather_state(
    sliced: Sliced,
    parts: Mapping[tuple[int, int], _Tensors],
    state: _Tensors,
    *,
    keep_missing: bool = False,
) -> dict[str, torch.Tensor]:
    """The user's state from that of all members, by ``(group, member)``.

    ``state`` is what was sliced: it gives what is not trained. Weights that nobody holds are zero,
    which is the model that ``"grouped"`` slices are; with ``keep_missing`` they stay as they were,
    as those of a device that died without a trace.
    """
    whole = {name: tensor.detach().clone() for name, tensor in state.items()}
    for name, (group, asked) in sliced.state.items():
        n_members = sliced.groups[group].n_members
        if asked and not keep_missing:
            whole[name].zero_()
        for member in range(n_members):
            part = parts.get((group, member), {}).get(name)
            if part is not None:
                _write(whole[name], asked, member, part.detach())
    return whole


def slice_entries(
    sliced: Sliced, entries: _Tensors, group: int, member: int
) -> dict[str, torch.Tensor]:
    """What one member needs of what an optimizer keeps of parameters, as ``<parameter>|<entry>``.

    An entry that is not of its parameter's shape (a counter) is the same for all members.
    """
    shapes = {spec.name: spec.shape for spec in sliced.program.state}
    own = set(_needed(sliced, group, member))
    return {
        key: _part(tensor, sliced.state[name][1], member)
        if tuple(tensor.shape) == shapes[name]
        else tensor
        for key, tensor in entries.items()
        for name in [key.rpartition("|")[0]]
        if name in own
    }


def gather_entries(
    sliced: Sliced, parts: Mapping[tuple[int, int], _Tensors]
) -> dict[str, torch.Tensor]:
    """The reverse, from those of all members. What nobody keeps is zero where others keep some."""
    shapes = {spec.name: spec.shape for spec in sliced.program.state}
    whole: dict[str, torch.Tensor] = {}
    for (_, member), entries in parts.items():
        for key, part in entries.items():
            name = key.rpartition("|")[0]
            asked = sliced.state[name][1]
            if tuple(part.shape) != cut_shape(shapes[name], asked, member):
                whole.setdefault(key, part)
                continue
            into = whole.setdefault(key, torch.zeros(shapes[name], dtype=part.dtype))
            _write(into, asked, member, part.detach())
    return whole


def _needed(sliced: Sliced, group: int, member: int) -> list[str]:
    programs: list[Program | None] = [
        segment.programs[member] for segment in sliced.segments if segment.group == group
    ]
    names = [spec.name for program in programs if program is not None for spec in program.state]
    return list(dict.fromkeys(names))


def _part(tensor: torch.Tensor, asked: Asked, member: int) -> torch.Tensor:
    for share in asked:
        tensor = taken(tensor, share.dim, share.spans[member])
    return tensor


def _write(into: torch.Tensor, asked: Asked, member: int, part: torch.Tensor) -> None:
    """Copy a member's part to where it belongs."""
    if not asked:
        into.copy_(part)
        return
    done = 0
    for start, stop in asked[0].spans[member]:
        n_indices = stop - start
        _write(
            into.narrow(asked[0].dim, start, n_indices),
            asked[1:],
            member,
            part.narrow(asked[0].dim, done, n_indices),
        )
        done += n_indices
