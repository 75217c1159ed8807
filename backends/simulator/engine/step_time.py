"""The duration of a forward pass, and presets of models on GPUs."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class StepTime:
    """The duration of one step in seconds: `a + b * running + c * kv_tokens + d * prefill_tokens`.

    `running` is the number of sequences in the step, `kv_tokens` the number of KV entries that attention reads, and
    `prefill_tokens` the number of prompt tokens computed in it.
    """

    a: float
    b: float
    c: float
    d: float

    def __call__(self, running: int, kv_tokens: int, prefill_tokens: int) -> float:
        """Return the step's duration in seconds.

        >>> StepTime(a=0.5, b=0.25, c=0.0, d=0.125)(running=4, kv_tokens=5000, prefill_tokens=8)
        2.5
        """
        return self.a + self.b * running + self.c * kv_tokens + self.d * prefill_tokens

    @classmethod
    def roofline(
        cls, *, params: float, kv_bytes_per_token: int, bandwidth: float, flops: float, overhead_s: float
    ) -> Self:
        """Derive the four constants from a model with 2-byte weights and a GPU's *achieved* bandwidth and FLOP/s.

        a: launch overhead, and the weights read once: `overhead_s + 2 * params / bandwidth`.
        b, d: the arithmetic of one token, `2 * params / flops`, whether decoded or prefilled.
        c: one token's keys and values read once: `kv_bytes_per_token / bandwidth`.

        The terms are added, which is the pessimistic side of a roofline: memory traffic and arithmetic overlap in part.

        Source: Kaplan et al., arXiv 2001.08361, section 2.1 (2 FLOP per parameter and token); Pope et al.,
        arXiv 2211.05102, section 2 (decode time is bound by reading the weights and the KV cache).
        """
        token_s = 2 * params / flops
        return cls(a=overhead_s + 2 * params / bandwidth, b=token_s, c=kv_bytes_per_token / bandwidth, d=token_s)


@dataclass(frozen=True, slots=True)
class Preset:
    """A model on a GPU.

    Attributes:
        step_time: the duration of a step.
        kv_tokens: the KV tokens that fit into the memory beside the weights.
        max_model_len: the model's context length in tokens.
    """

    step_time: StepTime
    kv_tokens: int
    max_model_len: int


def _llama_8b(bandwidth: float, flops: float) -> Preset:
    """Llama-3-8B in bf16 under vLLM, on a GPU of 80 GB with this peak bandwidth and these peak dense FLOP/s.

    8.03 B parameters are 16.1 GB. 32 layers of 8 KV heads of 128: 2 * 32 * 8 * 128 * 2 B = 131072 B of KV a token. Of
    the 80 GB vLLM takes 90 %; without the weights that leaves 55.9 GB, 426 700 tokens. Achieved: 80 % of the peak
    bandwidth and 50 % of the peak FLOP/s; 2 ms a step for the scheduler and the launch of CUDA graphs.
    """
    params, kv_bytes = 8.03e9, 2 * 32 * 8 * 128 * 2
    step_time = StepTime.roofline(
        params=params,
        kv_bytes_per_token=kv_bytes,
        bandwidth=0.8 * bandwidth,
        flops=0.5 * flops,
        overhead_s=0.002,
    )
    return Preset(step_time, kv_tokens=int((0.9 * 80e9 - 2 * params) / kv_bytes), max_model_len=8192)


def _chatglm_6b_on_v100() -> Preset:
    """ChatGLM-6B in fp16 on a V100 with 32 GB, the testbed of arXiv 2406.04785, driven by an eager PyTorch loop.

    6.2 B parameters are 12.4 GB. 28 layers, hidden size 4096, multi-head attention: 2 * 28 * 4096 * 2 B = 458752 B of
    KV a token; 17.6 GB for it hold 38 364 tokens. Achieved: 900 GB/s, 60 TFLOP/s; 30 ms a step for launching eager
    kernels.
    """
    params, kv_bytes = 6.2e9, 2 * 28 * 4096 * 2
    step_time = StepTime.roofline(
        params=params, kv_bytes_per_token=kv_bytes, bandwidth=900e9, flops=60e12, overhead_s=0.030
    )
    return Preset(step_time, kv_tokens=int(17.6e9 / kv_bytes), max_model_len=2048)


PRESETS: dict[str, Preset] = {
    # A100 SXM 80 GB data sheet: 2039 GB/s, 312 TFLOP/s bf16. H100 SXM data sheet: 3350 GB/s, 989 TFLOP/s bf16.
    "llama-8b-a100": _llama_8b(bandwidth=2.039e12, flops=312e12),
    "llama-8b-h100": _llama_8b(bandwidth=3.350e12, flops=989e12),
    "chatglm-6b-v100": _chatglm_6b_on_v100(),
}
