"""Models at `s3://` addresses, from a server that speaks S3's protocol and checks signatures."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.prepare.servers import s3, serving
from tests.prepare.support import Place

from rljob.api import ConfigurationError
from rljob.prepare.s3 import chunks, profile

Saved = Callable[..., Path]
JOB = {"model": {"source": {"url": "s3://bucket/models/my model.tar.gz"}}, "warmStart": None}
OBJECT = "/bucket/models/my%20model.tar.gz"


class Service:
    """The stand-in: what it holds, who may ask, what was asked."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.secrets = {"KEY": "SECRET"}
        self.asked: list[str] = []
        self.address = ""


@pytest.fixture
def service(saved_model: Saved, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    made = Service()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(saved_model(), "model")
    made.objects[OBJECT] = packed.getvalue()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_ROLE_ARN", "AWS_SKIP_SIGNATURE"):
        monkeypatch.delenv(name, raising=False)
    with serving(s3(made.objects, made.secrets, made.asked)) as made.address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        yield made


def credentials(text: str, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Take the keys out of the environment and write a credentials file."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file.write_text(text)


def test_a_model_comes_from_the_endpoint_with_the_keys_of_the_environment_and_is_fetched_once(place: Place, service: Service) -> None:
    assert place.prepare(**JOB).model_type == "llama"
    place.folders.model.joinpath("config.json").unlink()
    place.folders.model.joinpath(".source.json").unlink()
    assert place.prepare(**JOB).train == 5
    assert service.asked == [f"GET {OBJECT}"]


def test_an_object_larger_than_a_piece_arrives_whole(service: Service) -> None:
    service.objects["/bucket/big"] = bytes(range(256)) * 100_000
    sizes: list[int] = []
    pieces = list(chunks("s3://bucket/big", sizes.append))
    assert len(pieces) > 1
    assert b"".join(pieces) == service.objects["/bucket/big"]
    assert sizes == [len(service.objects["/bucket/big"])]


@pytest.mark.parametrize("chosen", [None, "other"], ids=["default profile", "AWS_PROFILE"])
def test_a_credentials_file_gives_keys_region_and_endpoint(
    place: Place, service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: str | None
) -> None:
    """As the Secret of a job in a cluster does."""
    keys = "aws_access_key_id = KEY\naws_secret_access_key = SECRET\n"
    text = f"[{chosen or 'default'}]\n{keys}region = eu-west-9\nendpoint_url = {service.address}\n[none]\n"
    credentials(text, monkeypatch, tmp_path / "credentials")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    if chosen:
        monkeypatch.setenv("AWS_PROFILE", chosen)
    assert place.prepare(**JOB).model_type == "llama"


def test_the_environment_wins_over_the_credentials_file(service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = WRONG\naws_secret_access_key = WRONG\n")
    assert profile({"AWS_SHARED_CREDENTIALS_FILE": str(file), "AWS_ACCESS_KEY_ID": "KEY"}) == {}
    assert list(chunks(f"s3:/{OBJECT}".replace("%20", " "))) != []


def test_a_public_bucket_needs_no_keys(place: Place, service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    credentials("[default]\nrole_arn = x\n", monkeypatch, tmp_path / "credentials")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    service.secrets.clear()
    assert place.prepare(**JOB).model_type == "llama"


def test_an_object_that_is_not_there_is_named(place: Place, service: Service) -> None:
    words = r"s3://bucket/gone.gguf does not exist \(NoSuchKey: The specified key does not exist.\); check bucket and key"
    with pytest.raises(ConfigurationError, match=words):
        place.prepare(model={"source": {"url": "s3://bucket/gone.gguf"}}, warmStart=None)
    assert list((place.folders.cache / "url").rglob("*.gguf")) == []


def test_a_bucket_that_is_not_there_is_named(service: Service) -> None:
    with pytest.raises(ConfigurationError, match=r"does not exist \(NoSuchBucket: .*\); check bucket and key"):
        list(chunks("s3://nothing/x.gguf"))


@pytest.mark.parametrize("address", ["s3://model.gguf", "s3:///model.gguf", "s3://bucket/", "s3://bucket/../other/x.gguf"])
def test_an_address_that_no_object_can_have_is_refused(service: Service, address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"object.*; write s3://BUCKET/KEY$"):
        list(chunks(address))
    assert service.asked == []


@pytest.mark.parametrize(
    ("variables", "code"),
    [({"AWS_SECRET_ACCESS_KEY": "WRONG"}, "SignatureDoesNotMatch"), ({"AWS_ACCESS_KEY_ID": "NOBODY"}, "InvalidAccessKeyId")],
)
def test_keys_that_are_refused_say_why_and_are_not_shown(
    place: Place, service: Service, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], code: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=rf"is not for these credentials \({code}: .*\); set AWS_ACCESS_KEY_ID") as refused:
        place.prepare(**JOB)
    assert not {"WRONG", "NOBODY", "SECRET"} & set(str(refused.value).replace("=", " ").split())
    assert "\n" not in str(refused.value)


def test_no_keys_at_all_say_what_to_set(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", service.address)
    with pytest.raises(
        ConfigurationError, match=r"needs credentials, and none were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ):
        list(chunks("s3://bucket/x.gguf"))
    assert service.asked == ["PUT /latest/api/token"]


def test_an_endpoint_that_cannot_be_reached_says_what_to_set(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ConfigurationError, match=r"x.gguf cannot be fetched \(Connection refused\); check AWS_ENDPOINT_URL and AWS_REGION"):
        list(chunks("s3://bucket/x.gguf"))


@pytest.mark.parametrize(
    ("text", "variables", "message"),
    [
        ("secret words", {}, r"is no AWS credentials file; it has lines `\[profile\]`"),
        ("[a]\n[b]\n", {"AWS_PROFILE": "c"}, "AWS_PROFILE is 'c', but .* has no such profile; there are a, b"),
        ("[default]\nrole_arn = x\n", {}, "profile 'default' of .* has no aws_access_key_id; add it, or set AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_credentials_file_that_cannot_be_used_is_named_and_not_quoted(
    tmp_path: Path, text: str, variables: dict[str, str], message: str
) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigurationError, match=message) as refused:
        profile({"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "keys"), **variables})
    assert "secret" not in str(refused.value)


def test_a_credentials_file_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert profile({"HOME": str(tmp_path)}) == {}
