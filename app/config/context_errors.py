"""What model servers say of a request that is at fault, whatever their status."""

CONTEXT_TOO_LONG = (
    "maximum context length",  # OpenAI, vLLM, SGLang, Ollama
    "longer than the maximum model length",  # vLLM
    "too long to fit into the model",  # vLLM
    "the model's context length is only",  # vLLM
    "longer than the model's context length",  # SGLang
    "exceeds the maximum allowed length",  # SGLang
    "exceeds the available context size",  # llama.cpp
    "exceed context window of",  # llama-cpp-python
    "exceeds the context length",  # Ollama
    "exceeds maximum input length",  # TensorRT-LLM
    "exceeds maximum sequence length",  # TensorRT-LLM
    "should not exceed max_num_tokens",  # TensorRT-LLM
    "input validation error",  # TGI
    "context_length_exceeded",  # the error code of OpenAI, which others have too
)
"""How model servers say that a prompt is too long for the model, or that the request is invalid in another way."""
