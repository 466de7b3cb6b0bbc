"""`kubectl apply -k charts/kustomize` applies what the chart renders by default."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml
from charts.generate import kustomize_files, without_helm
from tests.chart.rendering import ROOT, Chart, Json

from rljob.manifests.settings import Images, Settings, parse_settings

BASE = ROOT / "charts" / "kustomize"


class _Loader(yaml.SafeLoader):
    """Takes 1e-08 for a number, as kubectl does and YAML 1.2 says."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[0-9]+e-?[0-9]+"), list("0123456789"))


def _name(item: Json) -> tuple[str, str, str]:
    return item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]


def test_made_files_are_up_to_date(chart: Chart) -> None:
    stale = [path.name for path, text in kustomize_files(chart.text()).items() if not path.exists() or path.read_text() != text]
    assert stale == [], "run `make chart`"


def test_it_is_the_charts_default_rendering_object_by_object(chart: Chart, binaries: Callable[[str], Path]) -> None:
    command = [str(binaries("kubectl")), "kustomize", str(BASE)]
    built = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    found = {_name(item): item for item in yaml.load_all(built, Loader=_Loader)}
    wanted = {_name(item): without_helm(item) for item in chart.objects()}
    namespace = found.pop(("Namespace", "", "rljob-system"))
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    assert found == wanted


def test_the_settings_that_an_overlay_copies_are_the_whole_of_them_in_a_file_of_their_own() -> None:
    (alone,) = yaml.safe_load_all((BASE / "settings.yaml").read_text())
    assert alone["kind"] == "ConfigMap"
    given = yaml.safe_load(alone["data"]["settings.yaml"])
    # Without a default of its own stands only what the cluster decides.
    assert {str(field.alias) for field in Settings.model_fields.values()} - given.keys() == {"storageClass"}
    assert {str(field.alias) for field in Images.model_fields.values()} == given["images"].keys()


def test_it_names_nothing_that_only_helm_reads() -> None:
    for path in BASE.glob("*.yaml"):
        assert "helm" not in path.read_text().lower().replace("rljob", ""), path.name


def test_the_overlay_of_the_installation_page_builds(binaries: Callable[[str], Path], tmp_path: Path) -> None:
    (overlay,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "install.md").read_text(), re.DOTALL)
    shutil.copytree(BASE, tmp_path / "rljob" / "charts" / "kustomize")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(overlay)
    copied = (BASE / "settings.yaml").read_text()
    (mine / "settings.yaml").write_text(copied.replace("accessMode: ReadWriteMany", "accessMode: ReadWriteOnce"))
    built = subprocess.run(
        [str(binaries("kubectl")), "kustomize", str(mine)], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    objects = {item["kind"]: item for item in yaml.load_all(built, Loader=_Loader)}
    assert objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example/rljob/operator:0.1.0"
    base = parse_settings(yaml.safe_load(copied)["data"]["settings.yaml"], "settings.yaml")
    changed = parse_settings(objects["ConfigMap"]["data"]["settings.yaml"], "settings.yaml")
    assert (base.access_mode, base.operator_namespace) == ("ReadWriteMany", "rljob-system")
    assert changed == base.model_copy(update={"access_mode": "ReadWriteOnce"})
