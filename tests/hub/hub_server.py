"""A stand-in for the few endpoints of the hub that an upload uses, on this machine alone."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


COMMIT = "0" * 40


class HubServer:
    """
    Keeps what was committed in `files`, its branches in `branches` and the requests in `requests`.

    Args:
        refuse (`str`, *optional*): Start of a path whose requests are answered with status 400 and their own token.
        large (`tuple[str]`): Ends of names that go through LFS, in a request of their own.
    """

    def __init__(self, refuse=None, large=(".parquet",)):
        self.files, self.requests, self.branches, self.refuse, self.large = {}, [], [], refuse, large
        self.repositories, self.objects = set(), {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.reply(*hub.answer(self.path, self.body(), self.headers.get("Authorization")))

            def do_PUT(self):
                content = self.body()
                hub.objects[hashlib.sha256(content).hexdigest()] = content
                self.reply(200, {})

            def do_GET(self):
                self.reply(*hub.look(self.path, self.headers.get("Authorization")))

            do_HEAD = do_GET

            def body(self):
                return self.rfile.read(int(self.headers["Content-Length"]))

            def reply(self, status, answer):
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                if status == 404:
                    missing = "EntryNotFound" if "/resolve/" in self.path or "/tree/" in self.path else "RepoNotFound"
                    self.send_header("X-Error-Code", missing)
                if "/resolve/" in self.path:
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
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
            identity = f"{name['organization']}/{name['name']}"
            self.repositories.add(identity)
            return 200, {"url": f"{self.endpoint}/{'datasets/' if name.get('type') == 'dataset' else ''}{identity}"}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if "/preupload/" in path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if p.endswith(self.large) else "regular" for p in paths]
            files = [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in zip(paths, modes)]
            return 200, {"files": files}
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            link = {"upload": {"href": f"{self.endpoint}/lfs", "header": {}}}
            return 200, {"transfer": "basic", "objects": [{**one, "actions": link} for one in wanted]}
        if "/branch/" in path:
            self.branches.append(unquote(path.split("/branch/")[1]))
            return 200, {}
        if "/paths-info/" in path:
            wanted = json.loads(body)["paths"]
            return 200, [entry for entry in self.tree() if entry["path"] in wanted]
        if "/commit/" in path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                elif item["key"] == "lfsFile":
                    self.files[item["value"]["path"]] = self.objects[item["value"]["oid"]]
            commit = {"commitUrl": f"{self.endpoint}/owner/name/commit/{COMMIT}", "commitOid": COMMIT}
            pull = f"{self.endpoint}/datasets/owner/name/discussions/1" if "create_pr=1" in path else None
            return 200, commit | {"pullRequestUrl": pull}
        return 404, {"error": f"no {path} here"}

    def look(self, path, authorization):
        """What is read: a repository, the list of its files, one file."""
        self.requests.append((path, b"", authorization))
        if self.refuse and path.startswith(self.refuse):
            return 400, {"error": f"refused {authorization}"}
        path = unquote(urlsplit(path).path)
        if "/resolve/" in path:
            name = path.split("/resolve/")[1].split("/", 1)[1]
            return (200, self.files[name]) if name in self.files else (404, {"error": "no such file"})
        identity = "/".join(path.removeprefix("/api/datasets/").split("/")[:2])
        if not path.startswith("/api/datasets/") or identity not in self.repositories:
            return 404, {"error": f"no {path} here"}
        if "/tree/" in path:
            folder = path.split("/tree/")[1].partition("/")[2]
            found = [entry for entry in self.tree() if not folder or entry["path"].startswith(f"{folder}/")]
            return (200, found) if found or not folder else (404, {"error": "no such folder"})
        return 200, {"id": identity, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}

    def tree(self):
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.files.items()
        ]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()
