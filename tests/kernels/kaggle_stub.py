"""A server that answers Kaggle's real client as far as the kernels need it, on this machine only."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

REFUSALS = {
    "refuse": "Your notebook was refused for this test",
    "busy": "Maximum batch GPU session count of 2 reached.",
}
UPLOAD = {"token": "token", "createUrl": "http://localhost/upload"}


class KaggleStub:
    """Keeps what was pushed and uploaded; methods named as Kaggle's answer requests, an int is an error's status.

    `faults` holds, by method, what goes wrong with the next answers: a status, one of REFUSALS (in an answer of status
    200), `lost` (the connection is cut before anything is done) or `cut` (after it was done).
    """

    def __init__(self, execute, root: Path):
        self.execute, self.root = execute, root  # execute(request, folder of its output): whether it ended well
        self.pushed, self.statuses, self.faults = {}, {}, {}
        self.calls, self.uploads, self.submissions, self.datasets = [], [], [], []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"stub": self}))
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def environment(self) -> dict[str, str]:
        """Variables that send the client here, and everything else to a port where nothing listens."""
        home, here, nowhere = str(self.root), f"http://127.0.0.1:{self.server.server_port}", "http://127.0.0.1:9"
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_USERNAME": "alice", "KAGGLE_KEY": "secret-key",
            "KAGGLE_API_TOKEN": "", "KAGGLE_CONFIG_DIR": home, "HOME": home, "http_proxy": here,
            "https_proxy": nowhere, "no_proxy": "", "NO_PROXY": "",
        }  # fmt: skip

    def work(self, _seconds: float = 0) -> None:
        """Runs what was pushed: what Kaggle does while the launcher sleeps."""
        running = [slug for slug, status in self.statuses.items() if status == "RUNNING"]
        assert len(running) <= 2
        for slug in running:
            self.statuses[slug] = "COMPLETE" if self.execute(self.pushed[slug], self.output_of(slug)) else "ERROR"

    def output_of(self, slug: str) -> Path:
        return self.root / slug / "kaggle" / "working"

    def take_fault(self, method: str) -> int | str | None:
        self.calls.append(method)
        return self.faults[method].pop(0) if self.faults.get(method) else None

    def SaveKernel(self, request: dict) -> dict:
        slug = request["slug"].rpartition("/")[2]
        self.pushed[slug], self.statuses[slug] = request, "RUNNING"
        return {"ref": f"/code/{request['slug']}", "url": f"https://kaggle/{slug}", "versionNumber": 1}

    def GetKernelSessionStatus(self, request: dict) -> dict | int:
        return {"status": self.statuses[slug]} if (slug := request["kernelSlug"]) in self.statuses else 403

    def ListKernelSessionOutput(self, request: dict) -> dict:
        folder, url = self.output_of(request["kernelSlug"]), f"http://localhost/files/{request['kernelSlug']}"
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return {"files": [{"fileName": name, "url": f"{url}/{name}"} for name in names], "log": "[]"}

    def CreateSubmission(self, request: dict) -> dict:
        self.submissions.append(request["submissionDescription"])
        return {"message": "Successfully submitted to Carvana Image Masking Challenge", "ref": 1}

    def ListSubmissions(self, request: dict) -> dict:
        return {"submissions": [{"ref": 1, "description": description} for description in self.submissions]}

    def GetDatasetStatus(self, request: dict) -> dict | int:
        return {"status": "READY"} if request["datasetSlug"] in [made["slug"] for made in self.datasets] else 404

    def CreateDataset(self, request: dict) -> dict:
        self.datasets.append(request)
        return {"status": "ok", "url": "https://kaggle/dataset"}


class Handler(BaseHTTPRequestHandler):
    stub: KaggleStub
    log_message = lambda *_: None

    def do_POST(self):
        request, method = json.loads(self.body() or b"{}"), urlparse(self.path).path.rpartition("/")[2]
        fault = self.stub.take_fault(method)
        answer = {"error": REFUSALS[fault]} if fault in REFUSALS else fault
        if fault in (None, "cut"):
            answer = getattr(self.stub, method, lambda _: UPLOAD)(request)
        if fault in ("lost", "cut"):
            return self.connection.close()
        return self.send({"message": "no"}, answer) if isinstance(answer, int) else self.send(answer)

    def do_GET(self):
        _, _, slug, name = urlparse(self.path).path.split("/", 3)
        content = (self.stub.output_of(slug) / name).read_bytes()
        self.send(content[: len(content) // 2] if self.stub.take_fault("GET") else content)

    def do_PUT(self):
        self.stub.uploads.append(self.body())
        self.send({})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, content: dict | bytes, status: int = 200) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Mon, 01 Jun 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(content)
