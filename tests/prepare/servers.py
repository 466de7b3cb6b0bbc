"""Small HTTP servers that stand in for what model and data are fetched from: a web server, S3, the Hugging Face hub."""

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The only commit of every repository of the stand-in for the hub."""


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run a server on a free port of this machine; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Quiet(BaseHTTPRequestHandler):
    """Answers with bytes and headers, and logs nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send an answer; `_` in the name of a header is a dash."""
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class QuietFolder(SimpleHTTPRequestHandler):
    """Serves the files of a folder."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def s3(objects: dict[str, bytes], secrets: dict[str, str], asked: list[str]) -> type[Quiet]:
    """S3's GetObject, addressed by path: what obstore needs of the protocol, with its errors.

    Args:
        objects: by `/bucket/key`.
        secrets: access key to secret key; with none, everything is public.
        asked: every request is noted here, as method and path.
    """

    class S3(Quiet):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            bucket = f"/{self.path.split('/')[1]}/"
            if problem := self._unsigned() if secrets else None:
                self._refuse(403, problem, "The request signature we calculated does not match.")
            elif not any(path.startswith(bucket) for path in objects):
                self._refuse(404, "NoSuchBucket", "The specified bucket does not exist")
            elif self.path not in objects:
                self._refuse(404, "NoSuchKey", "The specified key does not exist.")
            else:
                self.answer(200, objects[self.path], ETag='"1"', Last_Modified="Wed, 21 Oct 2015 07:28:00 GMT")

        def do_PUT(self) -> None:
            """What a cloud machine's metadata service answers that has no role to give."""
            asked.append(f"{self.command} {self.path}")
            self.answer(404)

        def _refuse(self, status: int, code: str, message: str) -> None:
            self.answer(status, f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())

        def _unsigned(self) -> str | None:
            """Why the signature is not the one that the secret key gives (AWS Signature Version 4); None if it is."""
            given = self.headers.get("Authorization", "")
            if not given:
                return "AccessDenied"
            fields = dict(part.strip().split("=", 1) for part in given.removeprefix("AWS4-HMAC-SHA256 ").split(","))
            access, day, region, service, end = fields["Credential"].split("/")
            if access not in secrets:
                return "InvalidAccessKeyId"
            names = fields["SignedHeaders"].split(";")
            headers = "".join(f"{name}:{self.headers[name].strip()}\n" for name in names)
            payload = self.headers["x-amz-content-sha256"]
            canonical = "\n".join([self.command, self.path, "", headers, ";".join(names), payload])
            scope = f"{day}/{region}/{service}/{end}"
            hashed = hashlib.sha256(canonical.encode()).hexdigest()
            key = f"AWS4{secrets[access]}".encode()
            for part in (day, region, service, end, f"AWS4-HMAC-SHA256\n{self.headers['x-amz-date']}\n{scope}\n{hashed}"):
                key = hmac.new(key, part.encode(), hashlib.sha256).digest()
            return None if key.hex() == fields["Signature"] else "SignatureDoesNotMatch"

    return S3


def hub(repositories: dict[str, Path], gated: dict[str, str], asked: list[str], forbidden: tuple[str, ...] = ()) -> type[Quiet]:
    """What huggingface_hub needs of the hub: the list of a repository's files, and the files; with the hub's error codes.

    Args:
        repositories: `models/owner/name` or `datasets/owner/name` to the folder with its files.
        gated: repository to the token that opens it.
        asked: every request is noted here, as method and path.
        forbidden: repositories that no token opens.
    """

    class Hub(Quiet):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(f"{self.command} {path}")
            api = path.startswith("/api/")
            words = path.removeprefix("/api").strip("/").split("/")
            if words[0] not in ("models", "datasets"):
                words.insert(0, "models")  # files of models have no prefix
            repository, rest = "/".join(words[:3]), words[4:]
            folder, token = repositories.get(repository), gated.get(repository)
            if folder is None:
                self._refuse(401, "RepoNotFound", "Invalid username or password.")
            elif token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                known = "Authorization" in self.headers
                self._refuse(403 if known else 401, "GatedRepo", f"Access to model {repository} is restricted.")
            elif repository in forbidden:
                self.answer(403, X_Error_Message="Your token lacks a permission")
            elif rest[0] not in ("main", COMMIT):
                self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rest[0]}")
            elif api:
                self._list(folder, tree=words[3] == "tree")
            elif not (file := folder.joinpath(*rest[1:])).is_file():
                self._refuse(404, "EntryNotFound", "Entry not found")
            else:
                body = file.read_bytes()
                self.answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

        def _list(self, folder: Path, tree: bool) -> None:
            names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
            entries = [{"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": "0"} for name in names]
            whole = {"id": "x/y", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names], "tags": []}
            self.answer(200, json.dumps(entries if tree else whole).encode(), Content_Type="application/json")

        def _refuse(self, status: int, code: str, message: str) -> None:
            self.answer(status, b"", X_Error_Code=code, X_Error_Message=message)

    return Hub
