"""Gradients for the criteria that look at a loss: of the whole model's, gathered once before the walk, or of one
block's output, gathered when its turn comes.

Both are handed to a block as a layer of the same shape whose parameters are the gradients. Whatever is cut from the
block is cut from them by the same code, so a site or a Linear always finds its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import psutil
import torch
from torch import Tensor, nn

from secateur.calibration.walk import Block
from secateur.errors import InputError
from secateur.model.heads import BODY, SPAN, answer_of, head_of
from secateur.model.linears import linears_of
from secateur.model.save import fill
from secateur.model.streamed import StreamedModel
from secateur.system import distributed
from secateur.system.memory import fits_in_memory

WHOLE = frozenset({"gradient", "gradient_size", "fisher", "input_fisher", "entropy_gradient"})

Key = tuple[int, str]  # a layer, and a parameter's name below it
Take = Callable[[Key, Tensor], Tensor]  # what to add up of a gradient

# Layer -> need -> parameter's name below the layer -> gradient, fp32 on the CPU.
LayerGradients = list[dict[str, dict[str, Tensor]]]


def check_gradients(streamed: StreamedModel, needs: frozenset[str]) -> None:
    """Refuses what gradients of the whole model's loss can't be had for.

    Raises:
        InputError: several processes, a model that predicts nothing, or too little memory.
    """
    if not needs & WHOLE:
        return
    what = "this method takes the gradient of the whole model's loss"
    remedy = "use a method without gradients, such as obs, mi or wanda"
    if distributed.world() > 1:
        raise InputError(f"{what}, which one process works out; run without torchrun, or {remedy}")
    checkpoint = streamed.checkpoint
    head = head_of(checkpoint.whole_config)
    if head in (BODY, SPAN):
        raise InputError(f"{what}, but {checkpoint.path} gives {head.name}; {remedy}")
    entries = checkpoint.parameters * (2 + len(needs & WHOLE))
    if not fits_in_memory(entries):
        free = psutil.virtual_memory().available
        raise InputError(f"{what} and needs about {6 * entries / 1e9:.0f} GB, {free / 1e9:.0f} GB are free; {remedy}")


def gradients_of_model(
    streamed: StreamedModel,
    tokens: Tensor,
    needs: frozenset[str],
    step: Callable[[str], None] = lambda text: None,
    counts: Tensor | None = None,
) -> LayerGradients:
    """Gradients of the untouched model for every parameter of its layers; see `methods.contract.GRADIENTS`.

    The loss is that of the next tokens; of a model that classifies, or fills masks, that of the classes which it
    finds likeliest itself.

    The whole model is in memory in fp32, with one backward pass for each sequence, one more for
    `fisher` and `input_fisher` together, one more for the entropy.

    Args:
        tokens: calibration token ids (sequences, length).
        needs: any of `WHOLE`; others are ignored.
        counts: bool (sequences, length), the tokens whose loss is looked at; None = all. A sequence without any adds
            nothing.

    Raises:
        InputError: see `check_gradients`.
    """
    needs = needs & WHOLE
    check_gradients(streamed, needs)
    model = whole_model(streamed)
    layers = list(model.get_submodule(streamed.checkpoint.family.layers).children())
    parameters = {(i, n): p for i, layer in enumerate(layers) for n, p in layer.named_parameters()}
    family = streamed.checkpoint.family
    axes = {(i, x.parameter_name): x.output_axis for i, layer in enumerate(layers) for x in linears_of(layer, family)}

    def by_input(key: Key, gradient: Tensor) -> Tensor:
        """Adds up, over the outputs, to (x_j dl/dx_j)²: a column's sum times each entry's part of it."""
        if key not in axes:
            return torch.zeros_like(gradient)
        slope = parameters[key].detach() * gradient
        return slope * slope.sum(axes[key], keepdim=True)

    for parameter in parameters.values():
        parameter.requires_grad_(True)
    sums = {need: {key: torch.zeros_like(p, device="cpu") for key, p in parameters.items()} for need in needs}
    for number, sequence in enumerate(tokens):
        ids = sequence[None].to(streamed.device)
        if streamed.checkpoint.family.causal:
            logits, targets = model(input_ids=ids, use_cache=False).logits[0, :-1].float(), ids[0, 1:]
        else:
            logits, targets = _own_labels(model, ids)
        if counts is not None and streamed.checkpoint.family.causal:
            looked_at = counts[number, 1:].to(streamed.device)
            logits, targets = logits[looked_at], targets[looked_at]
        for scalar, wanted in _losses(logits, targets, needs, number, by_input) if len(targets) else ():
            found = torch.autograd.grad(scalar, list(parameters.values()), retain_graph=True)
            for need, of in wanted.items():
                for key, gradient in zip(parameters, found, strict=True):
                    sums[need][key] += of(key, gradient).to("cpu")
        del logits
        step(f"sequence {number + 1}")
    return [
        {need: {n: g / len(tokens) for (i, n), g in sums[need].items() if i == index} for need in needs}
        for index in range(len(layers))
    ]


def _own_labels(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (predictions, classes) of one sequence, and the likeliest class of each: nobody has labelled it."""
    logits = answer_of(model(input_ids=ids)).flatten(0, -2).float()
    return logits, logits.detach().argmax(-1)


def _losses(
    logits: Tensor, targets: Tensor, needs: frozenset[str], number: int, by_input: Take
) -> Iterator[tuple[Tensor, dict[str, Take]]]:
    """(a scalar of one sequence, what to add of its gradient to each need), as few as the needs ask for.

    The mean square of the tokens' own gradients would take a backward pass for each token. Instead each loss gets a
    random sign: in (Σ ± dl_t/dw)² / T all mixed terms have mean zero, and what is left is that mean square.
    """
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    of_mean: dict[str, Take] = {"gradient": lambda _, g: g, "gradient_size": lambda _, g: g.abs()}
    of_tokens: dict[str, Take] = {"fisher": lambda _, g: g.square(), "input_fisher": by_input}
    if needs & of_mean.keys():
        yield losses.mean(), {need: of_mean[need] for need in needs & of_mean.keys()}
    if needs & of_tokens.keys():
        signs = token_signs(len(losses), number).to(losses.device)
        wanted = {need: of_tokens[need] for need in needs & of_tokens.keys()}
        yield (losses * signs).sum() / len(losses) ** 0.5, wanted
    if "entropy_gradient" in needs:
        log_p = logits.log_softmax(-1)
        yield -(log_p.exp() * log_p).sum(-1).mean(), {"entropy_gradient": lambda _, g: g.abs()}


def token_signs(count: int, number: int) -> Tensor:
    """Random signs for the tokens of sequence `number`, (count,), the same in every run."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 2, (count,), generator=generator).float() * 2 - 1


def whole_model(streamed: StreamedModel) -> nn.Module:
    """The whole untouched model in fp32, on the device."""
    checkpoint = streamed.checkpoint
    model = checkpoint.skeleton(torch.float32)
    checkpoint.load_into(model, list(checkpoint.files))
    model.tie_weights()
    return model.to(streamed.device)


def hand_over(block: Block, found: LayerGradients | None, needs: frozenset[str]) -> None:
    """Gives a block its gradients: those of the whole model's loss that were found before, and its own."""
    for need, tensors in (found[block.index] if found is not None else {}).items():
        block.gradients[need] = _as_layer(block, tensors)
    if "regional" in needs:
        block.gradients["regional"] = _as_layer(block, regional_gradients(block))


def _as_layer(block: Block, tensors: dict[str, Tensor]) -> nn.Module:
    return fill(block.streamed.template(block.index), tensors, torch.float32).to(block.streamed.device)


def regional_gradients(block: Block) -> dict[str, Tensor]:
    """√E[(dR/dw)²] over the batches, R the mean norm of the block's output for a sequence, for each parameter."""
    layer = copy.deepcopy(block.layer).float()
    parameters = dict(layer.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    count = torch.zeros((), device=block.streamed.device)
    for i in range(len(block.stream.batches)):
        out = block.stream.forward(layer, block.index, i, block.streamed.device, torch.float32)
        norm = out.float().flatten(1).norm(dim=1).mean()
        for name, gradient in zip(parameters, torch.autograd.grad(norm, list(parameters.values())), strict=True):
            sums[name] += gradient.square()
        count += 1
    distributed.all_reduce([count, *sums.values()])
    return {name: (total / count.clamp_min(1)).sqrt() for name, total in sums.items()}
