import httpx2
import pytest

from backends.base import BackendSpec
from backends.registry import KINDS, connect

NOWHERE = httpx2.AsyncBaseTransport()


def spec(kind: str = "vllm", url: str = "http://gpu-0:8000", api_key: str | None = None) -> BackendSpec:
    return BackendSpec(name="gpu-0", kind=kind, url=url, api_key=api_key)


@pytest.mark.parametrize("kind", KINDS)
def test_connects_every_kind(kind: str):
    assert connect(spec(kind), NOWHERE, 1.0).spec == spec(kind)


def test_unknown_kind_is_rejected_with_the_list_of_kinds():
    with pytest.raises(ValueError, match="'gpu-0': kind 'vlm' is unknown; use one of vllm, tgi, openai, static"):
        connect(spec("vlm"), NOWHERE, 1.0)


@pytest.mark.parametrize("url", ["gpu-0:8000", "ftp://gpu-0", "http://", "http://gpu-0:port", "/v1"])
def test_invalid_url_is_rejected(url: str):
    with pytest.raises(ValueError, match="'gpu-0'"):
        connect(spec(url=url), NOWHERE, 1.0)


@pytest.mark.parametrize(("url", "api_key"), [("http://me:sesame@gpu-0", None), ("http://gpu-0", "sesame\n")])
def test_invalid_secret_is_rejected_and_not_shown(url: str, api_key: str | None):
    with pytest.raises(ValueError, match="'gpu-0'") as refusal:
        connect(spec(url=url, api_key=api_key), NOWHERE, 1.0)
    assert "sesame" not in str(refusal.value)
