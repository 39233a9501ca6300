"""A raw-HTTP client for LM Studio and Phi-4-reasoning-plus.

    from phi4_http import Phi4

    with Phi4() as phi:
        print(phi.ask("How many r are in strawberry?").solution)

The public names are found when they are first used, so that importing a part does not import httpx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aio import AsyncLMStudio as AsyncLMStudio
    from .aio import AsyncPhi4 as AsyncPhi4
    from .client import LMStudio as LMStudio
    from .client import Phi4 as Phi4
    from .connection import Timeouts as Timeouts
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
    from .errors import SolutionTruncated as SolutionTruncated
    from .errors import StreamCut as StreamCut
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
    from .events import Thinking as Thinking
    from .events import Thought as Thought
    from .events import ToolCall as ToolCall
    from .events import Usage as Usage
    from .loading import LoadConfig as LoadConfig
    from .manager import AsyncModelManager as AsyncModelManager
    from .manager import ModelManager as ModelManager
    from .models import Instance as Instance
    from .models import ModelInfo as ModelInfo
    from .phi4 import SYSTEM_PROMPT as SYSTEM_PROMPT
    from .reply import ReplyDecoder as ReplyDecoder
    from .rescue import Rescue as Rescue
    from .tape import Tape as Tape
    from .tape import TapeError as TapeError
    from .tape import TapeMismatch as TapeMismatch
    from .thinking import ThinkSplitter as ThinkSplitter

_HOMES = {
    "aio": "AsyncLMStudio AsyncPhi4",
    "client": "LMStudio Phi4",
    "connection": "Timeouts",
    "errors": "AuthError CannotContinue ContextOverflow ContextTooShort DoesNotFit EmptyReply InvalidRequest "
    "LmsError LmsFailed LmsNotFound LmsTimeout LoadFailed ModelBusy ModelLoading ModelNotFound NoJson "
    "NotLMStudio Phi4Error ServerError ServerUnreachable SolutionTruncated StreamCut ThoughtUnclosed "
    "UnsupportedSetting",
    "events": "Event Finished Forced Outcome Reply Revised Solution Stats Thinking Thought ToolCall Usage",
    "loading": "LoadConfig",
    "manager": "AsyncModelManager ModelManager",
    "models": "Instance ModelInfo",
    "phi4": "SYSTEM_PROMPT",
    "reply": "ReplyDecoder",
    "rescue": "Rescue",
    "tape": "Tape TapeError TapeMismatch",
    "thinking": "ThinkSplitter",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = sorted(_HOME)  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll]  # a list, built from the table


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
