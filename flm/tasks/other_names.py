"""Keys of other code bases (MDLM, Duo, FLM, KL-flow, the retrofit of Qwen3): renamed to ours, or an error that names ours."""

from flm.config_files import groups

# override keys, or KEY=VALUE, with our name for the same thing
SAME = {
    "algo.teacher_path_f": "algo.teacher_f_path",
    "algo.teacher_path_g": "algo.teacher_g_path",
    "data=openwebtext-split": "data=openwebtext",
    "data=openwebtext-train": "data=openwebtext",
    "data=lm1b-wrap": "data=lm1b",
    "lr_scheduler=cosine_decay_warmup": "lr_scheduler=cosine_decay",
    "strategy=fsdp": "strategy=fsdp2",
    "algo.beta": "algo.smoothing",
    "sampling.predictor": "sampling.solver",
    "sampling.integrator": "sampling.solver",
    "sampling.p_nucleus": "sampling.top_p",
    "sampling.k": "sampling.top_k",
    "sampling.n_steps": "sampling.steps",
    "learning_rate": "optim.lr",
    "sequence_length": "model.length",
    "per_device_batch_size": "loader.batch_size",
    "mixed_precision": "trainer.precision",
    "model_name_or_path": "model.pretrained_path",
    "save_steps": "callbacks.checkpoint_every_n_steps.every_n_train_steps",
    "save_total_limit": "callbacks.checkpoint_every_n_steps.keep",
    "checkpointing.save_dir": "hydra.run.dir",
}

# keys or groups of keys that we lack, with what to use instead
INSTEAD = {
    "data.train": "data=NAME names a corpus with its training and held-out part",
    "data.valid": "data=NAME names a corpus with its training and held-out part; eval.corpora adds texts to mode=ppl_eval",
    "data.streaming": "data=hub reads a corpus once and keeps its tokens; data=mixture streams",
    "data.insert_train_eos": "data.wrap=bos_eos frames each block, data.wrap=plain none",
    "data.insert_valid_eos": "data.wrap=bos_eos frames each block, data.wrap=plain none",
    "data.tokenizer_name_or_path": "tokenizer=huggingface tokenizer.name_or_path=NAME; tokenizer=gpt2 or bert",
    "include_stack_v1": "data=qwen3_pretrain_code",
    "include_stack_v2": "data=qwen3_pretrain_stack_v2",
    "noise": "the schedule belongs to the algorithm: algo.schedule",
    "backbone": "model=nano, tiny, small or medium names the network",
    "scheduler_type": "algo.schedule={_target_: flm.paths.mixture.Polynomial} or flm.paths.mixture.Cosine",
    "scheduler_n": "algo.schedule.exponent",
    "parameterization": "the algorithm settles it: algo=mdlm, duo, ar, dfm, flm",
    "diffusion": "the algorithm settles it: algo=mdlm, duo, ar, dfm, flm",
    "subs_masking": "algo=mdlm always carries tokens over and never predicts the mask",
    "time_conditioning": "the algorithm settles it: algo=mdlm reads no time, algo=duo and algo=flm do",
    "T": "all algorithms train in continuous time",
    "zero_recon_loss": "the bound always holds its reconstruction term",
    "training.antithetic_sampling": "times are always stratified over the global batch",
    "training.importance_sampling": "times follow the algorithm's own law",
    "training.change_of_variables": "times follow the algorithm's own law",
    "training.sampling_eps": "algo.schedule={_target_: flm.paths.mixture.LogLinear, eps: ...} says where a schedule starts",
    "training.loss_precision": "losses are always computed in float32",
    "training.guidance": "there is no guidance by classes",
    "neg_infinity_mode": "what cannot come has no probability at all",
    "algo.gumbel_tau_log10_start": "algo.temperature_start, itself and not its logarithm",
    "algo.gumbel_tau_log10_end": "algo.temperature_end, itself and not its logarithm",
    "sampling.use_float64": "tokens are always drawn in float64",
    "sampling.num_sample_log": "callbacks.sample.count says how many samples a validation writes",
    "sampling.semi_ar": "sampling.prompt continues a text; there is no sampler that writes one stretch after the other",
    "eval.compute_generative_perplexity": "mode=sample_eval measures it always, by eval.gen_ppl_eval_model_name_or_path",
    "eval.generate_samples": "mode=sample_eval writes samples; callbacks.sample writes some at each validation",
    "eval.generated_samples_path": "hydra.run.dir=DIR: samples lie in it",
    "eval.results_json_path": "hydra.run.dir=DIR: results lie in it",
    "wandb.offline": "the variable WANDB_MODE=offline",
    "gradient_accumulation_steps": "accumulation follows from loader.global_batch_size, loader.batch_size and the devices",
    "eval.perplexity_batch_size": "eval.scorer_batch_size",
    "eval.compute_perplexity_on_sanity": "trainer.num_sanity_val_steps=2 validates before the first step",
    "trainer.fast_dev_run": "debug=tiny trains a few steps of a small model; trainer.max_steps=1 makes a run one step long",
    "trainer.accumulate_grad_batches": "accumulation follows from loader.global_batch_size, loader.batch_size and the devices",
    "trainer.strategy": "strategy=auto, ddp or fsdp2",
    "callbacks.checkpoint_monitor": "callbacks.checkpoint_every_n_steps.keep_best=true keeps the best by validation loss",
}

# keys that some of our corpora have too, with another meaning: they are errors only if their value names a corpus
OURS_TOO = ("data.train", "data.valid")
CORPORA = {name.removeprefix("data=") for name in SAME if name.startswith("data=")} | set(groups()["data"])


def ours(argument: str) -> str:
    """A command-line argument under our names.

    Raises:
        ValueError: we have no such key; the message says what to use instead.
    """
    prefix = argument[: len(argument) - len(argument.lstrip("+"))]
    key, equals, value = argument.removeprefix(prefix).partition("=")
    if not equals:
        return argument
    if f"{key}={value}" in SAME:
        return prefix + SAME[f"{key}={value}"]
    if key in SAME:
        return f"{prefix}{SAME[key]}={value}"
    for name in (key, key.partition(".")[0]):
        if name in INSTEAD and (name not in OURS_TOO or value in CORPORA):
            raise ValueError(f"{key}: there is no such key here: {INSTEAD[name]}")
    return argument
