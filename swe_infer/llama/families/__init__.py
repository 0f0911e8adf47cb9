"""The model families that the engine runs, each described by what it adds to Llama.

A family is a module with ``parts(read)``, which returns :class:`swe_infer.llama.families.base.Parts`, and a line in
:data:`FAMILIES`.
"""

from collections.abc import Mapping

FAMILIES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MistralForCausalLM": "mistral",
    "GraniteForCausalLM": "granite",
    "Phi3ForCausalLM": "phi3",
    "Olmo2ForCausalLM": "olmo2",
    "SmolLM3ForCausalLM": "smollm3",
    "InternLM2ForCausalLM": "internlm2",
    "InternLM3ForCausalLM": "internlm3",
}
"""``architectures`` of a ``config.json`` to the module that describes it."""
