"""Pictures to a `mosaic-edge serve`, and a question: python examples/http_client.py URL TOKEN a.jpg b.jpg

The standard library is enough; docs/serve.md has every route, and the same with the openai client.
"""

import json
import sys
from pathlib import Path
from urllib.request import Request, urlopen


class Server:
    def __init__(self, url, token):
        self.url, self.headers = url.rstrip("/"), {"Authorization": f"Bearer {token}"}

    def call(self, method, path, body=None):
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        with urlopen(Request(f"{self.url}/v1{path}", data, self.headers, method=method)) as response:
            return json.load(response)

    def stream(self, path, body):
        """The pieces of an answer as they are made, then what was said of it."""
        data = json.dumps({**body, "stream": True}).encode()
        with urlopen(Request(f"{self.url}/v1{path}", data, self.headers, method="POST")) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])


def main(url, token, *pictures):
    server = Server(url, token)
    session = server.call("POST", "/sessions", {"memory": "2MiB"})["id"]
    try:
        for second, picture in enumerate(pictures):
            server.call("PUT", f"/sessions/{session}/frames?pts={second}", Path(picture).read_bytes())
        question = {"question": "what colour was the ball ?", "max_tokens": 32}
        for event in server.stream(f"/sessions/{session}/questions", question):
            print(event["text"] if "text" in event else f"\nseen: {event['evidence']}", end="", flush=True)
    finally:
        server.call("DELETE", f"/sessions/{session}")


if __name__ == "__main__":
    main(*sys.argv[1:])
