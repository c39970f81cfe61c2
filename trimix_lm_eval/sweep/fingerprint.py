"""What a variant's numbers depend on, known before any weight is loaded.

Results of one place must be of one making: a rerun skips what has the fingerprint that it would get
now, and anything else in its place is an error that names the difference.

Everything that a config says counts, unless it is known to change the time only: what somebody adds
to `Settings` counts from then on. Of models and data, content counts and not the place.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from trimix_lm_eval.loading.preflight import PreflightReport
from trimix_lm_eval.loading.provenance import (
    model_identity,
    policy_code,
    text_digest,
    vocabulary_digest,
)
from trimix_lm_eval.loading.settings import Settings, SourceSpec
from trimix_lm_eval.sweep.plan import Setting, SweepVariant
from trimix_lm_eval.sweep.tasks import LoadedTasks

#: Change the time that a run takes, or where it says what it did.
_TIME_ONLY = {"batch_size", "max_batch_size", "speculative", "cuda_graphs", "weights_log"}
#: What stands for these is there by its content.
_BY_CONTENT = {"sources", "policy", "policy_options", "plausibility_source", "tokenizer"}
_OF_SOURCE = {"name", "path", "revision", "device"}
#: Of ``metadata``: where the data is; what it holds is in ``data``.
_PLACES = {"data_dir", "data_password", "data_revision"}
#: Left out where they are as they were before there were others.
_BY_TOKEN = {"fusion", "candidates"}
_OF_RUN = (
    *("limit", "samples", "num_fewshot", "gen_kwargs", "system_instruction"),
    *("apply_chat_template", "fewshot_as_multiturn", "seed"),
)


def identities(
    setting: Setting, report: PreflightReport, tasks: LoadedTasks
) -> list[dict[str, Any]]:
    """What the numbers of each variant depend on, as JSON values."""
    config, first = setting.config, setting.variants[0].settings
    specs = {name: _source(first.sources[name], report) for name in report.commits}
    for name, own in report.each.items():
        specs[name] |= {
            "tokenizer": vocabulary_digest(own.tokenizer),
            "max_length": own.max_length,
        }
    given = {k: v for k, v in config.metadata.items() if k not in config.model_args}
    common = {
        "run": {name: getattr(config, name) for name in _OF_RUN}
        | {"metadata": {k: v for k, v in given.items() if k not in _PLACES}},
        "tokenizer": vocabulary_digest(report.tokenizer),
        "chat_template": text_digest(str(report.tokenizer.chat_template))
        if config.apply_chat_template
        else None,
        "tasks": tasks.digests,
        "groups": tasks.groups(),
        "data": {name: used["sha256"] for name, used in tasks.data.items()},
    }
    made = (_of_variant(variant, specs, report) | common for variant in setting.variants)
    return [json.loads(json.dumps(one, default=str)) for one in made]


def digest(identity: dict[str, Any]) -> str:
    """A short name for an identity."""
    return text_digest(json.dumps(identity, sort_keys=True))


def _of_variant(
    variant: SweepVariant, specs: dict[str, Any], report: PreflightReport
) -> dict[str, Any]:
    asked, policy = variant.settings, variant.policy
    options = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    rest = {
        field.name: getattr(asked, field.name)
        for field in dataclasses.fields(Settings)
        if field.name not in _TIME_ONLY | _BY_CONTENT | (set() if report.each else _BY_TOKEN)
    }
    return {
        "sources": {name: specs[name] for name in policy.sources(asked.sources)},
        "policy": {"name": policy.name, **options},
        **policy_code(policy),
        "plausibility_source": asked.plausibility_source if asked.fusion_config().mask else None,
        **rest,
    }


def _source(spec: SourceSpec, report: PreflightReport) -> dict[str, Any]:
    names = (field.name for field in dataclasses.fields(spec) if field.name not in _OF_SOURCE)
    return {
        **model_identity(spec.path, spec.subfolder, report.commits[spec.name]),
        **{name: getattr(spec, name) for name in names},
    }
