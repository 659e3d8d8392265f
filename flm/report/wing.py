"""What the report registers: readers of the core's own results."""

from flm.registry import Wing

WING = Wing(
    result_kinds={
        "training": "flm.report.kinds.training:KIND",
        "sample_eval": "flm.report.kinds.samples:KIND",
        "film": "flm.report.kinds.film:KIND",
        "frontier": "flm.report.frontier.result_kind:KIND",
        "likelihood": "flm.report.kinds.likelihood:KIND",
    }
)
