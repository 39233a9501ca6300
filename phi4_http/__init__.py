"""A raw-HTTP client for LM Studio and Phi-4-reasoning-plus.

    from phi4_http import Phi4

    with Phi4() as phi:
        print(phi.ask("How many r are in strawberry?").solution)

The public names are found when they are first used, so that importing a part does not import httpx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import found_late, homes

if TYPE_CHECKING:
    from .api import Api as Api
    from .arrived import Arrived as Arrived
    from .batch.answered import BatchAnswer as BatchAnswer
    from .batch.answered import BatchProgress as BatchProgress
    from .batch.lines import BatchQuestion as BatchQuestion
    from .client.aio import AsyncChat as AsyncChat
    from .client.aio import AsyncLMStudio as AsyncLMStudio
    from .client.aio import AsyncPhi4 as AsyncPhi4
    from .client.batched import AsyncBatch as AsyncBatch
    from .client.batched import Batch as Batch
    from .client.blocking import Chat as Chat
    from .client.blocking import LMStudio as LMStudio
    from .client.blocking import Phi4 as Phi4
    from .client.manager import AsyncLease as AsyncLease
    from .client.manager import AsyncModelManager as AsyncModelManager
    from .client.manager import Lease as Lease
    from .client.manager import ModelManager as ModelManager
    from .client.stream import AsyncReplyStream as AsyncReplyStream
    from .client.stream import ReplyStream as ReplyStream
    from .doctor.finding import Finding as Finding
    from .doctor.machine import Machine as Machine
    from .errors import AuthError as AuthError
    from .errors import CannotContinue as CannotContinue
    from .errors import ContextOverflow as ContextOverflow
    from .errors import ContextTooShort as ContextTooShort
    from .errors import DoesNotFit as DoesNotFit
    from .errors import EmptyReply as EmptyReply
    from .errors import InvalidRequest as InvalidRequest
    from .errors import LmsError as LmsError
    from .errors import LmsFailed as LmsFailed
    from .errors import LmsNotFound as LmsNotFound
    from .errors import LmsTimeout as LmsTimeout
    from .errors import LoadFailed as LoadFailed
    from .errors import ModelBusy as ModelBusy
    from .errors import ModelLoading as ModelLoading
    from .errors import ModelNotFound as ModelNotFound
    from .errors import NoJson as NoJson
    from .errors import NotLMStudio as NotLMStudio
    from .errors import Phi4Error as Phi4Error
    from .errors import ServerError as ServerError
    from .errors import ServerUnreachable as ServerUnreachable
    from .errors import SilentOverflow as SilentOverflow
    from .errors import SolutionTruncated as SolutionTruncated
    from .errors import StreamCut as StreamCut
    from .errors import TapeError as TapeError
    from .errors import TapeMismatch as TapeMismatch
    from .errors import ThoughtUnclosed as ThoughtUnclosed
    from .errors import UnsupportedSetting as UnsupportedSetting
    from .events import Event as Event
    from .events import Finished as Finished
    from .events import Forced as Forced
    from .events import Outcome as Outcome
    from .events import Reply as Reply
    from .events import Revised as Revised
    from .events import Solution as Solution
    from .events import Stats as Stats
    from .events import TextEvent as TextEvent
    from .events import Thinking as Thinking
    from .events import Thought as Thought
    from .events import ToolCall as ToolCall
    from .events import Usage as Usage
    from .events import Waiting as Waiting
    from .limits import Timeouts as Timeouts
    from .lmstudio.config import LoadConfig as LoadConfig
    from .lmstudio.config import Way as Way
    from .lmstudio.download import Download as Download
    from .lmstudio.lifecycle import Loaded as Loaded
    from .lmstudio.lifecycle import LoadEvent as LoadEvent
    from .lmstudio.lms.server import ServerStatus as ServerStatus
    from .lmstudio.lms.text import Estimate as Estimate
    from .lmstudio.ways import Loading as Loading
    from .phi4.asking import Counted as Counted
    from .phi4.asking import ToolResults as ToolResults
    from .phi4.counting import Count as Count
    from .phi4.counting import Counter as Counter
    from .phi4.facts import SYSTEM_PROMPT as SYSTEM_PROMPT
    from .phi4.request import Held as Held
    from .phi4.request import Manager as Manager
    from .phi4.structured import JsonReply as JsonReply
    from .phi4.structured import Validator as Validator
    from .phi4.template import Probe as Probe
    from .reply.decoder import ReplyDecoder as ReplyDecoder
    from .reply.rescue import Rescue as Rescue
    from .reply.splitter import ThinkSplitter as ThinkSplitter
    from .tape import Tape as Tape
    from .wire.answers import AnsweringModel as AnsweringModel
    from .wire.answers import ChatChoice as ChatChoice
    from .wire.answers import ChatCompletion as ChatCompletion
    from .wire.answers import ChatMessage as ChatMessage
    from .wire.answers import Completion as Completion
    from .wire.answers import Embeddings as Embeddings
    from .wire.answers import Runtime as Runtime
    from .wire.answers import ServerStats as ServerStats
    from .wire.answers import TextChoice as TextChoice
    from .wire.listings import Instance as Instance
    from .wire.listings import ModelInfo as ModelInfo
    from .wire.parameters import AskParameters as AskParameters
    from .wire.parameters import Parameters as Parameters

_HOME = homes(
    {
        "api": "Api",
        "batch.answered": "BatchAnswer BatchProgress",
        "batch.lines": "BatchQuestion",
        "client.aio": "AsyncChat AsyncLMStudio AsyncPhi4",
        "client.blocking": "Chat LMStudio Phi4",
        "client.batched": "AsyncBatch Batch",
        "client.manager": "AsyncLease AsyncModelManager Lease ModelManager",
        "client.stream": "AsyncReplyStream ReplyStream",
        "arrived": "Arrived",
        "doctor.finding": "Finding",
        "doctor.machine": "Machine",
        "errors": "AuthError CannotContinue ContextOverflow ContextTooShort DoesNotFit EmptyReply "
        "InvalidRequest LmsError LmsFailed LmsNotFound LmsTimeout LoadFailed ModelBusy ModelLoading "
        "ModelNotFound NoJson NotLMStudio Phi4Error ServerError ServerUnreachable SilentOverflow "
        "SolutionTruncated StreamCut TapeError TapeMismatch ThoughtUnclosed UnsupportedSetting",
        "events": "Event Finished Forced Outcome Reply Revised Solution Stats TextEvent Thinking Thought ToolCall "
        "Usage Waiting",
        "limits": "Timeouts",
        "lmstudio.config": "LoadConfig Way",
        "lmstudio.download": "Download",
        "lmstudio.lifecycle": "LoadEvent Loaded",
        "lmstudio.ways": "Loading",
        "lmstudio.lms.server": "ServerStatus",
        "lmstudio.lms.text": "Estimate",
        "phi4.counting": "Count Counter",
        "phi4.facts": "SYSTEM_PROMPT",
        "phi4.asking": "Counted ToolResults",
        "phi4.request": "Held Manager",
        "phi4.structured": "JsonReply Validator",
        "phi4.template": "Probe",
        "reply.decoder": "ReplyDecoder",
        "reply.rescue": "Rescue",
        "reply.splitter": "ThinkSplitter",
        "tape": "Tape",
        "wire.answers": "AnsweringModel ChatChoice ChatCompletion ChatMessage Completion Embeddings Runtime "
        "ServerStats TextChoice",
        "wire.listings": "Instance ModelInfo",
        "wire.parameters": "AskParameters Parameters",
    }
)

__version__ = "0.1.0"
__all__ = sorted(_HOME)  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll]  # a list, built from the table
if not TYPE_CHECKING:  # to type checkers, a module with `__getattr__` has every name
    __getattr__, __dir__ = found_late(__name__, _HOME)
