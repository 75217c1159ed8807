import pytest

from backends.simulator.config import EngineConfig, build_engine
from backends.simulator.engine import PRESETS, ContinuousEngine, StaticEngine


def test_usable_memory_is_the_configured_one_in_whole_blocks():
    config = EngineConfig(kv_tokens=1000, block_size=16)

    assert (config.num_gpu_blocks, config.capacity_tokens) == (63, 992)


def test_default_context_is_limited_by_the_memory():
    assert EngineConfig(kv_tokens=1000).context_tokens == 992
    assert EngineConfig(kv_tokens=1000, max_model_len=100).context_tokens == 100


def test_preset_gives_memory_and_context():
    config = EngineConfig(preset="chatglm-6b-v100")

    assert config.capacity_tokens == pytest.approx(PRESETS["chatglm-6b-v100"].kv_tokens, abs=16)
    assert config.context_tokens == 2048


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"preset": "abacus"}, "preset"),
        ({"speed": 0}, "speed"),
        ({"block_size": 0}, "block_size"),
        ({"kv_tokens": 8}, "kv_tokens"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"kv_tokens": 160, "max_model_len": 161}, "max_model_len"),
    ],
)
def test_error_names_the_wrong_field(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        EngineConfig(**fields)


@pytest.mark.parametrize(
    ("kind", "engine"), [("vllm", ContinuousEngine), ("tgi", ContinuousEngine), ("static", StaticEngine)]
)
def test_kind_decides_the_engine(kind, engine):
    built = build_engine(EngineConfig(kind=kind, kv_tokens=1600))

    assert isinstance(built, engine)
    assert built.kv_capacity_tokens == 1600


def test_presets_decode_at_the_speed_of_their_hardware():
    """A single sequence with 1000 tokens decodes at the published bandwidth, and the three GPUs keep their order."""
    step_s = {name: preset.step_time(1, 1000, 0) for name, preset in PRESETS.items()}

    assert step_s["llama-8b-h100"] < step_s["llama-8b-a100"] < step_s["chatglm-6b-v100"]
    assert step_s["llama-8b-a100"] == pytest.approx(0.012, abs=0.001)
