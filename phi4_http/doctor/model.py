"""The looks at the model: is it there, loaded, long enough, once; what its template does; what it answers, how fast."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from ..errors import Phi4Error
from ..events import Reply
from ..flow import Events
from ..lmstudio.config import LoadConfig
from ..lmstudio.lifecycle import estimate
from ..phi4.asking import ask
from ..phi4.counting import LlamaCpp
from ..phi4.facts import CONTEXT_LENGTH, MODEL_KEY, SYSTEM_PROMPT, choose_model, is_phi4_reasoning_plus
from ..phi4.request import Phi
from ..phi4.template import Probe, probe, renderings
from ..server import Server
from ..wire.listings import ModelInfo
from .finding import Finding
from .machine import Machine

QUESTION = "What is 2 + 2?"
ANSWER_TOKENS = 256
"""Tokens of the one generation: enough to see a thought begin and the speed, even on a slow machine."""

_GIB = 2**30


def usable(server: Server, model: ModelInfo) -> bool:
    """Whether a request would load nothing. One that is not LM Studio and tells no state serves what it lists."""
    return bool(model.loaded) or (server.native is False and model.state is None)


def loaded_model(
    server: Server, models: Sequence[ModelInfo], wanted: int, machine: Machine, *, lms: bool
) -> Generator[Any, Any, ModelInfo | None]:
    """The Phi-4-reasoning-plus that would be asked; None where there is none."""
    mine = [model for model in models if is_phi4_reasoning_plus(model.id)]
    only = models[0] if server.native is False and len(models) == 1 else None
    name = choose_model(models)
    if name is None and only is not None:
        say = f"{only.id}: whether that is Phi-4-reasoning-plus can't be known by its name"
        yield [Finding("model", "unknown", "Phi-4-reasoning-plus", say)]
        mine, name = [only], only.id
    elif name is None:
        say = f"none of the {len(models)} models is it"
        advice = f"`phi4_http download {MODEL_KEY}`, or `lms get {MODEL_KEY}`"
        yield [Finding("model", "bad", "Phi-4-reasoning-plus", say, advice)]
        return None
    else:
        yield [Finding("model", "good", "Phi-4-reasoning-plus", ", ".join(model.id for model in mine))]
    model = next(one for one in mine if one.id == name)
    longest = model.max_context_length
    wanted = min(wanted, longest or wanted)
    if not usable(server, model):
        state = model.state or "its state is not told"
        yield [Finding("loaded", "bad", name, state, f"`phi4_http load {name} --context-length {wanted}` (or --fix)")]
        yield (yield from _memory(server, model, wanted, machine, lms=lms))
        return model
    yield [Finding("loaded", "good", name, "it is loaded" if model.loaded else "the server serves it")]
    yield _context(model, wanted)
    if (model.loaded_context_length or wanted) < wanted:
        yield (yield from _memory(server, model, wanted, machine, lms=lms))
    yield _copies(mine)
    return model


def _context(model: ModelInfo, wanted: int) -> list[Finding]:
    loaded, longest = model.loaded_context_length, model.max_context_length
    at_most = f"{longest:,} at most" if longest else "its longest is not told"
    if loaded is None:
        return [Finding("context", "unknown", "context length", f"untold ({at_most})", "state it when you ask")]
    say = f"{loaded:,} tokens ({at_most}, {wanted:,} wanted)"
    if loaded < wanted:
        advice = f"unload it, then `phi4_http load {model.id} --context-length {wanted}`: thoughts are long"
        return [Finding("context", "bad", "context length", say, advice)]
    if loaded > CONTEXT_LENGTH:
        advice = f"the model was trained for {CONTEXT_LENGTH:,}: more takes memory and is of no use"
        return [Finding("context", "note", "context length", say, advice)]
    return [Finding("context", "good", "context length", say)]


def _copies(models: Sequence[ModelInfo]) -> list[Finding]:
    """Every loaded instance, whichever of the lists told it. v0 lists a second copy as a model of its own."""
    names = [one.identifier for model in models for one in model.instances]
    names += [model.id for model in models if model.loaded and not model.instances]
    if len(names) < 2:
        return [Finding("copies", "good", "second copies", "none is loaded")]
    advice = f"`phi4_http unload {names[-1]}`, if it is not somebody else's"
    return [Finding("copies", "bad", "second copies", f"each takes its own memory: {', '.join(names)}", advice)]


def _memory(
    server: Server, model: ModelInfo, wanted: int, machine: Machine, *, lms: bool
) -> Generator[Any, Any, list[Finding]]:
    """What loading it would take, by LM Studio's own estimate."""
    looked = f"memory for {wanted:,} tokens of context"
    if not lms:
        return [Finding("memory", "unknown", looked, "only `lms` on the server's own machine estimates it")]
    try:
        guess = yield from estimate(server, model.id, LoadConfig(context_length=wanted))
    except Phi4Error as error:
        return [Finding("memory", "unknown", looked, f"no estimate: {error}")]
    say = f"about {guess.total_bytes / _GIB:.1f} GiB, {guess.gpu_bytes / _GIB:.1f} GiB of it on the GPU"
    if machine.memory:
        say += f"; this machine has {machine.memory / _GIB:.1f} GiB"
    if guess.fits:
        return [Finding("memory", "good", looked, say)]
    return [Finding("memory", "bad", looked, say, "ask for a shorter context, or take a smaller quantization")]


# --- of a loaded model ------------------------------------------------------------------------------------------------


def answers(server: Server, model: ModelInfo) -> Events[Finding]:
    """What its template does, and one short answer."""
    omit = False
    try:
        probed = yield from probe(server, model.id)
    except Phi4Error as error:
        yield [Finding("template", "unknown", "the chat template", f"it could not be tried: {error}")]
    else:
        finding = _template(probed)
        omit = probed.advice == "omit"
        yield [finding]
    if server.native is False:
        yield (yield from _prompt(server, model))
    else:
        say = "LM Studio tells it only to `lms log stream -s model --filter input`"
        yield [Finding("prompt", "unknown", "the prompt as rendered", say)]
    try:
        phi = Phi(server, model=model.id, system="auto" if omit else "send", parameters={"max_tokens": ANSWER_TOKENS})
        reply = yield from ask(phi, QUESTION)
    except Phi4Error as error:
        yield [Finding("answer", "bad", f"the question {QUESTION!r}", str(error), "look at LM Studio's log")]
        return
    yield [_thought(reply), _answer(reply)]


def _template(probed: Probe) -> Finding:
    looked = "the chat template"
    if probed.system is None:
        return Finding("template", "unknown", looked, "the server does not count prompts")
    own = ", and it puts in the trained prompt itself" if probed.own_prompt else ""
    say = f"a system message is {probed.system}{own}"
    if probed.user_kept is False:
        advice = "ask with `system='auto'`, or load another build of the model"
        return Finding("template", "bad", looked, "it loses the user's words where there is a system message", advice)
    if probed.system == "ignored" and not probed.own_prompt:
        advice = "ask with `system='auto'`, which puts the prompt before the question"
        return Finding("template", "bad", looked, f"{say}: the model does not see its prompt", advice)
    if probed.advice == "omit":
        return Finding("template", "note", looked, say, "ask with `system='auto'`: your instructions go another way")
    return Finding("template", "good", looked, say)


def _prompt(server: Server, model: ModelInfo) -> Generator[Any, Any, list[Finding]]:
    """The prompt as the server renders it, letter by letter against the trained one."""
    looked = "the prompt as rendered"
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": QUESTION}]
    rendered = yield from LlamaCpp(server, model.id).rendered(messages)
    if rendered is None:
        return [Finding("prompt", "unknown", looked, "this server does not tell it")]
    for name, trained in renderings(messages).items():
        if rendered in (trained, f"{trained}<think>", f"{trained}<think>\n"):
            bad = name == "ignored"
            say = f"letter for letter as known ({name})"
            return [Finding("prompt", "bad" if bad else "good", looked, say, _BUILD if bad else None)]
    trained = renderings(messages)["own turn"]
    at = next((at for at, (one, other) in enumerate(zip(rendered, trained, strict=False)) if one != other), None)
    at = min(len(rendered), len(trained)) if at is None else at
    say = f"from character {at} on it is {rendered[at : at + 40]!r}, the trained one {trained[at : at + 40]!r}"
    return [Finding("prompt", "bad", looked, say, _BUILD)]


_BUILD = "take a build of the model whose template is the published one"


def _thought(reply: Reply) -> Finding:
    looked = "where the thought arrives"
    if not reply.thought:
        advice = "see that the system prompt arrives, and that the build does not print its tags as empty text"
        return Finding("thought", "bad", looked, "nowhere: no thought was seen", advice)
    if reply.opener_swallowed:
        say = "before a closing tag alone: what opens it is swallowed"
        return Finding("thought", "note", looked, say, "ask with `opener='assumed'`, so that it streams as thought")
    where = "in the text, between tags" if "<think>" in reply.raw else "in a field of its own"
    return Finding("thought", "good", looked, where)


def _answer(reply: Reply) -> Finding:
    speed = reply.stats.tokens_per_second
    pace = f"{speed:.1f} tokens/s" if speed else "its speed is not told"
    pieces = reply.stats.time_to_first_token
    first = f", the first after {pieces:.1f} s" if pieces is not None else ""
    looked = f"the question {QUESTION!r}"
    if reply.solution.strip():
        return Finding("answer", "good", looked, f"answered: {pace}{first}")
    if reply.finish_reason == "length":
        return Finding("answer", "good", looked, f"it was still thinking after {ANSWER_TOKENS} tokens: {pace}{first}")
    return Finding(
        "answer", "bad", looked, f"no answer came ({reply.outcome})", "look at the reply with `phi4_http ask`"
    )
