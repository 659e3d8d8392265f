"""Every algorithm that configs/algo holds, small, with a teacher where one is needed, and a batch with everything in it."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from flm.algos.algorithm import Algorithm, Batch
from flm.checkpoints.build import build_algorithm
from flm.tasks.assemble import plain_config
from flm.tasks.command_line import CONFIGS

V, L, G = 29, 8, 8
NAMES = sorted(path.stem for path in CONFIGS.glob("algo/*.yaml"))
MODELS = {"flow_lm": "golf_flow", "native_flow": "golf_native"}
SIZES = ["model.hidden_size=16", "model.num_blocks=2", "model.num_heads=2", f"model.length={L}"]
EXTRA = {
    "nano": ["model.cond_dim=8", "model.dropout=0.0"],
    "golf_flow": ["model.dropout=0.0"],
    "golf_native": ["model.bigram_rows=32", "model.bigram_width=8", "model.rotary_dims=4"],
}
# further ways of computing a loss, beside each algorithm as its file has it
VARIANTS: dict[str, list[str]] = {
    "duo": ["algo.curriculum_end=10", "algo.top_k=3"],
    "dfm": ["algo.source=uniform", "algo.objective=generalized_kl"],
    "dfm masking": ["algo.masking={_target_: flm.paths.masking.MaskingCurriculum, steps: 10, prefix: 0.5, windows: 0.5}"],
    "fmlm": ["algo.objective=lagrangian", "algo.learnable_loss_weighting=true"],
    "fmlm eulerian": ["algo.objective=eulerian"],
    "fmlm middle": ["algo.random_middle=true"],
    "fmlm clean": ["algo.clean_given=true"],
    "fmlm evidence": ["algo.reads=evidence", "algo.clean_given=true"],
    "flm_distill clean": ["algo.clean_given=true"],
    "flm_distill_second clean": ["algo.clean_given=true", "algo.learnable_loss_weighting=true"],
    "flm": ["algo.clean_given=true"],
    "flm evidence": ["algo.reads=evidence", "algo.clean_given=true"],
    "flm times": ["algo.time_law={_target_: flm.few_step.time_law.AdaptiveTimeLaw, start: 0, every: 1, bins: 2}"],
    "kl_flow_map": ["algo.features=sharpened", "algo.time_pairs=uniform_pair"],
    "duo_distill": ["algo.divergence=forward"],
    "simplex_dmd clean": ["algo.clean_given=true"],
    "simplex_dmd evidence": ["algo.reads=evidence", "algo.clean_given=true"],
    "kl_simplex_dmd": ["algo.features=sharpened", "algo.student_every=2"],
    "dbtm": ["algo.loop_from=0", "algo.loop_share=1.0", "algo.commit=0.3"],
    "mpdc": ["algo.source=uniform", "algo.divergence=jsd", "algo.anchor_share=0.5"],
    "flow_lm": ["algo.mse_mask=all", "algo.t_sampler=uniform", "algo.self_condition=true", "model.self_condition=true"],
    "native_flow": ["algo.flow.per_position_t=false", "algo.flow.target=token"],
}
CASES = [(name, ()) for name in NAMES] + [(key.split()[0], tuple(options)) for key, options in VARIANTS.items()]
IDS = [" ".join([name, *(option.removeprefix("algo.")[:30] for option in options)]) for name, options in CASES]
assert len(set(IDS)) == len(IDS)  # results of several processes are told apart by them
SHARED = (
    "algo.clean_given",
    "algo.clock",
    "algo.features",
    "algo.reads",
    "algo.schedule",
    "model.",
)  # what a teacher has to have as its student has it


@cache
def composed(name: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    model = MODELS.get(name, "nano")
    paths = [f"algo.{teacher}_path=null" for teacher in TEACHERS.get(name, {})]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("config", [f"algo={name}", f"model={model}", "run_dir=.", *SIZES, *EXTRA[model], *paths, *options])
        return plain_config(config)


def _teachers() -> dict[str, dict[str, str]]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return plain_config(compose("config", ["run_dir=.", "mode=benchmark"]))["benchmark"]["teachers"]


TEACHERS = _teachers()


def build(name: str, options: Iterable[str] = (), disturbed: bool = True, **teachers: Algorithm) -> Algorithm:
    """In double precision, in training mode, with weights on which its predictions depend; teachers of its own unless given."""
    options = tuple(options)
    shared = tuple(option for option in options if option.startswith(SHARED))
    for key, kind in TEACHERS.get(name, {}).items():
        if key not in teachers and kind is not None:
            teachers[key] = build(
                kind,
                [
                    option
                    for option in shared
                    if option.startswith("model.") or option.partition("=")[0][5:] in composed(kind)["algo"]
                ],
            ).float()
    torch.manual_seed(0)
    algorithm = build_algorithm(composed(name, options), V, **teachers)
    if disturbed:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in algorithm.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return algorithm.double().train()


def ragged_batch() -> Batch:
    """Rows of one document and of two, of padding, prompts, infills and nothing to learn."""
    tokens = torch.randint(V, (G, L), generator=torch.Generator().manual_seed(2))
    weight, documents = torch.ones(G, L), torch.zeros(G, L, dtype=torch.long)
    documents[1, 5:] = documents[3, 2:] = -1  # padding
    documents[2, 4:] = 1  # two documents
    documents[4, 3:6], documents[4, 6:] = 7, -1  # two, and padding
    weight[0, :3] = 0  # a prompt
    weight[2, :2] = weight[2, 4] = 0  # one for each document
    weight[5, 2:4] = weight[5, 6:] = 0  # an infill
    weight[6] = 0  # nothing
    weight[documents < 0] = 0
    return Batch(tokens, weight.double(), documents)
