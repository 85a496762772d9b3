"""A server that answers Kaggle's real client as far as the kernels need it, on this machine only."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

COMPLETE = "COMPLETE"


class KaggleStub:
    """What was pushed and uploaded, and what is to go wrong: `faults` holds, by method, the next answers' faults.

    A fault is a status code, `refuse` (an error in an answer of status 200), `busy`, `lost` (the connection is cut
    before anything is done) or `cut` (after it was done).
    """

    def __init__(self):
        self.pushed: dict[str, dict] = {}  # by slug
        self.outputs: dict[str, Path] = {}  # folder of each kernel's output
        self.statuses: dict[str, list[str]] = {}  # of each kernel, one a question; the last one stays
        self.faults: dict[str, list] = {}
        self.calls: list[str] = []
        self.uploads: list[bytes] = []
        self.submissions: list[dict] = []
        self.datasets: list[dict] = []
        self.on_push = lambda request: None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def environment(self, home: Path) -> dict[str, str]:
        """Sends the client here, and whatever else to a port where nothing listens."""
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_USERNAME": "alice", "KAGGLE_KEY": "secret-key",
            "KAGGLE_CONFIG_DIR": str(home), "HOME": str(home), "http_proxy": self.url, "HTTP_PROXY": self.url,
            "https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": "",
        }  # fmt: skip

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def save_kernel(self, request: dict) -> dict:
        slug = request["slug"].rpartition("/")[2]
        assert slug not in self.pushed, f"{slug} was pushed twice"
        self.pushed[slug] = request
        self.on_push(request)
        return {"ref": f"/code/{request['slug']}", "url": f"https://kaggle/{slug}", "versionNumber": 1}

    def get_kernel_session_status(self, request: dict) -> dict | int:
        slug = request["kernelSlug"]
        if slug not in self.pushed:
            return 403
        statuses = self.statuses.setdefault(slug, ["RUNNING", COMPLETE])
        return {"status": statuses.pop(0) if len(statuses) > 1 else statuses[0]}

    def list_kernel_session_output(self, request: dict) -> dict:
        folder = self.outputs[request["kernelSlug"]]
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        url = f"http://localhost/files/{request['kernelSlug']}"
        return {"files": [{"fileName": name, "url": f"{url}/{name}"} for name in names], "log": "[]"}

    def start_submission_upload(self, request: dict) -> dict:
        return {"token": "token-1", "createUrl": "http://localhost/upload/1"}

    def start_blob_upload(self, request: dict) -> dict:
        return {"token": f"token-{request['name']}", "createUrl": "http://localhost/upload/2"}

    def create_submission(self, request: dict) -> dict:
        self.submissions.append(request)
        return {"message": "Successfully submitted to Carvana Image Masking Challenge", "ref": 1}

    def get_submission_limits(self, request: dict) -> dict:
        return {"numAllowedNow": 4}

    def list_submissions(self, request: dict) -> dict:
        listed = [{"ref": 1, "description": one["submissionDescription"]} for one in self.submissions]
        return {"submissions": listed}

    def get_dataset_status(self, request: dict) -> dict | int:
        there = any(one["slug"] == request["datasetSlug"] for one in self.datasets)
        return {"status": "READY"} if there else 404

    def create_dataset(self, request: dict) -> dict:
        self.datasets.append(request)
        return {"status": "ok", "url": "https://kaggle/dataset"}

    def _handler(stub):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
                method = urlparse(self.path).path.rpartition("/")[2]
                stub.calls.append(method)
                fault = stub.faults.get(method, [None])
                fault = fault.pop(0) if fault else None
                if fault == "lost":
                    return self.connection.close()
                if fault == "refuse":
                    return self.answer({"error": "Your notebook was refused for this test"})
                if fault == "busy":
                    return self.answer({"error": "Maximum batch GPU session count of 2 reached."})
                if isinstance(fault, int):
                    return self.answer({"code": fault, "message": f"no: {fault}"}, fault)
                name = "".join(f"_{c.lower()}" if c.isupper() else c for c in method).lstrip("_")
                result = getattr(stub, name)(body)
                if fault == "cut":
                    return self.connection.close()
                if isinstance(result, int):
                    return self.answer({"code": result, "message": "not there"}, result)
                return self.answer(result)

            def do_GET(self):
                _, _, slug, name = urlparse(self.path).path.split("/", 3)
                content = (stub.outputs[slug] / name).read_bytes()
                if stub.faults.get("GET", []):
                    stub.faults["GET"].pop(0)
                    content = content[: len(content) // 2]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Last-Modified", "Mon, 01 Jun 2026 00:00:00 GMT")
                self.end_headers()
                self.wfile.write(content)

            def do_PUT(self):
                length = int(self.headers.get("Content-Length", 0))
                stub.calls.append("PUT")
                fault = stub.faults.get("PUT", [None])
                fault = fault.pop(0) if fault else None
                if fault == "cut":  # in the middle
                    self.rfile.read(min(length, 10))
                    return self.connection.close()
                content = self.rfile.read(length)
                if fault:
                    return self.answer({}, fault)
                stub.uploads.append(content)
                return self.answer({})

            def answer(self, content: dict, status: int = 200):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler
