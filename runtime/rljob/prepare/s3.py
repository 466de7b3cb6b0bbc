"""`s3://` addresses, at AWS or at any service that speaks its protocol.

Where the service is and who asks comes from the environment, never from the job: `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_SKIP_SIGNATURE=true` for public buckets. Without keys there, the profile `AWS_PROFILE` of
the AWS credentials file counts (`AWS_SHARED_CREDENTIALS_FILE`; in a cluster it lies in the job's Secret), and without that what obstore
finds: the role of a service account, of a container or of a cloud machine. Profiles that only name a role or a login are not followed.
"""

import configparser
import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rljob.api import ConfigurationError

_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_MORE = {"region": ("AWS_REGION", "AWS_DEFAULT_REGION"), "endpoint_url": _ENDPOINTS}
"""What else a profile may say, and the variables that win over it."""
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_REMEDY = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket"


def chunks(
    url: str, announced: Callable[[int], object] = lambda size: None, environment: Mapping[str, str] = os.environ
) -> Iterator[bytes]:
    """The object's bytes, a few MiB at a time. `announced` is told their number before.

    Raises:
        ConfigurationError: the address is incomplete, the object is not there or not for us, or the service cannot be reached.
    """
    import obstore
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise ConfigurationError(f"{url} names no object; write s3://BUCKET/KEY")
    try:
        answer = obstore.get(_store(bucket, environment), key)
        announced(answer.meta["size"])
        for chunk in answer.stream():
            yield bytes(chunk)
    except ValueError as error:  # a key with `..` or an empty part
        raise ConfigurationError(f"{url} is no address of an object ({str(error).splitlines()[0]}); write s3://BUCKET/KEY") from error
    except FileNotFoundError as error:
        raise ConfigurationError(f"{url} does not exist{_said(error)}; check bucket and key") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise ConfigurationError(f"{url} is not for these credentials{_said(error)}; {_REMEDY}") from error
    except BaseError as error:
        if "/latest/api/token" in str(error):  # It asked the cloud machine for a role because it had no keys.
            raise ConfigurationError(f"{url} needs credentials, and none were found; {_REMEDY}") from error
        raise ConfigurationError(f"{url} cannot be fetched{_said(error)}; check AWS_ENDPOINT_URL and AWS_REGION") from error


def _store(bucket: str, environment: Mapping[str, str]) -> Any:
    from obstore.store import S3Store

    found = profile(environment)
    if "endpoint_url" in found:
        found["endpoint"] = found.pop("endpoint_url")
    endpoint = found.get("endpoint") or next((environment[name] for name in _ENDPOINTS if environment.get(name)), "")
    # obstore limits the whole answer to 30 s if it is not told otherwise.
    client = {"allow_http": endpoint.startswith("http://"), "timeout": timedelta(days=1), "read_timeout": timedelta(seconds=60)}
    return S3Store(bucket, client_options=client, retry_config=_RETRIES, **found)


def profile(environment: Mapping[str, str]) -> dict[str, str]:
    """Keys, region and endpoint of the chosen profile of the AWS credentials file, as far as the environment does not name them itself.

    Raises:
        ConfigurationError: the file cannot be read, or lacks the profile that `AWS_PROFILE` names, or the profile has no keys.
    """
    if "AWS_ACCESS_KEY_ID" in environment or environment.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
        return {}
    file = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or Path(environment.get("HOME", "/")) / ".aws" / "credentials")
    wanted = environment.get("AWS_PROFILE", "default")
    if not file.is_file():
        return {}
    profiles = configparser.RawConfigParser()
    try:
        profiles.read_string(file.read_text())
    except (configparser.Error, ValueError):
        # Not the parser's message: it quotes the line, which may be a key.
        raise ConfigurationError(f"{file} is no AWS credentials file; it has lines `[profile]` and `aws_access_key_id = …`") from None
    if not profiles.has_section(wanted):
        if "AWS_PROFILE" in environment:
            raise ConfigurationError(
                f"AWS_PROFILE is {wanted!r}, but {file} has no such profile; there are {', '.join(profiles.sections())}"
            )
        return {}
    section = profiles[wanted]
    if missing := [name for name in _KEYS[:2] if name not in section]:
        raise ConfigurationError(f"profile {wanted!r} of {file} has no {missing[0]}; add it, or {_REMEDY}")
    more = [name for name, variables in _MORE.items() if not any(v in environment for v in variables)]
    return {name.removeprefix("aws_"): section[name] for name in (*_KEYS, *more) if name in section}


def _said(error: Exception) -> str:
    """What of an error is for people: the service's own code and message, or why it was not reached."""
    text = str(error).partition("\n\nDebug source")[0]
    answer = re.search(r"<Code>([^<]*)</Code>\s*(?:<Message>([^<]*)</Message>)?", text)
    if answer:
        return f" ({': '.join(word for word in answer.groups() if word)})"
    reason = re.search(r"message: \"([^\"]*)\"", str(error))
    first = text.splitlines()[0].rpartition(" - ")[2]
    return f" ({reason.group(1) if reason else first})"
