"""What can be asked of a load: ranges, ways, and whether an instance has it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phi4_http.errors import InvalidRequest, UnsupportedSetting
from phi4_http.lmstudio.config import (
    ABLE,
    LoadConfig,
    Way,
    check_against,
    check_name,
    lms_arguments,
    rest_body,
    unmet,
    usable_ways,
)
from phi4_http.lmstudio.inventory import ways_of
from phi4_http.lmstudio.lms.reach import lms_options
from phi4_http.server import Server
from phi4_http.wire.listings import Instance, ModelInfo

ORDER: tuple[Way, ...] = ("lms", "rest", "jit")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"context_length": 0}, "context_length is 0: it takes a whole number of tokens, 1 or more"),
        ({"context_length": 4096.5}, "whole number of tokens"),
        ({"context_length": "4k"}, "whole number of tokens"),
        ({"context_length": True}, "whole number of tokens"),
        ({"gpu": 1.5}, "gpu is 1.5: it takes 'max', 'off', 'auto', or a share from 0 to 1"),
        ({"gpu": -0.1}, "a share from 0 to 1"),
        ({"gpu": ""}, "a share from 0 to 1"),
        ({"gpu": math.nan}, "a share from 0 to 1"),
        ({"gpu": True}, "a share from 0 to 1"),
        ({"ttl": 0}, "ttl is 0: it takes a whole number of seconds, 1 or more"),
        ({"ttl": 1.5}, "whole number of seconds"),
        ({"parallel": 0}, "parallel is 0: it takes a whole number of requests, 1 or more"),
        ({"eval_batch_size": -1}, "eval_batch_size is -1"),
        ({"num_experts": 0}, "num_experts is 0: it takes a whole number of experts, 1 or more"),
        ({"flash_attention": "yes"}, "flash_attention is 'yes': it takes True or False"),
        ({"offload_kv_cache_to_gpu": 1}, "it takes True or False"),
        ({"rope_frequency_base": 0}, "rope_frequency_base is 0: it takes a number above 0"),
        ({"identifier": ""}, "the identifier is ''"),
        ({"identifier": "-v"}, "starts with '-'"),
        ({"identifier": "a\nb"}, "control characters"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(settings: dict[str, Any], says: str) -> None:
    """What `lms` or a server would misread is refused when the config is made, in words that say the range."""
    with pytest.raises(InvalidRequest) as caught:
        LoadConfig(**settings)
    assert says in str(caught.value)


@pytest.mark.parametrize("gpu", ["max", "off", "auto", 0, 1, 0.5, 1.0, None])
def test_every_share_and_word_is_taken_for_the_gpu(gpu: Any) -> None:
    """`auto` and None leave the choice to LM Studio; the rest goes to `lms` as it is."""
    config = LoadConfig(gpu=gpu)
    assert lms_arguments(config) == (() if gpu in ("auto", None) else ("--gpu", str(gpu)))


def test_an_instance_may_be_called_auto() -> None:
    """The word `auto` means something for the GPU only."""
    assert LoadConfig(identifier="auto").settings == ("identifier",)


@given(st.text())
@example("-y")
@example("--host")
@example("a\x00b")
@example("a\x1b[2J")
@example("")
@example(" ")
def test_no_name_is_an_option(name: str) -> None:
    """A name that starts with `-`, is empty or holds control characters never gets as far as a command."""
    fine = bool(name.strip()) and not name.startswith("-") and name.isprintable()
    if fine:
        assert check_name(name, "model key") == name
    else:
        with pytest.raises(InvalidRequest):
            check_name(name, "model key")


def test_all_settings_become_arguments_of_their_own() -> None:
    """No value is glued to an option, and none is left out."""
    config = LoadConfig(8192, 0.5, 600, 2, "mine")
    assert lms_arguments(config) == (
        "--context-length", "8192", "--gpu", "0.5", "--ttl", "600", "--parallel", "2", "--identifier", "mine",
    )  # fmt: skip


def test_rest_body_holds_what_rest_can_set() -> None:
    """Settings of False are settings."""
    config = LoadConfig(8192, flash_attention=False, eval_batch_size=256, offload_kv_cache_to_gpu=True, num_experts=4)
    assert rest_body(config, "m") == {
        "model": "m",
        "context_length": 8192,
        "flash_attention": False,
        "eval_batch_size": 256,
        "offload_kv_cache_to_gpu": True,
        "num_experts": 4,
    }


SAMPLES: dict[str, Any] = {
    "context_length": 8192, "gpu": "max", "ttl": 60, "parallel": 2, "identifier": "mine", "flash_attention": True,
    "eval_batch_size": 512, "offload_kv_cache_to_gpu": False, "num_experts": 2, "rope_frequency_base": 1e6,
    "rope_frequency_scale": 0.5, "keep_model_in_memory": True,
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("way", ORDER)
def test_a_way_that_cant_set_something_refuses_it_and_says_which_can(name: str, way: Way) -> None:
    """No setting is dropped in silence by any way."""
    config = LoadConfig(**{name: SAMPLES[name]})
    if way in ABLE[name]:
        assert usable_ways(config, [way]) == (way,)
        return
    with pytest.raises(UnsupportedSetting) as caught:
        usable_ways(config, [way])
    assert (caught.value.settings, caught.value.way, caught.value.able) == ((name,), way, ABLE[name])
    says = ", ".join(ABLE[name]) or "LM Studio's own per-model defaults"
    assert says in str(caught.value)


def test_all_settings_are_covered() -> None:
    """Each field of the config is in the table of ways."""
    assert set(SAMPLES) == set(ABLE) == set(LoadConfig.__dataclass_fields__)


def test_ways_are_used_in_the_order_asked_for_where_they_can() -> None:
    """The first way that can set everything comes first; others that can follow it."""
    assert usable_ways(LoadConfig(), ("jit", "rest", "lms")) == ("jit", "rest", "lms")
    assert usable_ways(LoadConfig(context_length=1), ORDER) == ("lms", "rest")
    assert usable_ways(LoadConfig(ttl=1), ("rest", "jit", "lms")) == ("jit", "lms")


def test_settings_that_no_one_way_can_set_together_are_refused() -> None:
    """`gpu` needs `lms` and flash attention needs REST: together they have no way."""
    with pytest.raises(UnsupportedSetting) as caught:
        usable_ways(LoadConfig(gpu="max", flash_attention=True), ORDER)
    assert len(caught.value.settings) == 1


def test_a_context_above_the_models_longest_is_refused_with_the_range() -> None:
    """`lms` does not look, and some backends accept it."""
    model = ModelInfo("m", max_context_length=32768)
    check_against(LoadConfig(context_length=32768), model)
    with pytest.raises(InvalidRequest, match="from 1 to 32,768 tokens"):
        check_against(LoadConfig(context_length=32769), model)


def test_parallel_is_refused_for_embeddings() -> None:
    """`lms load --parallel` drops it in silence for an embedding model."""
    with pytest.raises(InvalidRequest, match="embedding model"):
        check_against(LoadConfig(parallel=2), ModelInfo("m", type="embeddings"))


@pytest.mark.parametrize(
    ("config", "instance", "lacks"),
    [
        (LoadConfig(), Instance("i", "m"), ()),
        (LoadConfig(context_length=4096), Instance("i", "m", context_length=4096), ()),
        (LoadConfig(context_length=4096), Instance("i", "m", context_length=8192), ()),
        (LoadConfig(context_length=4096), Instance("i", "m", context_length=4095), ("context_length",)),
        (LoadConfig(context_length=4096), Instance("i", "m"), ()),
        (LoadConfig(parallel=4), Instance("i", "m", parallel=2), ("parallel",)),
        (LoadConfig(parallel=2), Instance("i", "m", parallel=4), ()),
        (LoadConfig(gpu="max", ttl=5), Instance("i", "m", ttl=60), ("ttl",)),
        (LoadConfig(gpu="max", ttl=5), Instance("i", "m"), ()),
        (LoadConfig(ttl=5), Instance("i", "m", extra={"ttlMs": None}), ("ttl",)),
        (LoadConfig(flash_attention=True), Instance("i", "m", extra={"flash_attention": False}), ("flash_attention",)),
        (LoadConfig(num_experts=4), Instance("i", "m", extra={"num_experts": 4}), ()),
        (LoadConfig(identifier="x"), Instance("i", "m"), ("identifier",)),
    ],
)
def test_an_instance_has_what_it_is_not_known_to_lack(
    config: LoadConfig, instance: Instance, lacks: tuple[str, ...]
) -> None:
    """More is enough; what nobody tells counts as there, or old versions would reload for ever."""
    assert unmet(config, instance) == lacks


@pytest.mark.parametrize(
    ("url", "local", "options"),
    [
        ("http://127.0.0.1:1234", True, ("--port", "1234")),
        ("http://localhost", True, ("--port", "80")),
        ("http://127.0.0.2:1", True, ("--host", "127.0.0.2", "--port", "1")),
        ("http://[::1]:1234", True, None),
        ("http://box:1234", False, ("--host", "box", "--port", "1234")),
        ("http://box", False, ("--host", "box", "--port", "80")),
        ("https://box:1234", False, None),
        ("http://box:1234/prefix", False, None),
        ("http://[fe80::1]:1234", False, None),
    ],
)
def test_a_remote_server_is_named_to_lms_where_it_can_be(url: str, local: bool, options: Any) -> None:
    """`lms --host` takes a bare name or IPv4 address, and speaks no https; there, `lms` is no way."""
    server = Server(url)
    assert server.local is local
    assert lms_options(server) == options
    assert ("lms" in ways_of(server)) is (options is not None)


def test_the_usual_order_depends_on_where_the_server_is() -> None:
    """`lms` first on this machine, REST first for another one."""
    assert ways_of(Server("http://127.0.0.1:1234")) == ("lms", "rest", "jit")
    assert ways_of(Server("http://box:1234")) == ("rest", "lms", "jit")


@pytest.mark.parametrize("order", [["ftp"], [], ["lms", "REST"]])
def test_unknown_ways_are_refused(order: Any) -> None:
    """A way that does not exist is not passed over in silence."""
    with pytest.raises(InvalidRequest, match="lms, rest, jit"):
        ways_of(Server("http://127.0.0.1:1234"), order)
