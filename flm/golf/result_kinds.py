"""Reads the results of mode=golf_eval, flow_lm_eval and artifact for the report."""

from typing import Annotated, Any

from pydantic import Field

from flm.results.files import Content, Count, Real, Text, Whole, checked
from flm.results.kinds import KeyNumber, Line, Plot, Reading, ResultKind, Source, Table

_Reals = Annotated[list[Real], Field(max_length=10_000)]


class _Method(Content):
    window: Count
    stride: Count
    tokens: Count
    bytes: Count
    nats_per_token: Real
    bits_per_byte: Real


class _Methods(Content):
    methods: Annotated[dict[Text, _Method], Field(min_length=1, max_length=20)]
    corpus: Text | None = None


class _GolfEval(Content):
    golf_eval: _Methods
    checkpoint: Annotated[dict[str, Any], Field(max_length=64)] = {}


def read_golf_eval(source: Source) -> Reading:
    """One key number for each method, and one for the gain of test-time training.

    Numbers of a packed model are labelled so, to stand beside those of the checkpoint that it was packed from.
    """
    found = checked(_GolfEval, source.content)
    content, packed = found.golf_eval, "packed, " * str(found.checkpoint.get("path", "")).endswith(".flmpack")
    columns = ("corpus", "scored in", "window", "stride", "tokens", "bytes", "nats per token", "bits per byte")
    rows, numbers = [], []
    for name, one in content.methods.items():
        method = name.replace("_", " ")
        counts = (one.window, one.stride, one.tokens, one.bytes)
        rows.append((content.corpus, method, *counts, one.nats_per_token, one.bits_per_byte))
        numbers.append(KeyNumber("bits per byte", packed + method, one.bits_per_byte, "lower"))
    numbers.sort(key=lambda number: number.value)
    if {"sliding", "test_time_training"} <= content.methods.keys():
        effect = content.methods["test_time_training"].bits_per_byte - content.methods["sliding"].bits_per_byte
        numbers.append(KeyNumber("bits per byte that test-time training changes", packed.rstrip(", "), effect, "lower"))
    return Reading(tables=(Table("golf_eval", columns, tuple(rows)),), numbers=tuple(numbers))


class _Curve(Content):
    times: _Reals
    ce_nats_per_token: _Reals
    zero_velocity_ce_nats_per_token: _Reals
    denoising_ce_bpb: Real
    zero_velocity_denoising_ce_bpb: Real


class _Bound(Content):
    t1: Real
    nats_per_token: Real
    bits_per_byte: Real
    standard_error_nats: Real | None = None
    diffusion_nats_per_token: Real | None = None
    reconstruction_nats_per_token: Real | None = None
    zero_velocity_bits_per_byte: Real | None = None


class _Exact(Content):
    nats_per_token: Real
    bits_per_byte: Real


class _FlowLM(Content):
    corpus: Text | None = None
    denoising: _Curve
    bound: Annotated[list[_Bound], Field(min_length=1, max_length=200)]
    chosen_t1: Real | None = None
    autoregressive: _Exact | None = None


class _FlowLMEval(Content):
    flow_lm_eval: _FlowLM


def read_flow_lm_eval(source: Source) -> Reading:
    """The bound, as key numbers and a table, and the denoising curve, as a plot and a table, both with zero velocity."""
    content = checked(_FlowLMEval, source.content).flow_lm_eval
    columns = ("corpus", "path ends at t1", "chosen on training text", "bits per byte", "nats per token", "Monte-Carlo error")
    columns += ("diffusion, nats", "reconstruction, nats", "zero velocity, bits per byte")
    rows = tuple(
        (content.corpus, row.t1, "yes" if row.t1 == content.chosen_t1 else None, row.bits_per_byte, row.nats_per_token)
        + (row.standard_error_nats, row.diffusion_nats_per_token, row.reconstruction_nats_per_token)
        + (row.zero_velocity_bits_per_byte,)
        for row in content.bound
    )
    curve = content.denoising
    control = curve.zero_velocity_ce_nats_per_token
    if not len(curve.times) == len(curve.ce_nats_per_token) == len(control):
        raise ValueError("flow_lm_eval.denoising: its lists differ in length")
    times = tuple(curve.times)
    lines = (
        Line("model", times, tuple(curve.ce_nats_per_token)),
        Line("zero velocity", times, tuple(control), is_reference=True),
    )
    title = "cross-entropy of the denoised state: no likelihood"
    plot = Plot("denoising_curve", title, "t: 0 noise, 1 data", "nats per token", lines)
    means = Table(
        "denoising",
        ("corpus", "denoising CE, bits per byte (no bound)", "the same with zero velocity"),
        ((content.corpus, curve.denoising_ce_bpb, curve.zero_velocity_denoising_ce_bpb),),
    )
    chosen = next((row for row in content.bound if row.t1 == content.chosen_t1), None)
    bounds = content.bound if chosen is None else [chosen]  # t1 was chosen on other text; without a choice every end is shown
    numbers = tuple(KeyNumber("bits per byte, upper bound", f"t1 {row.t1:g}", row.bits_per_byte, "lower") for row in bounds)
    tables = [Table("flow_lm_bound", columns, rows), means]
    if content.autoregressive is not None:
        exact = content.autoregressive
        titles = ("corpus", "exact, from left to right: bits per byte", "nats per token")
        tables.append(Table("beside", titles, ((content.corpus, exact.bits_per_byte, exact.nats_per_token),)))
    return Reading(tuple(tables), (plot,), numbers)


class _Size(Content):
    model_bytes: Count
    code_bytes: Count
    total_bytes: Count
    limit_bytes: Count | None = None
    headroom_bytes: Whole | None = None
    elements_by_bits: Annotated[dict[Text, Count], Field(max_length=64)] = {}


class _Artifact(Content):
    artifact: _Size


def read_artifact(source: Source) -> Reading:
    """The sizes as a table, and the total as the key number."""
    size = checked(_Artifact, source.content).artifact
    if size.total_bytes != size.model_bytes + size.code_bytes:
        raise ValueError("artifact.total_bytes is not model_bytes and code_bytes together")
    elements = tuple(sorted(size.elements_by_bits.items()))
    columns = ("model, bytes", "code, bytes", "total, bytes", "limit, bytes", "headroom, bytes")
    columns += tuple(f"weights of {bits} bits" if bits.isdigit() else f"weights rounded by {bits}" for bits, _ in elements)
    row = (size.model_bytes, size.code_bytes, size.total_bytes, size.limit_bytes, size.headroom_bytes)
    table = Table("artifact", columns, ((*row, *(count for _, count in elements)),))
    return Reading(tables=(table,), numbers=(KeyNumber("artifact, bytes", "", float(size.total_bytes), "lower"),))


GOLF_EVAL = ResultKind(
    files=("golf_eval.json",),
    read=read_golf_eval,
    heading="Held-out text as one stream",
    note="Bits per byte as the parameter-golf track counts them: windows without overlap, sliding windows, and sliding windows "
    "with training on what has been scored.",
)
FLOW_LM_EVAL = ResultKind(
    files=("flow_lm_eval.json",),
    read=read_flow_lm_eval,
    heading="Embedding flow: bound and denoising",
    note="The bound is on the targets given the sources. The denoising cross-entropy is no likelihood: near t = 1 the state "
    "holds the answer, and zero velocity, no model at all, gives the number beside it.",
)
ARTIFACT = ResultKind(
    files=("artifact.json",),
    read=read_artifact,
    heading="Packed artifact",
    note="Bytes of code and packed weights together, against the limit they were packed for.",
)
