"""A stand-in for `axllm serve`: speaks its protocol on loopback and refuses a request of another form. No model."""

import base64
import http.server
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.board import runtime

PNG = "data:image/png;base64,"


@dataclass
class StandIn:
    """A server to be used as a context.

    Attributes:
        reply: from the frames' bytes and the question to the answer.
        model: the id under which it serves.
        streams: whether it can stream; if not, it refuses to.
        requests: the requests that came, for a test to look at.
    """

    reply: Callable[[list[bytes], str], str]
    model: str = "tiny"
    streams: bool = True
    usage: bool = False
    requests: list[dict] = field(default_factory=list)

    def __enter__(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: dict) -> str:
        self.requests.append(request)
        frames, question = read_request(request, self.model)
        return self.reply(frames, question)


def read_request(request: dict, model: str) -> tuple[list[bytes], str]:
    """The frames and the question of a request, as the runtime reads it.

    Raises:
        ValueError: it is of another form than the runtime takes.
    """
    if request.keys() != {"model", "messages", "max_tokens", "stream"} or request["model"] != model:
        raise ValueError(f"keys {sorted(request)}, model {request.get('model')!r}")
    if type(request["max_tokens"]) is not int or request["max_tokens"] < 1:
        raise ValueError("max_tokens")
    (message,) = request["messages"]
    *media, text = message["content"]
    if message["role"] != "user" or text["type"] != "text" or not media:
        raise ValueError("expected one user message: media, then text")
    if any(part["type"] != "video_url" for part in media):
        raise ValueError("mixed media types in a single message")
    urls = [part["video_url"]["url"] for part in media]
    if len(urls) == 1 and urls[0].startswith("video:"):
        directory = Path(urls[0].removeprefix("video:"))
        frames = [path.read_bytes() for path in runtime.frame_files(directory)]
    elif all(url.startswith(PNG) for url in urls):
        frames = [base64.b64decode(url.removeprefix(PNG), validate=True) for url in urls]
    else:
        raise ValueError("expected one directory, or pictures")
    if not frames:
        raise ValueError("no video frames loaded")
    return frames, text["text"]


def _handler(stand_in: StandIn) -> type:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            if self.path != "/v1/models":
                return self.send_json(404, {"error": {"message": "no such path"}})
            self.send_json(200, {"object": "list", "data": [{"id": stand_in.model, "object": "model"}]})

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                return self.send_json(404, {"error": {"message": "no such path"}})
            if request.get("stream") and not stand_in.streams:
                return self.send_json(400, {"error": {"message": "stream is not supported"}})
            try:
                text = stand_in.answer(request)
            except (ValueError, KeyError, TypeError, OSError) as error:
                return self.send_json(400, {"error": {"message": f"bad request: {error}"}})
            if not request["stream"]:
                return self.send_json(200, {"choices": [{"message": {"role": "assistant", "content": text}}]})
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for piece in text:
                self.send_event({"choices": [{"index": 0, "delta": {"content": piece}}]})
            self.send_event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            if stand_in.usage:
                self.send_event({"choices": [], "usage": {"completion_tokens": 7}})
            self.wfile.write(b"data: [DONE]\n\n")

        def send_event(self, value: dict):
            self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

        def send_json(self, status: int, value: dict):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
