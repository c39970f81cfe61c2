"""Flat arguments in, checked settings out; mistakes are errors that say what to write."""

import pytest

from trimix_lm_eval.fusion.weights import SOURCES
from trimix_lm_eval.loading import settings
from trimix_lm_eval.utils import paths
from trimix_lm_eval.utils.errors import TrimixError

FOUR = {"large_ins": "a", "small_cpt": "b", "small_base": "c", "large_base": "d"}


def parse(**arguments):
    return settings.parse({**FOUR, **arguments})


# -------------------------------------------------------------------------------- sources


def test_the_plainest_settings():
    asked = settings.parse({"pretrained": "org/model"})
    assert list(asked.sources) == ["large_ins"]
    spec = asked.sources["large_ins"]
    assert (spec.path, spec.revision, spec.dtype, spec.device) == (
        "org/model",
        "main",
        "auto",
        None,
    )
    assert (asked.policy, asked.policy_options, asked.batch_size) == ("ppl", {}, 1)


def test_sources_come_in_one_order_whatever_the_order_given():
    asked = settings.parse(dict(reversed(FOUR.items())))
    assert tuple(asked.sources) == SOURCES
    assert [s.path for s in asked.sources.values()] == ["a", "b", "c", "d"]
    assert all(name == spec.name for name, spec in asked.sources.items())


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("dtype", ("float32", "bfloat16", "float16")),
        ("revision", ("r1", "r2", "r3")),
        ("device", ("cpu", "cuda:1", "cuda:2")),
        ("quantization", ("int8", "nf4", "int8")),
        ("subfolder", ("s1", "s2", "s3")),
        ("attn_implementation", ("eager", "sdpa", "other")),
        ("gguf_file", ("1.gguf", "2.gguf", "3.gguf")),
        ("trust_remote_code", (True, False, True)),
    ],
)
@pytest.mark.parametrize("role", SOURCES)
def test_the_more_specific_name_wins(role, field, values):
    one, size, every = values
    group = role.split("_")[0]
    default = getattr(parse().sources[role], field)
    others = {r: getattr(parse().sources[r], field) for r in SOURCES}

    def get(**arguments):
        return {r: getattr(s, field) for r, s in parse(**arguments).sources.items()}

    assert get(**{field: every}) == dict.fromkeys(SOURCES, every)
    both = get(**{f"{group}_{field}": size, field: every})
    assert both == {r: size if r.startswith(group) else every for r in SOURCES}
    three = get(**{f"{role}_{field}": one, f"{group}_{field}": size, field: every})
    assert three == {**both, role: one}
    alone = get(**{f"{role}_{field}": one})
    assert alone == {**others, role: one}
    assert get(**{f"{role}_{field}": None})[role] == default  # None is as if not given


def test_pretrained_and_large_ins_are_the_same_model():
    with pytest.raises(TrimixError, match="Both pretrained= and large_ins=") as error:
        settings.parse({"pretrained": "a", "large_ins": "a"})
    assert "keep one" in str(error.value)


@pytest.mark.parametrize("given", [{}, {"small_cpt": "x"}, {"pretrained": None}])
def test_a_large_model_must_be_named(given):
    with pytest.raises(TrimixError, match="No large instruction-tuned model") as error:
        settings.parse(given)
    assert "pretrained=demo" in str(error.value)


def test_an_empty_path_is_no_model():
    with pytest.raises(TrimixError):
        settings.parse({"pretrained": ""})


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = settings.parse({"pretrained": "~/models/x", "small_cpt": "org/~y"})
    assert asked.sources["large_ins"].path == str(tmp_path / "models/x")
    assert asked.sources["small_cpt"].path == "org/~y"


def test_demo_names_the_shipped_trio(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "demo_dir", lambda: tmp_path)
    asked = settings.parse({"pretrained": "demo"})
    assert {n: s.path for n, s in asked.sources.items()} == {
        n: str(tmp_path / n) for n in ("large_ins", "small_cpt", "small_base")
    }
    mixed = settings.parse({"pretrained": "demo", "small_cpt": "mine", "large_base": "other"})
    assert mixed.sources["small_cpt"].path == "mine"
    assert mixed.sources["small_base"].path == str(tmp_path / "small_base")
    assert mixed.sources["large_base"].path == "other"


# -------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("small_ctp", "small_cpt"),
        ("aplha", None),
        ("batchsize", "batch_size"),
        ("small_cpt_dtypes", "small_cpt_dtype"),
        ("large_quantisation", "large_quantization"),
        ("grid_", "grid"),
    ],
)
def test_an_unknown_name_lists_what_is_accepted(name, guess):
    with pytest.raises(TrimixError, match=f"Unknown argument .*'{name}'") as error:
        parse(**{name: "x"})
    text = str(error.value)
    assert guess is None or f"Did you mean '{guess}'?" in text
    for accepted in ("pretrained", "small_cpt", "policy", "grid", "refine", "max_length"):
        assert accepted in text.split("accepted: ")[1].split(", ")


def test_options_belong_to_their_policy():
    asked = parse(policy="fixed", alpha=0.3, beta=0.7)
    assert asked.policy_options == {"alpha": 0.3, "beta": 0.7}
    with pytest.raises(TrimixError, match="alpha is an option of policy=fixed.*has policy=ppl"):
        parse(alpha=0.3)
    with pytest.raises(TrimixError, match="grid is an option of policy=.*has policy=fixed"):
        parse(policy="fixed", grid="paper")


def test_a_grid_with_commas_is_told_how_to_write_it():
    with pytest.raises(TrimixError, match="grid=0.1:0.9;0.3:1.0"):
        parse(**{"grid": 0.1, "0.9": ""})


def test_no_argument_is_one_that_lm_eval_names_the_results_folder_after():
    from trimix_lm_eval.fusion import policies

    for name in policies.names():
        assert not {"peft", "delta", "model", "path", "engine"} & set(policies.option_names(name))


def test_an_unknown_policy_lists_the_policies():
    with pytest.raises(TrimixError, match="Unknown policy 'pplx'. Did you mean 'ppl'") as error:
        parse(policy="pplx")
    assert "proxy_tuning" in str(error.value)


# -------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("given", "expected"),
    [(1, 1), (8, 8), ("8", 8), ("auto", "auto"), ("auto:4", "auto")],
)
def test_batch_size(given, expected):
    assert parse(batch_size=given).batch_size == expected


@pytest.mark.parametrize("given", [0, -1, "0", "-1", "many", "1.5", "", 1.5, "²", [1]])
def test_no_batch_size(given):
    with pytest.raises(TrimixError, match="batch_size.*\n.*a whole number >= 1, or auto"):
        parse(batch_size=given)


@pytest.mark.parametrize("name", ["dtype", "small_dtype", "large_base_dtype"])
def test_no_dtype(name):
    with pytest.raises(TrimixError, match=f"Unknown {name} 'int8'") as error:
        parse(**{name: "int8"})
    assert "accepted: auto, bfloat16, float16, float32" in str(error.value)


@pytest.mark.parametrize(
    "name, meant", [("fp16", "float16"), ("half", "float16"), ("bf16", "bfloat16")]
)
def test_a_short_name_of_a_dtype_is_answered_with_the_accepted_one(name, meant):
    with pytest.raises(TrimixError, match=f"^Unknown small_dtype '{name}'. Did you mean '{meant}'"):
        parse(small_dtype=name)


def test_dtype_may_be_written_as_torch_does():
    import torch

    assert parse(dtype="torch.bfloat16").sources["large_ins"].dtype == "bfloat16"
    assert parse(dtype=torch.float16).sources["large_ins"].dtype == "float16"


@pytest.mark.parametrize("given", ["int4", "8bit", True])
def test_no_quantization(given):
    with pytest.raises(TrimixError, match="Unknown large_quantization") as error:
        parse(large_quantization=given)
    assert "accepted: int8, nf4" in str(error.value)


@pytest.mark.parametrize("given", [0, 1, -0.1, 1.5, float("nan"), "much"])
def test_no_plausibility(given):
    with pytest.raises(TrimixError, match="plausibility=.*\n.*between 0 and 1"):
        parse(plausibility=given)


def test_plausibility():
    assert parse(plausibility=0.1).plausibility == 0.1
    assert parse(plausibility="0.1").plausibility == 0.1
    with pytest.raises(TrimixError, match="plausibility_source"):
        parse(plausibility=0.1, plausibility_source="large")


@pytest.mark.parametrize("given", [1, 0, -5, "long"])
def test_no_max_length(given):
    with pytest.raises(TrimixError, match="max_length"):
        parse(max_length=given)


def test_max_length():
    assert parse(max_length=64).max_length == 64
    assert parse(max_length="64").max_length == 64


def test_arguments_are_left_as_they_were():
    given = {"pretrained": "a", "policy": "fixed", "alpha": 0.1, "dtype": "float32"}
    before = dict(given)
    settings.parse(given)
    assert given == before


@pytest.mark.parametrize(("given", "meant"), [(False, "off"), (True, "auto"), ("off", "off")])
def test_cuda_graphs_as_yaml_reads_it(given, meant):
    assert settings.parse({"pretrained": "demo", "cuda_graphs": given}).cuda_graphs == meant
