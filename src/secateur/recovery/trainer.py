"""The one trainer: transformers' own, with our losses, our held-out look, and states without pickle.

Everything else (mixed precision, accumulation, checkpointing, torchrun, trackers) is what Trainer's users know.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from secateur.config.training import Recovery
from secateur.model.heads import BODY
from secateur.numerics.divergence import forward_kl
from secateur.recovery import losses, shard
from secateur.recovery.answers import NEXT_TOKEN, Asking
from secateur.recovery.losses import IGNORED
from secateur.recovery.micro_batches import MicroBatches
from secateur.recovery.sequences import Rows
from secateur.recovery.states import BEST, States, gathered, put_back
from secateur.recovery.teacher import TOKENS, VALUES, Layers, TeacherTarget, ask
from secateur.system import distributed

STATE = "trained.safetensors"
TARGETS = ("labels", VALUES, TOKENS)  # of a batch; everything else goes into the model


class Recoverer(Trainer):
    """Trains a model on `Draw` batches.

    Args:
        teacher: the dense model, or None where no loss needs it or its top logits come with the batches.
        layers: which hidden states are compared, see `layer_map`.
        held_out: sequences that `look` measures; the best state by them goes into `states`.
        stepped: called with Trainer's state after each step.
        make_optimizer: default Trainer's own, AdamW.
        asking: what a model with another head than that of next tokens is asked.
    """

    optimizer: Any

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        recovery: Recovery,
        dataset: Any,
        held_out: Rows,
        teacher: Any | None = None,
        layers: Layers | None = None,
        states: States | None = None,
        start: float = math.inf,
        stepped: Callable[[Any], None] = lambda state: None,
        make_optimizer: Callable[[], torch.optim.Optimizer] | None = None,
        asking: Asking = NEXT_TOKEN,
    ) -> None:
        super().__init__(model=model, args=arguments, train_dataset=dataset, eval_dataset=dataset)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Stepped(stepped))
        self._recovery, self._held_out, self._states = recovery, held_out, states
        self._teacher, self._layers, self._lowest = teacher, layers or [], start
        self._sharded, self._make_optimizer = shard.is_sharded(model), make_optimizer
        self._micro = MicroBatches(arguments.device)
        self._bf16 = torch.autocast(arguments.device.type, torch.bfloat16, enabled=arguments.bf16)
        if arguments.bf16:  # accelerate would hand back all logits in fp32, copies that no loss needs
            self.accelerator.native_amp = False
        self._asking = asking
        # The loss is divided by the tokens of the whole step, which the labels' first column never adds to.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        self._loss_shifts_labels = asking.head is None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self._make_optimizer is None:
            return super().create_optimizer(model)
        self.optimizer = self._make_optimizer()
        return self.optimizer

    # ------------------------------------------------------------------------- the loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mix of losses over this pass's tokens, divided by the tokens of the whole step."""
        passed = {name: tensor for name, tensor in inputs.items() if name not in TARGETS}
        mix = self._recovery.mix
        outputs = self._answer(model, passed, "hidden" in mix)
        target = ask(self._teacher, passed, "hidden" in mix, self._asking) if self._teacher is not None else None
        total = self._mixed(outputs, inputs, target)
        labels = self._asking.labels(inputs["labels"])
        counted = num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED).sum()
        # The gradients of processes are averaged, so each gives its share times their number.
        loss = total / counted * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _answer(self, model: Any, inputs: dict[str, Tensor], hidden: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the trained model says, computed in the precision of the training."""
        with self._bf16:
            return self._asking.ask(model, inputs, hidden)

    def _mixed(
        self, outputs: tuple[Tensor, tuple[Tensor, ...]], inputs: dict[str, Tensor], target: TeacherTarget | None
    ) -> Tensor:
        asking = self._asking
        labels = asking.labels(inputs["labels"])
        counted = labels != IGNORED
        everything = bool(counted.all())

        def chosen(tensor: Tensor) -> Tensor:
            """(batch, tokens, ...) -> (counted tokens, ...): the places that predict one."""
            tensor = asking.places(tensor)
            return tensor.flatten(0, 1) if everything and labels.dim() > 1 else tensor[counted]

        answer, hidden = outputs
        logits, temperature = chosen(answer), self._recovery.temperature
        total = logits.new_zeros((), dtype=torch.float32)
        for name, weight in self._recovery.mix.items():
            if name == "lm":
                part = losses.language_modelling(logits, labels[counted])
            elif name == "hidden":
                assert target is not None
                own = [asking.places(hidden[place]) for place, _ in self._layers]
                other = [asking.places(target.hidden[place]) for _, place in self._layers]
                seen = counted if asking.head is None else asking.seen(inputs)
                part = losses.hidden_states(own, other, seen) * (counted.sum() / seen.sum())
            elif VALUES in inputs:
                part = losses.top_forward_kl(logits, chosen(inputs[VALUES]), chosen(inputs[TOKENS]), temperature)
            else:
                assert target is not None
                other_logits = chosen(target.logits)
                if asking.head is BODY:
                    part = losses.cosine_distance(logits, other_logits)
                elif self._recovery.top_k is not None:
                    part = losses.top_forward_kl(
                        logits, *losses.top_logits(other_logits, self._recovery.top_k, temperature), temperature
                    )
                else:
                    part = forward_kl(logits, other_logits, temperature)
            total = total + weight * part
        return total

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        step, last = super().training_step, self.accelerator.sync_gradients
        if distributed.world() > 1:  # all ranks go through a step together
            return step(model, inputs, num_items_in_batch)
        return self._micro.take(inputs, lambda some: step(model, some, num_items_in_batch), model.zero_grad, last)

    # ------------------------------------------------------------------------- looking

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """A look at the held-out sequences, logged as any evaluation of Trainer; keeps the best state."""
        loss = self.look()
        metrics = {f"{metric_key_prefix}_loss": loss}
        if self._asking.head is None:
            metrics[f"{metric_key_prefix}_perplexity"] = math.exp(min(loss, 700))
        self.log(metrics)
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control: TrainerControl = control
        if loss < self._lowest:
            self._lowest = loss
            if self._states is not None:
                self._states.put(BEST, gathered(self.model), self.state.global_step, loss)
        return metrics

    @torch.no_grad()
    def look(self) -> float:
        """Mean negative log-likelihood of the held-out sequences, nats a token; the same number on every rank.

        Where nobody has said what is right, it's the distance from the dense model's answers.
        """
        model = self.model
        training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for index, counts in self._turns():
            row = self._held_out.part(slice(index, index + 1))
            inputs = {name: tensor.to(self.args.device) for name, tensor in row.inputs().items()}
            labels = self._asking.labels(inputs.pop("labels"))
            logits = self._asking.places(self._answer(model, inputs, False)[0])
            counted = (labels != IGNORED) & counts
            sums[0] += self._distance(logits[counted], labels[counted], inputs, counted).cpu().double()
            sums[1] += counted.sum().cpu()
        model.train(training)
        if self._sharded:  # a backward pass would have let go of what surrounds the layers
            model.reshard()
        there = sums.to(self.args.device)
        distributed.all_reduce([there])
        loss = float(there[0] / there[1])
        return loss if math.isfinite(loss) else math.inf

    def _distance(self, answer: Tensor, labels: Tensor, inputs: dict[str, Tensor], counted: Tensor) -> Tensor:
        """Of counted places from what is right, else from what the dense model says, summed."""
        if self._asking.head is None or not bool((labels < 0).any()):
            return losses.language_modelling(answer, labels)
        assert self._teacher is not None  # see `answers.with_losses`
        other = ask(self._teacher, inputs, False, self._asking).logits[counted]
        compare = losses.cosine_distance if self._asking.head is BODY else forward_kl
        return compare(answer, other)

    def _turns(self) -> list[tuple[int, bool]]:
        """This rank's held-out sequences, and whether each counts: all ranks of a sharded model compute in step."""
        count = len(self._held_out)
        found = [(index, True) for index in range(count)[distributed.share(count)]]
        most = -(-count // distributed.world()) if self._sharded else len(found)
        return found + [(0, False)] * (most - len(found))

    # ------------------------------------------------------------------------- states

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint to resume from holds what is trained, nothing else, and no pickled arguments."""
        tensors = gathered(self.model)
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        put_back(model if model is not None else self.model, load_file(Path(resume_from_checkpoint) / STATE))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._sharded:
            with distributed.in_step():  # older checkpoints go once every rank has written its part of this one
                shard.save_optimizer(Path(output_dir), self.model, self.optimizer, self.lr_scheduler)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            shard.load_optimizer(Path(checkpoint), self.model, self.optimizer, self.lr_scheduler)

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        if not shard.is_sharded(model):  # slices are where they belong
            super()._move_model_to_device(model, device)

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # the order is drawn already, see `Draw`

    def close(self) -> None:
        """Lets go of what wraps the model: another trainer can take it, and it computes in its own dtype again."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)  # of its forward, in place
        self.accelerator.free_memory()
        self.optimizer = self.lr_scheduler = None
        self.model_wrapped = self.model
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        gc.collect()


class _Stepped(TrainerCallback):
    """Tells of every step."""

    def __init__(self, told: Callable[[Any], None]) -> None:
        self._told = told

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._told(state)
