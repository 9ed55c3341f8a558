"""A small server for one base model and many adapters: each request names its own, and those that wait go together.

POST /generate {"prompt": "…", "adapter": "name", "max_new_tokens": 64} -> {"text": "…", "tokens": 17, "batch": 3}
GET /adapters, GET /health. An adapter of null is the base alone; batch is how many requests went together.
"""

import json
import sys
from collections import deque, namedtuple
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread

import torch

from course.lab.data import encode_prompt
from course.lab.evaluation import write
from course.lab.losses import context_length
from course.lora import adapter_rows

FIELDS = {  # name -> what is accepted, as a test and in words
    "prompt": (lambda value: isinstance(value, str) and value != "", "a text that is not empty"),
    "adapter": (lambda value: value is None or isinstance(value, str), "the name of an adapter, or null"),
    "max_new_tokens": (lambda value: type(value) is int and value > 0, "a whole number above 0"),
}
Request = namedtuple("Request", "ids adapter max_new_tokens answer")  # the prompt's tokens, ..., a Future of the answer


class Refused(Exception):
    """Why a request is not served: an HTTP status and a sentence."""


class Handler(BaseHTTPRequestHandler):
    """One connection, which has a thread of its own; `self.server` is the AdapterServer."""

    timeout = 10  # seconds until a silent client is given up
    log_message = lambda *arguments: None  # noqa: E731  (a line on stderr for each request otherwise)

    def do_GET(self):
        names = [name for name in self.server.model.adapter_names if name is not None]
        known = {"/health": {"status": "ok", "waiting": len(self.server.waiting)}, "/adapters": {"adapters": names}}
        self.tell(*((200, known[self.path]) if self.path in known else (404, {"error": f"there is {[*known]}"})))

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        try:
            if self.path != "/generate":
                raise Refused(404, "POST goes to /generate")
            if not (length.isdecimal() and len(length) < 7):
                if length.isdecimal():  # a client that still writes when we hang up may not see the answer
                    self.rfile.read(min(int(length[:8]), 2**24))
                raise Refused(413 if length.isdecimal() else 411, "Content-Length: less than 1000000 is accepted")
            self.tell(200, self.server.generate(self.rfile.read(int(length))))
        except Refused as refused:
            self.tell(refused.args[0], {"error": refused.args[1]})

    def tell(self, status, answer):
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status == 503:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(text)


class AdapterServer(ThreadingHTTPServer):
    """Serve a model that `add_adapter_bank` has prepared, to this machine alone, greedily: so answers can be checked.

    One thread computes. It takes the requests that wait, up to batch_size, and runs them as one batch in which every
    row has its own adapter. Nobody else may use the model meanwhile. port 0: any that is free, see `address`.
    """

    daemon_threads = False  # so that server_close waits for them
    request_queue_size = 128  # connections that wait to be accepted; 5 otherwise

    def __init__(self, model, tokenizer, batch_size=32, max_waiting=64, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.tokenizer, self.context = model.eval(), tokenizer, context_length(model) or sys.maxsize
        self.batch_size, self.max_waiting, self.waiting = batch_size, max_waiting, deque()
        self.changed, self.stopping, self.address = Condition(), False, f"http://127.0.0.1:{self.server_port}"
        self.threads = [Thread(target=self.work), Thread(target=self.serve_forever, args=(0.05,))]

    def start(self):
        for thread in self.threads:
            thread.start()
        return self

    __enter__ = start

    def stop(self, *error):
        """Refuse what comes from now on, answer all that waits, and end every thread."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        self.threads[0].join()
        self.shutdown()
        self.threads[1].join()
        self.server_close()  # waits for the threads that still write an answer

    __exit__ = stop

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client that has gone is no error
            super().handle_error(request, client_address)

    def generate(self, body):
        """The answer to the bytes of a request, once it is computed. Refused says why there is none."""
        request = self.checked(body)
        with self.changed:
            if self.stopping or len(self.waiting) >= self.max_waiting:
                raise Refused(503, "the server is stopping" if self.stopping else f"{self.max_waiting} requests wait")
            self.waiting.append(request)
            self.changed.notify_all()
        return request.answer.result()

    def checked(self, body):
        """The Request in a body."""
        try:
            told = {"adapter": None, "max_new_tokens": 64} | json.loads(body)
            wrong = [name for name in FIELDS | told if name not in FIELDS or not FIELDS[name][0](told.get(name))]
            ids = [] if wrong else encode_prompt(told["prompt"], self.tokenizer)
        except (ValueError, TypeError, RecursionError):  # no JSON, no object, or no text that can be encoded
            raise Refused(400, "a JSON object is accepted, its texts in valid Unicode") from None
        if wrong:
            accepted = "; ".join(f"{name}, {words}" for name, (_, words) in FIELDS.items())
            raise Refused(400, f"{', '.join(wrong)}: not known, wrong or missing; accepted are {accepted}")
        request = Request(ids, told["adapter"], told["max_new_tokens"], Future())
        if request.adapter not in self.model.adapter_names:
            raise Refused(404, f"no adapter is called {request.adapter!r}; GET /adapters lists them")
        if not ids or not self.fit([request]):
            raise Refused(413, f"{len(ids)} tokens and {told['max_new_tokens']} new ones; {self.context} fit in all")
        return request

    def fit(self, requests):
        """Whether they can share a batch: rows are padded to the longest prompt and go on for the longest answer."""
        return max(len(r.ids) for r in requests) + max(r.max_new_tokens for r in requests) <= self.context

    def work(self):
        while batch := self.next_batch():
            try:
                for request, answer in zip(batch, [*self.answers(batch)], strict=True):
                    request.answer.set_result(answer)
            except Exception as error:  # whatever goes wrong with one batch, the next one is served
                for request in batch:
                    request.answer.set_exception(Refused(500, f"{type(error).__name__} while the model wrote"))

    def next_batch(self):
        """Those that have waited longest and fit together; none when the server stops and nothing waits."""
        batch = []
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.stopping)
            while self.waiting and len(batch) < self.batch_size and self.fit([*batch, self.waiting[0]]):
                batch.append(self.waiting.popleft())
        return batch

    @torch.no_grad()
    def answers(self, batch):
        """What each request gets, from one call of the model: padded on the left, every row cut at its own end."""
        most, eos = max(r.max_new_tokens for r in batch), self.tokenizer.eos_token_id
        with adapter_rows(self.model, [r.adapter for r in batch]):
            written = write(self.model, self.tokenizer, [r.ids for r in batch], most).tolist()
        for request, row in zip(batch, written, strict=True):
            row = [*row, eos][: [*row, eos].index(eos)][: request.max_new_tokens]
            text = self.tokenizer.decode(row, skip_special_tokens=True)
            yield {"text": text, "tokens": len(row), "batch": len(batch)}
