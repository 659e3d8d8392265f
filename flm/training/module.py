"""The one LightningModule: it trains an algorithm, keeps the average of its weights, validates, logs and resumes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Annotated, Any

import torch
from annotated_types import Gt
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from flm.algos.algorithm import Algorithm, Batch
from flm.checkpoints.description import KEY, Description
from flm.checkpoints.load import algorithm_state, check_state, check_tokenizer
from flm.draws import Draws, mix_seed
from flm.paths.gaussian import Laws, shared_laws
from flm.ranges import OpenShare
from flm.samplers.canvas import Canvas
from flm.samplers.options import sampler_for
from flm.training.average import Average
from flm.training.progress import fingerprint
from flm.training.sharding import resplit, shard, whole_blocks
from flm.training.step_loss import DivergenceCheck, StepLoss, scale_gradients
from flm.training.validation import BUCKET_CENTRES, Report, Tally

# streams of the run's seed beside those of Draws (0 and 1)
DROPOUT, VALIDATION, REFERENCE = 2, 3, 4
LOSS = "loss_nats_per_token"


class Module(LightningModule):
    """Trains an algorithm.

    Loss and gradient of an optimiser step are those of its whole global batch, however that is cut: algorithms return sums and
    counts, and gradients are divided once, before they are clipped.

    All random numbers of a training step are functions of the seed, the step and a sequence's place in the global batch, except
    dropout, which depends on the micro-batch. So a run is bit for bit the same if it validates, samples or resumes.

    Args:
        algorithm: what is trained.
        optimizer: called with the (name, parameter) pairs that require gradients.
        lr_scheduler: called with the optimiser, and stepped after every optimiser step; None: constant rates.
        ema: decay of the average of the weights that validation and sampling use; None: no average.
        seed: of the run.
        config: the resolved config, plain values; saved in checkpoints, which are rebuilt from its `algo` and `model`.
        tokenizer: Tokenizer.to_dict(); saved in checkpoints.
        token_counts: (V,) counts of the training tokens, for the context-free reference of validation; None: no reference.
        max_loss_rise: stop a run whose recent losses are this many times their long average; None: only if a loss is not
            finite.

    Attributes:
        average: None: there is none.
        report: of the last validation; None before the first.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        optimizer: Callable[[list[tuple[str, Parameter]]], Optimizer],
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        ema: OpenShare | None = None,
        seed: int = 1,
        config: dict[str, Any] | None = None,
        tokenizer: dict[str, Any] | None = None,
        token_counts: Tensor | None = None,
        max_loss_rise: Annotated[float, Gt(1)] | None = None,
    ):
        super().__init__()
        self.algorithm = algorithm
        if token_counts is not None:
            algorithm.know_frequencies(token_counts)
        self.average = Average(algorithm, ema) if ema else None
        algorithm.averaged_weights = None if self.average is None else self.average.weights
        self.report: Report | None = None
        self.seed = seed
        self._make_optimizer, self._make_scheduler = optimizer, lr_scheduler
        self._config, self._tokenizer, self._token_counts = config or {}, tokenizer, token_counts
        self._context_free: Tensor | None = None
        self._divergence, self._watched = DivergenceCheck(max_loss_rise), None
        self._step_loss, self._gradient_scale = StepLoss(), None
        self._tally = Tally(algorithm.validation_metric)
        self._during_validation = ExitStack()
        self._laws: Laws = {}

    def configure_model(self) -> None:
        if self.device_mesh is None:  # the strategy does not split the model
            return
        low = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
        self.algorithm.networks_are_split = True
        methods = ("training_step", "validation_step", "_sample", "_reference")
        shard(self, self.device_mesh["data_parallel"], methods, low, by_block=not self.algorithm.whole_networks)
        if self.average is not None:
            self.average.split_like(self.algorithm)
            self.algorithm.averaged_weights = None  # each process has only a part of them

    def configure_optimizers(self) -> Any:
        optimizer = self._new_optimizer()
        if self._make_scheduler is None:
            return optimizer
        schedule = {"scheduler": self._make_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _new_optimizer(self) -> Optimizer:
        trained = [(name, p) for name, p in self.algorithm.named_parameters() if p.requires_grad]
        if not trained:
            raise ValueError(f"{type(self.algorithm).__name__} has no parameter that requires gradients")
        return self._make_optimizer(trained)

    def _check_optimizer(self, states: list[dict[str, Any]] | None, stored_config: Mapping[str, Any], name: str) -> None:
        """Raises ValueError unless our optimiser can continue from the states in the file called `name`."""
        targets = ((config.get("optim") or {}).get("_target_") for config in (stored_config, self._config))
        stored, given = (None if target is None else target.rpartition(".")[2] for target in targets)
        groups = [len(group["params"]) for group in states[0]["param_groups"]] if states else None
        own = [len(group["params"]) for group in self._new_optimizer().param_groups]
        if groups != own or (stored and given and stored != given):
            raise ValueError(
                f"{name}: of a run with another optimiser ({stored or 'not named'}, parameters in groups of {groups}; here "
                f"{given or 'not named'}, groups of {own}): give the optim= it was trained with, or begin a new run with "
                "checkpointing.resume_from_ckpt=false"
            )

    def _keep_the_optimizers_values(self, stored_config: Mapping[str, Any], name: str) -> None:
        """Keeps the values of `optim` in the file called `name`, which are part of its state; warns if others were given."""
        stored, given = (config.get("optim") or {} for config in (stored_config, self._config))
        kept = {key: stored[key] for key in given if key in stored and given[key] != stored[key]}
        if not kept:
            return
        self._config = {**self._config, "optim": {**given, **kept}}  # for the next checkpoint
        if self.trainer.is_global_zero:
            used, unused = (", ".join(f"optim.{key}={node[key]}" for key in kept) for node in (stored, given))
            print(f"warning: {used} of {name} goes on; not used: {unused}", flush=True)

    def on_train_start(self) -> None:
        # a checkpoint brings the rate of the next step as the schedule was then; that of a longer run says another
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, LambdaLR):
            for group, rate, factor in zip(
                scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = rate * factor(scheduler.last_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # batch_idx counts from the start of this fit, which is the start of an accumulation even if resumed
        accumulation = self.trainer.accumulate_grad_batches
        share = self.global_rank * accumulation + batch_idx % accumulation
        step = self.trainer.global_step
        draws = Draws(self.seed, step, share, self.trainer.world_size * accumulation, self.device)
        torch.manual_seed(mix_seed(self.seed, step, DROPOUT, share))
        # the micro-batches of a step have the same weights, so they share the Cholesky factors of noise
        with shared_laws(self._laws) if accumulation > 1 else nullcontext():
            loss = self.algorithm.loss(batch, draws)
        self._divergence.watch(loss)
        self._watched = batch, batch_idx
        self._step_loss.add(LOSS, loss)
        # The loss is a sum, since its divisor is known only at the step's last micro-batch. It is divided by L only to keep
        # gradients in the range of 16-mixed.
        if (batch_idx + 1) % accumulation == 0:
            means, count = self._step_loss.finish(LOSS, self._sum_over_ranks)
            # undoes the division by L, by the micro-batches (Lightning) and by the processes (DDP and FSDP2)
            self._gradient_scale = self.algorithm.length * accumulation * self.trainer.world_size / count
            self.log(f"train/{LOSS}", means.pop(LOSS), prog_bar=True, batch_size=1)
            self.log_dict({f"train/{name}": value for name, value in means.items()}, batch_size=1)
        total = loss.sum
        if self.trainer.world_size > 1 and not self.algorithm.networks_are_split:
            for parameter in self.algorithm.resting(step):  # DDP waits for the gradient of every parameter
                total = total + 0 * parameter.sum()
        return total / self.algorithm.length

    def on_after_backward(self) -> None:
        for parameter in self.algorithm.resting(self.trainer.global_step):
            parameter.grad = None  # optimisers skip parameters without gradient, and leave their moments
        if self._gradient_scale is not None:
            scale_gradients(self.algorithm.parameters(), self._gradient_scale)
            self._gradient_scale = None
        problem = self._divergence.problem()
        if problem is not None:
            last = getattr(self.trainer.checkpoint_callback, "last_path", None)
            raise ValueError(
                f"the loss {problem} at step {self.trainer.global_step}: {fingerprint(*self._watched, self.trainer)}; "
                f"lower optim.lr or lengthen its warm-up; last good checkpoint: {last or 'none, nothing was saved yet'}"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # before any callback saves, so that a file holds weights and average of the same step
        super().optimizer_step(*args, **kwargs)
        self._laws.clear()
        if self.average is not None:
            self.average.update(self.algorithm)

    @contextmanager
    def average_weights(self) -> Iterator[None]:
        """The algorithm has the averaged weights inside the block, if an average is kept."""
        with ExitStack() as stack:
            resplit(self)
            if self.average is not None:
                stack.enter_context(self.average.applied(self.algorithm))
                stack.callback(resplit, self)  # before the weights change back
            yield

    def generate(
        self, count: int, steps: int, stream: int, length: int | None = None, options: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Samples (count, L) of the averaged weights, on the CPU. Each process draws its share, and all get all of them.

        They depend on the seed, the optimiser step, `stream` and the number of processes only.

        Args:
            stream: number of a stream of the run's seed, other than those of this module.
            length: L; None: the training length.
            options: of the sampler.
        """
        ranks = self.trainer.world_size
        canvas = Canvas.blank(-(-count // ranks), length or self.algorithm.length, self.device)
        seed = mix_seed(self.seed, self.trainer.global_step, stream, self.global_rank)
        generator = torch.Generator(self.device).manual_seed(seed)
        with self.average_weights(), self.trainer.precision_plugin.forward_context():
            tokens = self._sample(canvas, steps, generator, dict(options or {}))
        if ranks > 1:
            tokens = self.all_gather(tokens).flatten(0, 1)
        return tokens[:count].cpu()

    def check_sampler(self, options: Mapping[str, Any], key: str) -> None:
        """Raises ValueError, naming the config key, for options that the algorithm's sampler does not take."""
        sampler_for(self.algorithm, options, key)

    @torch.no_grad()
    def _sample(self, canvas: Canvas, steps: int, generator: torch.Generator, options: dict[str, Any]) -> Tensor:
        with whole_blocks(self):
            return self.algorithm.generate(canvas, steps, generator, **options)

    def on_validation_epoch_start(self) -> None:
        self._tally = Tally(self.algorithm.validation_metric)
        self._during_validation.enter_context(self.average_weights())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # an example has the same noise at every validation, so that two results differ only by the weights
        size = len(batch.tokens)
        start = (batch_idx * self.trainer.world_size + self.global_rank) * size
        numbers = range(start, start + size) if batch.numbers is None else batch.numbers.tolist()
        draws = Draws(mix_seed(self.seed, VALIDATION), device=self.device, places=numbers)
        self._tally.add(self.algorithm.validation_loss(batch, draws))

    def on_validation_epoch_end(self) -> None:
        # not in on_validation_end, where callbacks save before this module is called
        reference = self._reference()  # with the weights that were validated
        self._during_validation.close()
        self.report = self._tally.report(reference, self._sum_over_ranks)
        self.log_dict(self.report.metrics(), sync_dist=True)  # already equal on all ranks; avoids Lightning's warning

    def _reference(self) -> Tensor | None:
        if self._token_counts is None:
            return None
        if self._context_free is None or self.algorithm.context_free_has_weights:
            draws = Draws(mix_seed(self.seed, REFERENCE), device=self.device)
            with whole_blocks(self):
                self._context_free = self.algorithm.context_free_loss(
                    self._token_counts.to(self.device), BUCKET_CENTRES.to(self.device), draws
                )
            if self._context_free is None:
                self._token_counts = None  # the algorithm has no reference
        return self._context_free

    def _sum_over_ranks(self, sums: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.average is None or not self.average.in_place, "the weights are the average's at this moment"
        checkpoint[KEY] = Description(
            config=self._config,
            tokenizer=self._tokenizer,
            vocab_size=self.algorithm.vocab_size,
            length=self.algorithm.length,
            step=self.trainer.global_step,
            average=None if self.average is None else self.average.weights,
            average_updates=0 if self.average is None else self.average.updates,
        ).to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        name = str(self.trainer.ckpt_path)
        description = Description.of(checkpoint, name)
        check_tokenizer(description.tokenizer, self._tokenizer, name)
        check_state(algorithm_state(checkpoint, name), self.algorithm.state_dict(), name)
        self._check_optimizer(checkpoint.get("optimizer_states"), description.config, name)
        self._keep_the_optimizers_values(description.config, name)
        if self.average is not None:
            if description.average is None:
                raise ValueError(f"{name}: holds no average of the weights to continue: set training.ema=null")
            self.average.load(description.average, description.average_updates)
        # Lightning would resume inside its epoch, count the batches seen before against those that the loader still has,
        # and stop early. But our loader starts at the next batch (the data module reads trainer.global_step). So each fit
        # is a new epoch, and only totals are set: of steps, and of batches for the validation interval. Batches of an
        # unfinished accumulation do not count: their gradients are not in the file, so they are seen again.
        checkpoint.pop("loops", None)
        loop = self.trainer.fit_loop.epoch_loop
        steps, batches = loop.automatic_optimization.optim_progress.optimizer.step.total, loop.batch_progress.total
        steps.ready = steps.completed = loop._batches_that_stepped = description.step
        seen = description.step * self.trainer.accumulate_grad_batches
        batches.ready = batches.started = batches.processed = batches.completed = seen
