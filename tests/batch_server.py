"""A server for batches: it echoes each prompt, and fails as a prompt says it is to.

Composed from llama.cpp's documented lists. A prompt is `NAME:FAULT`: the fault is planted the first two times that the
question is asked, or always, where its name ends in an exclamation mark.
"""

from __future__ import annotations

import json
import threading
from collections import Counter

from support import STREAM, delta, sse, usage

from phi4_http.loopback import ClientGone, Incoming, LoopbackServer, Responder

JSON = [("Content-Type", "application/json")]
TIMES = 2
"""How often a fault that passes is planted."""
FAULTS = ("fine", "cut", "reset", "closed", "500", "frame", "503", "refused!", "length!")
PASSES = ("fine", "cut", "reset", "closed", "500", "frame", "503")


class EchoServer(LoopbackServer):
    """Counts what it was asked and answered, and how many at once."""

    def __init__(self, port: int = 0, slots: int = 4, asked: Counter[str] | None = None) -> None:
        super().__init__(port=port)
        self.slots = slots
        self.asked: Counter[str] = Counter() if asked is None else asked  # servers may share one
        self.at_once = self.most = 0
        self.hold = threading.Event()
        self.hold.set()
        self._count = threading.Lock()

    def _answer(self, request: Incoming, responder: Responder) -> None:
        if request.path == "/v1/models":
            return self._whole(responder, {"data": [{"id": "phi-4-reasoning-plus"}]})
        if request.path == "/props":
            return self._whole(responder, {"total_slots": self.slots})
        if request.path != "/v1/chat/completions":
            return self._whole(responder, {"error": {"message": "no such thing"}}, 404)
        prompt = json.loads(request.body)["messages"][-1]["content"]
        with self._count:
            self.asked[prompt] += 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            fault = prompt.rpartition(":")[2]
            if not fault.endswith("!") and self.asked[prompt] > TIMES:
                fault = "fine"
        try:
            while not self.hold.wait(0.05):
                responder.wait(0)
            self._chat(prompt, fault, responder)
        except ClientGone:
            pass
        finally:
            with self._count:
                self.at_once -= 1
        return None

    def _chat(self, prompt: str, fault: str, responder: Responder) -> None:
        if fault in ("500", "503", "refused!"):
            status = {"500": 500, "503": 503, "refused!": 400}[fault]
            said = "Loading model" if fault == "503" else "it broke"
            return self._whole(responder, {"error": {"message": said}}, status)
        if fault == "closed":
            return responder.break_off(reset=True)
        responder.start(200, STREAM)
        responder.send(sse(delta(f"<think>{prompt}?</think>"), delta(prompt), done=False))
        if fault in ("cut", "reset"):
            return responder.break_off(reset=fault == "reset")
        if fault == "frame":
            responder.send(sse({"error": {"message": "the model has crashed"}}))
        else:
            finish = "length" if fault == "length!" else "stop"
            responder.send(sse(delta(finish=finish), usage(9, 4)))
        return responder.finish()

    @staticmethod
    def _whole(responder: Responder, answer: object, status: int = 200) -> None:
        data = json.dumps(answer).encode()
        responder.start(status, JSON, length=len(data))
        responder.send(data)
        responder.finish()
