"""A Hugging Face hub of one data set or model on this machine: the few answers its client asks for."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Serves `files` (bytes by path) as `name` at revision `branch`, which is the commit `commit`.

    `asked` lists the paths of files sent; `broken` those whose sending breaks off; `older` commits are known by name.
    """

    def __init__(self, name, branch, commit, files, kind="datasets"):
        self.name, self.branch, self.commit, self.files, self.kind = name, branch, commit, files, kind
        self.asked, self.broken, self.older = [], set(), set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body):
        path = unquote(urlsplit(self.path).path)
        info = f"/api/{self.hub.kind}/{self.hub.name}/revision/"
        resolve = f"/{'datasets/' if self.hub.kind == 'datasets' else ''}{self.hub.name}/resolve/"
        if path.startswith(info) and path.removeprefix(info) in (self.hub.branch, self.hub.commit, *self.hub.older):
            commit = self.hub.commit if path.removeprefix(info) == self.hub.branch else path.removeprefix(info)
            siblings = [{"rfilename": name} for name in self.hub.files]
            about = {"_id": "1", "id": self.hub.name, "sha": commit, "siblings": siblings, "tags": [], "downloads": 0}
            self._send(
                json.dumps(about | {"private": False, "likes": 0}).encode(), {"Content-Type": "application/json"}, with_body
            )
            return
        if path == f"/api/{self.hub.kind}/{self.hub.name}/tree/{self.hub.commit}":
            listed = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in self.hub.files.items()]
            self._send(json.dumps(listed).encode(), {"Content-Type": "application/json"}, with_body)
            return
        name = path.removeprefix(f"{resolve}{self.hub.commit}/")
        if name not in self.hub.files:
            self.send_error(404)
            return
        raw = self.hub.files[name]
        headers = {"ETag": f'"{hashlib.sha256(raw).hexdigest()}"', "X-Repo-Commit": self.hub.commit}
        if with_body:
            self.hub.asked.append(name)
            if name in self.hub.broken:
                self.send_error(403)
                return
        self._send(raw, headers, with_body)

    def _send(self, raw, headers, with_body):
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(raw))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(raw)

    def log_message(self, *_):
        pass
