"""What cannot run in a cluster as it is written, and how it is said."""

import pytest
from tests.manifests.jobs import objects, tiny

from rljob.api import ConfigurationError
from rljob.manifests.names import checked
from rljob.manifests.settings import Settings, parse_settings


def test_relative_paths_without_files_name_field_value_and_remedy() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        objects(tiny("spec.files=null"))
    said = str(refusal.value)
    for part in ("spec.data.train.path: train.jsonl", "spec.evaluation.data.path", "spec.files.claim", "spec.files.configMap"):
        assert part in said
    assert "\n" not in said


def test_absolute_paths_need_no_files() -> None:
    assert objects(tiny("spec.files=null", "spec.data.train.path=/data/a.jsonl", "spec.evaluation.data.path=/data/b.jsonl"))


def test_a_config_map_has_no_folders() -> None:
    with pytest.raises(ConfigurationError, match=r"spec\.data\.train\.path: data/train\.jsonl has folders, the ConfigMap tiny-files"):
        objects(tiny("spec.data.train.path=data/train.jsonl"))


def test_a_name_that_is_too_long_for_a_host_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at most 63: give the job a name that is 2 shorter"):
        checked("x" * 65)


def test_settings_say_which_field_is_wrong() -> None:
    assert parse_settings("", "settings.yaml") == Settings()
    with pytest.raises(ConfigurationError, match=r"settings\.yaml: workers: is 0"):
        parse_settings("workers: 0", "settings.yaml")
    with pytest.raises(ConfigurationError, match=r"settings\.yaml: imagePulPolicy: is 'Always'"):
        parse_settings("imagePulPolicy: Always", "settings.yaml")
    with pytest.raises(ConfigurationError, match=r"settings\.yaml: is not YAML"):
        parse_settings("a: [", "settings.yaml")
