"""Buckets on this machine, behind servers that speak the protocols of those that are not."""

import os
import re
from contextlib import contextmanager
from unittest import mock
from urllib import parse

import boto3
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from moto.server import ThreadedMotoServer

NAME = "bucket"


class _Handler(emulator.RequestHandler):
    """With the conditions on an object's generation, which TensorStore asks for."""

    generation = None

    def do_GET(self):
        if self._holds():
            super().do_GET()

    def do_POST(self):
        if self._holds():
            super().do_POST()

    def do_DELETE(self):
        if self._holds():
            super().do_DELETE()

    def _holds(self):
        """Whether the request's conditions are met; if not, it is answered."""
        url = parse.urlsplit(self.path)
        query = parse.parse_qs(url.query)
        match = re.search(r"/o/(.+)$", url.path)
        name = parse.unquote(match[1]) if match else query.get("name", [""])[0]
        try:
            now = self.storage.get_file_obj(NAME, name)["generation"]
        except NotFound:
            now = "0"
        if query.get("alt") == ["media"]:
            self.generation = now
        status = None
        if query.get("ifGenerationMatch", [now]) != [now]:
            status = 412
        elif query.get("ifGenerationNotMatch") == [now]:
            status = 304
        if status is None:
            return True
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        self.end_headers()
        return False

    def send_response(self, code, message=None):
        super().send_response(code, message)
        if self.generation:
            self.send_header("x-goog-generation", self.generation)


@contextmanager
def google():
    """A bucket `NAME` of Google Cloud Storage, for this process and those that it starts."""
    with mock.patch.object(emulator, "RequestHandler", _Handler):
        server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=NAME)
        server.start()
    url = f"http://127.0.0.1:{server._api._httpd.server_port}"
    found = {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs
        "TENSORSTORE_GCS_HTTP_URL": url,  # Orbax
    }
    try:
        with mock.patch.dict(os.environ, found):
            yield
    finally:
        server.stop()


@contextmanager
def amazon(**objects):
    """A bucket `NAME` of S3 with these objects, for GDAL in this process."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    found = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_S3_ENDPOINT": f"{host}:{port}",
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }
    try:
        with mock.patch.dict(os.environ, found):
            client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
            client.create_bucket(Bucket=NAME)
            for name, content in objects.items():
                client.put_object(Bucket=NAME, Key=name, Body=content)
            yield
    finally:
        server.stop()
