"""A server on this machine that fails in all the ways servers do."""

import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers each path by its list of answers, one per request, the last one for ever; 404 without."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = defaultdict(list)
        self.requests = []
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def paths(self):
        return [path for path, _, _ in self.requests]

    def handle_error(self, request, client_address):
        """Clients that went away are what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        with server.lock:
            server.requests.append((self.path, time.monotonic(), dict(self.headers)))
            server.open += 1
            server.most_open = max(server.most_open, server.open)
            answers = server.answers[self.path]
            answer = (answers.pop(0) if len(answers) > 1 else answers[0]) if answers else 404
        try:
            self.answer(answer)
        finally:
            with server.lock:
                server.open -= 1

    def answer(self, answer):
        if isinstance(answer, int):
            self.send_error(answer)
        elif isinstance(answer, bytes):
            self.send(answer, len(answer))
        else:
            kind, value = answer
            if kind == "truncated":  # says how long it is, and ends before
                self.send(value[: len(value) // 2], len(value))
            elif kind == "unmarked":  # says nothing of its length
                self.send(value, None)
            elif kind == "stalls":
                self.send(value[:100], len(value))
                self.wfile.flush()
                self.server.released.wait(5)
            elif kind == "drips":
                self.send(b"", len(value))
                for index in range(len(value)):
                    self.wfile.write(value[index : index + 1])
                    self.wfile.flush()
                    if self.server.released.wait(0.02):
                        break
            elif kind == "raw":
                self.wfile.write(value)
            elif kind == "slow":
                time.sleep(0.05)
                self.send(value, len(value))
            else:
                self.send_response(kind)
                self.send_header("Retry-After", value)
                self.end_headers()

    def send(self, data, length):
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass
