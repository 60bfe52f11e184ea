"""A stand-in for the few endpoints of the hub that an upload uses, on this machine alone."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer:
    """
    Keeps what was committed in `files` and the requests in `requests`.

    Args:
        refuse (`str`, *optional*): Start of a path whose requests are answered with status 400 and their own token.
    """

    def __init__(self, refuse=None):
        self.files, self.requests, self.refuse = {}, [], refuse
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = hub.answer(self.path, body, self.headers.get("Authorization"))
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, path, body, authorization):
        self.requests.append((path, body, authorization))
        if self.refuse and path.startswith(self.refuse):
            return 400, {"error": f"refused {authorization}"}
        if path == "/api/repos/create":
            name = json.loads(body)
            return 200, {"url": f"{self.endpoint}/{name['organization']}/{name['name']}"}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if "/preupload/" in path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
        if "/commit/" in path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            commit = {"commitUrl": f"{self.endpoint}/owner/name/commit/{'0' * 40}", "commitOid": "0" * 40}
            return 200, commit | {"pullRequestUrl": None}
        return 404, {"error": f"no {path} here"}

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()
