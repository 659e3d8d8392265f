"""Whether weights are those a model needs."""

from collections.abc import Mapping

from torch import Tensor


def check_state(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str, shown: int = 4) -> None:
    """Raises ValueError naming, key by key, the first few weights that are missing, unexpected or of another shape."""
    problems = [f"{key} missing" for key in expected if key not in given]
    problems += [f"{key} unexpected" for key in given if key not in expected]
    problems += [
        f"{key} has shape {tuple(given[key].shape)}, the model needs {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in given and given[key].shape != tensor.shape
    ]
    if problems:
        more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
        raise ValueError(f"{name}: the weights do not fit the model: {'; '.join(problems[:shown])}{more}")
