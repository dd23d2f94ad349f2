"""Every kind of site at every level, cut and refitted once: the files that candidates are put together from."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.allocation.job import Job
from secateur.allocation.levels import MASK, moments_for, put_values, write_levels
from secateur.calibration.gradients import hand_over
from secateur.calibration.walk import walk
from secateur.model.site_kinds import SUB_BLOCKS
from secateur.model.surgery import drop, remove, update_heads
from secateur.search.heads import put_heads, write_heads
from secateur.search.space import BOTH, KV, LAYER, Candidate, Piece, Space, heads_of


def write_pieces(job: Job, space: Space, folder: Path) -> None:
    """One walk through the untouched model, which leaves `<layer>.<kind>/<level>.safetensors` in the folder.

    A layer whose folder is complete (it says so by its name) isn't cut again.
    """
    layers = tuple(range(job.streamed.checkpoint.layers))
    for block in walk(job.streamed, job.tokens, layers=layers, budget=job.budget, work=job.work):
        pieces = [piece for piece in space.saves if piece.layer == block.index]
        with torch.enable_grad():
            hand_over(block, job.gradients, job.rules.gradient_needs)
        kinds = dict.fromkeys(piece.kind for piece in pieces if piece.kind not in (*SUB_BLOCKS, LAYER))
        missing = [kind for kind in kinds if not (folder / f"{block.index}.{kind}").is_dir()]
        known = moments_for(job, block, [site for site in job.sites(block.index) if site.kind in missing])
        for kind in missing:
            own = [piece for piece in pieces if piece.kind == kind]
            whole = folder / f"{block.index}.{kind}"
            partial = folder / f"{block.index}.{kind}.partial"
            partial.mkdir(parents=True, exist_ok=True)
            if kind == BOTH:
                second = {piece: space.shares[heads_of(piece)[1]] for piece in own}
                write_heads(job, block, second, folder / f"{block.index}.{KV}", partial)
            else:
                sites = [site for site in job.sites(block.index) if site.kind == kind]
                write_levels(job, block, sites, {piece.level: space.shares[piece] for piece in own}, partial, known)
            partial.rename(whole)
        job.step(f"layer {block.index}")
        del block, known


def bytes_of_pieces(job: Job, space: Space) -> int:
    """What the files take, about: each holds the Linear that reads a site's units."""
    total = 0
    for piece in space.saves:
        shapes = {linear.name: linear.shape for linear in job.linears(piece.layer)}
        kind = KV if piece.kind == BOTH else piece.kind
        readers = [s.consumer for s in job.streamed.checkpoint.sites[piece.layer] if s.kind == kind]
        whole = piece.kind in (*SUB_BLOCKS, LAYER)
        total += 0 if whole else sum(shapes[name][0] * shapes[name][1] for name in readers if name in shapes)
    return total * job.streamed.dtype.itemsize


def file_of(folder: Path, piece: Piece) -> Path:
    """Where a piece of units lies."""
    return folder / f"{piece.layer}.{piece.kind}" / f"{piece.level}.safetensors"


@torch.no_grad()
def put_together(job: Job, folder: Path, index: int, candidate: Candidate) -> nn.Module:
    """Layer `index` as a candidate leaves it: narrower, refitted, without the sub-blocks that go."""
    streamed, checkpoint = job.streamed, job.streamed.checkpoint
    layer = streamed.load(index, plain=True)
    for piece in (piece for piece in candidate if piece.layer == index):
        sites = [site for site in checkpoint.sites[index] if site.kind == piece.kind]
        if piece.kind in SUB_BLOCKS:
            for site in sites:
                drop(layer, site, checkpoint.family)
        elif piece.kind == BOTH:
            put_heads(layer, checkpoint, index, load_file(file_of(folder, piece)))
        else:
            remove(layer, put_values(layer, sites, load_file(file_of(folder, piece))))
            update_heads(layer, checkpoint.family, checkpoint.head_dim)
    return streamed.changed(layer.to(streamed.device), index)


def masks_of(folder: Path, piece: Piece) -> dict[str, Tensor]:
    """Site -> bool (units,), True = stays, of a piece of units."""
    with safe_open(file_of(folder, piece), framework="pt") as handle:
        names = [name for name in handle.keys() if name.startswith(MASK)]  # noqa: SIM118 - a handle is not a mapping
        return {name.removeprefix(MASK): handle.get_tensor(name) for name in names}
