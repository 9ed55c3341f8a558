"""The server: the texts of offline generation, a status for whatever is wrong, and an end that loses no request."""

import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fixtures import shop_examples, tiny_model, tiny_tokenizer

from course.lab.evaluation import generate
from course.lab.serving import AdapterServer
from course.lora import LoRAConfig, add_adapter_bank, add_lora, lora_state_dict

NAMES = ("first", "second", "third")
PROMPTS = [example["prompt"][: 12 + 5 * i] for i, example in enumerate(shop_examples(9))]  # of many lengths


def adapted(name):
    """A tiny model with one adapter, strong enough that no two write the same."""
    model = add_lora(tiny_model(), LoRAConfig(rank=2 + NAMES.index(name), alpha=8))
    dice = torch.Generator().manual_seed(NAMES.index(name))
    for tensor in lora_state_dict(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=dice) / 3)
    return model.eval()


@pytest.fixture(scope="module")
def alone():
    """Adapter -> its model for offline generation; None is the base."""
    return {name: adapted(name) for name in NAMES} | {None: tiny_model()}


@pytest.fixture
def server(alone):
    """A server that is running, whose model writes only while `server.may_write` is set, as it is at first."""
    configs = {name: LoRAConfig(rank=2 + i, alpha=8) for i, name in enumerate(NAMES)}
    model = add_adapter_bank(tiny_model(), {name: (configs[name], lora_state_dict(alone[name])) for name in NAMES})
    before, made = {*threading.enumerate()}, AdapterServer(model, tiny_tokenizer(), max_waiting=6)
    made.may_write, write = threading.Event(), model.generate
    made.may_write.set()
    model.generate = lambda *inputs, **settings: made.may_write.wait() and write(*inputs, **settings)
    with made:
        yield made
        made.may_write.set()
    assert not {thread.name for thread in {*threading.enumerate()} - before} - {"tqdm_monitor"}  # tqdm's own


def ask(server, body, path="/generate", headers=None):
    """(status, answer, headers) of a POST; a body of bytes goes as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers
    finally:
        connection.close()


def get(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def waiting(server, count):
    until(lambda: len(server.waiting) == count)


def hold(server, pool):
    """Let one request reach the model, which then waits: whatever comes next has to wait, too."""
    server.may_write.clear()
    held = pool.submit(ask, server, {"prompt": "Order", "max_new_tokens": 1})
    until(lambda: server.threads[0].is_alive() and not server.waiting and held.running())
    time.sleep(0.05)
    waiting(server, 0)
    return held


def offline(alone, name, prompt, count):
    return generate(alone[name], tiny_tokenizer(), [prompt], count, progress=False)[0]


def test_concurrent_requests_get_what_their_adapter_writes_alone(server, alone):
    wanted = [(prompt, [*NAMES, None][i % 4], 4 + 3 * (i % 3)) for i, prompt in enumerate(PROMPTS)]
    bodies = [{"prompt": p, "adapter": name, "max_new_tokens": count} for p, name, count in wanted]
    server.max_waiting = 99
    with ThreadPoolExecutor(16) as pool:
        held = hold(server, pool)
        answers = [pool.submit(ask, server, body) for body in bodies]
        waiting(server, len(bodies))
        server.may_write.set()
        answers = [answer.result() for answer in answers]
        assert held.result()[0] == 200
    for (prompt, name, count), (status, answer, _) in zip(wanted, answers, strict=True):
        assert status == 200 and answer["batch"] == len(bodies) and answer["tokens"] <= count
        assert answer["text"] == offline(alone, name, prompt, count)
    texts = {offline(alone, name, PROMPTS[0], 8) for name in [*NAMES, None]}
    assert len(texts) == 4, "the adapters write different texts, else the test shows nothing"


def test_a_batch_is_no_larger_than_it_may_be(server):
    server.max_waiting, server.batch_size = 99, 2
    with ThreadPoolExecutor(16) as pool:
        hold(server, pool)
        answers = [pool.submit(ask, server, {"prompt": p, "max_new_tokens": 1}) for p in PROMPTS[:5]]
        waiting(server, 5)
        server.may_write.set()
        assert sorted(answer.result()[1]["batch"] for answer in answers) == [1, 2, 2, 2, 2]


def test_requests_that_do_not_fit_together_go_one_after_the_other(server, alone):
    server.context, long, short = 48, "order " * 12, "Order"  # together they would ask for more than the context
    count = server.context - len(tiny_tokenizer()(long)["input_ids"]) + 1
    with ThreadPoolExecutor(4) as pool:
        hold(server, pool)
        first = pool.submit(ask, server, {"prompt": long, "max_new_tokens": 2})
        waiting(server, 1)
        second = pool.submit(ask, server, {"prompt": short, "max_new_tokens": count})
        waiting(server, 2)
        server.may_write.set()
        assert [one.result()[1]["batch"] for one in (first, second)] == [1, 1]
    assert second.result()[1]["text"] == offline(alone, None, short, count)


def test_the_defaults_are_the_base_and_64_tokens(server, alone):
    status, answer, _ = ask(server, {"prompt": PROMPTS[3]})
    assert (status, answer["text"]) == (200, offline(alone, None, PROMPTS[3], 64))


def test_health_and_adapters(server):
    assert get(server, "/health") == (200, {"status": "ok", "waiting": 0})
    assert get(server, "/adapters") == (200, {"adapters": list(NAMES)})
    assert get(server, "/nothing")[0] == 404
    assert server.address == f"http://127.0.0.1:{server.server_port}"
    assert server.server_address[0] == "127.0.0.1"


WRONG = [
    (400, b"{", "JSON object"),
    (400, b"\xff", "JSON object"),
    (400, b"[1]", "JSON object"),
    (400, b'"prompt"', "JSON object"),
    (400, b'[["prompt", "x"]]', "JSON object"),
    (400, b"[" * 100_000, "JSON object"),
    (400, b'{"prompt": "\\ud800"}', "Unicode"),
    (400, {}, "prompt"),
    (400, {"prompt": ""}, "prompt"),
    (400, {"prompt": None}, "prompt"),
    (400, {"prompt": ["x"]}, "prompt"),
    (400, {"prompt": "x", "adapter": 1}, "adapter"),
    (400, {"prompt": "x", "max_new_tokens": 0}, "max_new_tokens"),
    (400, {"prompt": "x", "max_new_tokens": True}, "max_new_tokens"),
    (400, {"prompt": "x", "max_new_tokens": 2.0}, "max_new_tokens"),
    (400, {"prompt": "x", "temperature": 1}, "temperature"),
    (404, {"prompt": "x", "adapter": "fourth"}, "'fourth'"),
    (404, {"prompt": "x", "adapter": ""}, "''"),
    (404, {"prompt": "x", "adapter": "\ud800"}, "adapter"),
    (413, {"prompt": "x", "max_new_tokens": 10**9}, "256 fit"),
    (413, {"prompt": "x " * 300}, "256 fit"),
    (413, b" " * 1_000_001, "Content-Length"),
]


@pytest.mark.parametrize(("status", "body", "said"), WRONG)
def test_what_is_wrong_is_told(server, status, body, said):
    told, answer, _ = ask(server, body)
    assert told == status and said in answer["error"]
    assert ask(server, {"prompt": "x", "max_new_tokens": 1})[0] == 200, "and the next one is served"


@pytest.mark.parametrize(("path", "headers", "status"), [("/", {}, 404), ("/generate", {"Content-Length": "²"}, 411)])
def test_another_path_and_a_length_that_is_none(server, path, headers, status):
    assert ask(server, {"prompt": "x"}, path, headers)[0] == status


def test_a_full_queue_says_when_to_come_again(server):
    with ThreadPoolExecutor(16) as pool:
        hold(server, pool)
        answers = [pool.submit(ask, server, {"prompt": "x", "max_new_tokens": 1}) for _ in range(6)]
        waiting(server, 6)
        status, answer, headers = ask(server, {"prompt": "x"})
        assert status == 503 and headers["Retry-After"] == "1" and "6 requests wait" in answer["error"]
        assert get(server, "/health") == (200, {"status": "ok", "waiting": 6})
        server.may_write.set()
        assert [answer.result()[0] for answer in answers] == [200] * 6


def test_when_it_stops_those_that_wait_are_answered_and_new_ones_are_refused(server, alone):
    with ThreadPoolExecutor(16) as pool:
        hold(server, pool)
        answers = [
            pool.submit(ask, server, {"prompt": p, "adapter": "second", "max_new_tokens": 5}) for p in PROMPTS[:4]
        ]
        waiting(server, 4)
        stop = threading.Thread(target=server.stop)
        stop.start()
        until(lambda: server.stopping)
        assert ask(server, {"prompt": "x"})[0] == 503
        server.may_write.set()
        texts = [answer.result()[1]["text"] for answer in answers]
        stop.join()
    assert texts == [offline(alone, "second", p, 5) for p in PROMPTS[:4]]
    with pytest.raises(ConnectionRefusedError):
        ask(server, {"prompt": "x"})


def test_a_client_that_has_gone_disturbs_nobody(server, alone, capfd):
    body = json.dumps({"prompt": PROMPTS[1], "adapter": "first", "max_new_tokens": 5}).encode()
    with ThreadPoolExecutor(4) as pool:
        hold(server, pool)
        gone = socket.create_connection(("127.0.0.1", server.server_port))
        gone.sendall(b"POST /generate HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        waiting(server, 1)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closed with a reset
        gone.close()
        here = pool.submit(ask, server, json.loads(body))
        waiting(server, 2)
        server.may_write.set()
        assert here.result()[1] == {"text": offline(alone, "first", PROMPTS[1], 5), "tokens": 5, "batch": 2}
    silent = socket.create_connection(("127.0.0.1", server.server_port))
    silent.close()  # without a word
    assert ask(server, {"prompt": "x", "max_new_tokens": 1})[0] == 200
    assert capfd.readouterr().err == ""


def test_a_failing_model_is_told_and_the_next_batch_is_served(server):
    write = server.model.generate

    def fail(*inputs, **settings):
        server.model.generate = write
        raise MemoryError

    server.model.generate = fail
    status, answer, _ = ask(server, {"prompt": "x"})
    assert (status, answer) == (500, {"error": "MemoryError while the model wrote"})
    assert ask(server, {"prompt": "x", "max_new_tokens": 1})[0] == 200
