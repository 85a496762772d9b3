"""A server that answers Kaggle's real client as far as the kernels need it, on this machine only."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

REFUSALS = {
    "refuse": "Your notebook was refused for this test",
    "busy": "Maximum batch GPU session count of 2 reached.",
    "quota": "Maximum weekly GPU quota of 30.00 hours reached.",
}
LOG = ["epoch 1", "epoch 2"]
UPLOAD = {"token": "token", "createUrl": "http://localhost/upload"}


class KaggleStub:
    """Keeps what was pushed and uploaded; methods named as Kaggle's answer requests, an int is an error's status.

    `faults` holds, by method, what goes wrong with the next answers: a status (also of the JSON, if text), one of
    REFUSALS (in an answer of status 200), `lost` (the connection is cut before anything is done), `cut` (after it was).
    """

    def __init__(self, execute, root: Path):
        self.execute, self.root = execute, root  # execute(request, folder of its output): whether it ended well
        self.pushed, self.statuses, self.faults = {}, {}, {}
        self.calls, self.uploads, self.submissions, self.datasets = [], [], [], []
        self.now, self.hours_left, self.submissions_left, self.invalid = 0, 12.5, 3, {}
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

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def work(self, _seconds: float = 0) -> None:
        """Runs what was pushed, and scores: what Kaggle does while the launcher sleeps."""
        for submission in self.submissions:
            submission |= {"status": "COMPLETE", "publicScore": "0.99710", "privateScore": "0.99680"}
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
        self.pushed[slug] = request
        if request.get("kernelExecutionType") != "QUICK_SAVE":
            self.statuses[slug] = "RUNNING"
        answer = {"ref": f"/code/{request['slug']}", "url": f"https://kaggle/{slug}", "versionNumber": 1}
        return answer | self.invalid

    def GetKernelSessionStatus(self, request: dict) -> dict | int:
        return {"status": self.statuses[slug]} if (slug := request["kernelSlug"]) in self.statuses else 403

    def ListKernelSessionOutput(self, request: dict) -> dict:
        folder, url = self.output_of(request["kernelSlug"]), f"http://localhost/files/{request['kernelSlug']}"
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return {"files": [{"fileName": name, "url": f"{url}/{name}"} for name in names], "log": "[]"}

    def GetAcceleratorQuotaStatistics(self, request: dict) -> dict:
        gpu = {"timeUsed": f"{3600 * (30 - self.hours_left):.0f}s", "totalTimeAllowed": "108000s"}
        return {"quotaRefreshTime": "2026-10-03T00:00:00Z", "gpuQuota": gpu}

    def GetSubmissionLimits(self, request: dict) -> dict:
        return {"numToday": 2, "numTotal": 9, "numAllowedNow": self.submissions_left}

    def CreateSubmission(self, request: dict) -> dict:
        self.submissions.insert(0, {"ref": 1, "description": request["submissionDescription"], "status": "PENDING"})
        return {"message": "Successfully submitted to Carvana Image Masking Challenge", "ref": 1}

    def ListSubmissions(self, request: dict) -> dict:
        return {"submissions": self.submissions}

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
        if isinstance(answer, str):
            return self.send({"message": "no", "code": int(answer)}, int(answer))
        return self.send({"message": "no"}, answer) if isinstance(answer, int) else self.send(answer)

    def do_GET(self):
        if "/logs/stream/" in self.path:
            events = "".join(f"data: {event}\n\n" for event in (*LOG, "END_OF_LOG")).encode()
            return self.send(events, self.stub.take_fault("logs") or 200, "text/event-stream")
        _, _, slug, name = urlparse(self.path).path.split("/", 3)
        content = (self.stub.output_of(slug) / name).read_bytes()
        self.send(content[: len(content) // 2] if self.stub.take_fault("GET") else content)

    def do_PUT(self):
        self.stub.uploads.append(self.body())
        self.send({})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, content: dict | bytes, status: int = 200, kind: str = "application/json") -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Mon, 01 Jun 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(content)
