"""A teacher fits, or is refused in one line that names its key before anything is trained: all pairs, all that may differ."""

import pytest
import torch
from every_algorithm import NAMES, TEACHERS, L, V, build, composed, ragged_batch

from flm.checkpoints.build import build_algorithm
from flm.draws import Draws

FITS = {  # by student and teacher's argument
    ("fmlm", "teacher"): {"flm"},
    ("flm_distill", "teacher"): {"flm"},
    ("flm_distill_second", "teacher_f"): {"flm"},
    ("flm_distill_second", "teacher_g"): {"flm_distill"},
    ("duo_distill", "teacher"): {"duo", "duo_distill"},  # a student of a Duo is one
    ("kl_flow_map", "teacher"): {"kl_flow"},
    ("simplex_dmd", "teacher"): {"flm"},
    ("kl_simplex_dmd", "teacher"): {"kl_flow"},
}
ON_GEODESICS = ("kl_flow_map", "kl_simplex_dmd")  # no clock to choose, and what is given is always clean
PAIRS = [(student, key, teacher) for (student, key) in FITS for teacher in NAMES]


def test_every_distillation_is_here():
    assert {(student, key) for student, kinds in TEACHERS.items() for key in kinds} == set(FITS)


def student_of(name: str, options=(), **teachers):
    others = {key: None for key in TEACHERS[name] if key not in teachers}
    if name == "flm_distill_second" and "teacher_f" in teachers:
        others = {"teacher_g": build("flm_distill").float()}
        f = teachers["teacher_f"]
        if type(f).__name__ == "FLM":  # the one that the residual was trained beside
            others["teacher_g"].base.load_state_dict(f.backbone.state_dict(), strict=False)
    return build_algorithm(composed(name, tuple(options)), V, **teachers, **others)


def refusal(make) -> str:
    with pytest.raises(ValueError) as raised:
        make()
    text = str(raised.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("student,key,teacher", PAIRS, ids=[" ".join(pair) for pair in PAIRS])
def test_any_algorithm_as_teacher(student, key, teacher):
    model = build(teacher).float()
    if teacher in FITS[student, key]:
        algorithm = student_of(student, **{key: model}).double()
        algorithm.check_ready()
        assert algorithm.loss(ragged_batch(), Draws(0)).sum.isfinite()
    else:
        text = refusal(lambda: student_of(student, **{key: model}))
        assert f"algo.{key}_path: needs a checkpoint of algo=" in text and type(model).__name__ in text


@pytest.mark.parametrize("student,key", FITS)
def test_another_length_is_refused(student, key):
    (teacher, *_) = FITS[student, key]
    longer = build(teacher, ["model.length=12"]).float()
    assert "model.length=12" in refusal(lambda: student_of(student, **{key: longer})) and L != 12


@pytest.mark.parametrize("student,key", [pair for pair in FITS if pair[0] not in ("duo_distill", *ON_GEODESICS)])
def test_another_clock_or_convention_is_refused(student, key):
    (teacher, *_) = FITS[student, key]
    clean = build(teacher, ["algo.clean_given=true"]).float()
    text = refusal(lambda: student_of(student, **{key: clean}))
    assert f"algo.{key}_path: trained with algo.clean_given=true" in text
    plain = build(teacher).float()
    text = refusal(lambda: student_of(student, ["algo.clean_given=true"], **{key: plain}))
    assert "trained with algo.clean_given=false" in text
    clock = ["algo.clock={_target_: flm.paths.clock.IdentityClock}"]
    text = refusal(lambda: student_of(student, **{key: build(teacher, clock).float()}))
    assert "algo.clock" in text and f"algo.{key}_path" in text


@pytest.mark.parametrize("student,key", FITS)
def test_another_network_is_refused(student, key):
    (teacher, *_) = FITS[student, key]
    if key == "teacher_f":
        return  # asked as it is, whatever its shape
    wider = build(teacher, ["model.hidden_size=24"]).float()
    assert "model=" in refusal(lambda: student_of(student, **{key: wider}))


def test_another_flm_than_the_residual_was_trained_beside_is_refused():
    g, f = build("flm_distill").float(), build("flm").float()
    g.base.load_state_dict(f.backbone.state_dict())
    build_algorithm(composed("flm_distill_second"), V, teacher_f=f, teacher_g=g)
    with torch.no_grad():
        f.backbone.output_layer.linear.bias[3] += 0.01
    text = refusal(lambda: build_algorithm(composed("flm_distill_second"), V, teacher_f=f, teacher_g=g))
    assert text.startswith("algo.teacher_f_path: another FLM than that which algo.teacher_g_path")


@pytest.mark.parametrize("student", [name for name in TEACHERS if name not in ("fmlm", "kl_flow_map")])
def test_without_a_teacher_nothing_begins(student):
    algorithm = build_algorithm(composed(student), V, **dict.fromkeys(TEACHERS[student]))
    assert "_path is not set" in refusal(algorithm.check_ready)


def test_two_of_the_flow_maps_learn_from_data_alone():
    for name in ("fmlm", "kl_flow_map"):
        algorithm = build_algorithm(composed(name), V, teacher=None)
        algorithm.check_ready()
        assert torch.isfinite(algorithm.double().loss(ragged_batch(), Draws(0)).sum)
