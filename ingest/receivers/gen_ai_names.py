"""What each dialect calls the same thing: attribute names by what they mean, best first. Data only.

OpenTelemetry ``gen_ai.*`` (current and 2025 names), Traceloop ``llm.*``, OpenInference ``llm.token_count.*``, Vercel AI SDK
``ai.*``, pydantic-ai ``gen_ai.usage.details.*``, LiteLLM ``metadata.*``. An attribute that is in none of these is never read;
of several that mean the same the first counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ingest.receivers.otlp_spans import Wanted

API_KEY: Final = "wattledger.api_key"
ORIGIN: Final = "wattledger.origin"
OPERATION: Final = "gen_ai.operation.name"
REQUEST_TYPE: Final = "llm.request.type"
OPENINFERENCE_KIND: Final = "openinference.span.kind"
TRACELOOP_KIND: Final = "traceloop.span.kind"
VERCEL_OPERATION: Final = "ai.operationId"
AGENT_NAME: Final = "gen_ai.agent.name"
TOOL_NAME: Final = "gen_ai.tool.name"
ERROR_TYPE: Final = "error.type"
OUTPUT_VALUE: Final = "output.value"
"""OpenInference: the response as JSON. Only the id at its very beginning is looked at."""
VERCEL_USER_AGENT: Final = "ai.request.headers.user-agent"
VERCEL_FIRST_CHUNK_MS: Final = ("ai.response.msToFirstChunk", "ai.response.msToFirstToken")
FIRST_CHUNK_S: Final = ("gen_ai.response.time_to_first_chunk", "gen_ai.server.time_to_first_token")

PROVIDER: Final = ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system", "ai.model.provider")
MODEL: Final = (
    "gen_ai.response.model",
    "ai.response.model",
    "gen_ai.request.model",
    "llm.model_name",
    "embedding.model_name",
    "llm.request.model",
    "ai.model.id",
)
RESPONSE_ID: Final = ("gen_ai.response.id", "ai.response.id", "llm.response.id")
REQUEST_ID: Final = ("gen_ai.request.id", "litellm.call_id", "metadata.litellm_call_id", "aws.request_id")
INPUT: Final = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.prompt_tokens",
    "llm.token_count.prompt",
    "llm.usage.prompt_tokens",
    "ai.usage.inputTokens",
    "ai.usage.promptTokens",
    "ai.usage.tokens",
)
OUTPUT: Final = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
    "llm.usage.completion_tokens",
    "ai.usage.outputTokens",
    "ai.usage.completionTokens",
)
TOTAL: Final = ("gen_ai.usage.total_tokens", "llm.usage.total_tokens", "llm.token_count.total", "ai.usage.totalTokens")
CACHE_READ: Final = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "llm.token_count.prompt_details.cache_read",
    "gen_ai.usage.input_tokens.cached",
    "gen_ai.usage.details.cache_read_tokens",
    "gen_ai.usage.details.cached_tokens",
    "ai.usage.cachedInputTokens",
    "ai.usage.inputTokenDetails.cacheReadTokens",
)
CACHE_WRITE: Final = (
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "llm.token_count.prompt_details.cache_write",
    "gen_ai.usage.details.cache_write_tokens",
    "ai.usage.inputTokenDetails.cacheWriteTokens",
)
REASONING: Final = (
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.reasoning_tokens",
    "llm.token_count.completion_details.reasoning",
    "gen_ai.usage.output_tokens.reasoning",
    "gen_ai.usage.details.reasoning_tokens",
    "ai.usage.reasoningTokens",
    "ai.usage.outputTokenDetails.reasoningTokens",
)
CACHE_WRITE_1H: Final = (
    "gen_ai.usage.cache_creation.ephemeral_1h_input_tokens",
    "gen_ai.usage.cache_creation_ephemeral_1h_input_tokens",
    "gen_ai.usage.details.ephemeral_1h_input_tokens",
    "gen_ai.usage.details.cache_write_1h_tokens",
    "llm.token_count.prompt_details.cache_write_1h",
)
"""Part of what was written to the cache: none of the conventions has it, senders pass on what Anthropic calls it."""
AUDIO_IN: Final = (
    "llm.token_count.prompt_details.audio",
    "gen_ai.usage.details.input_audio_tokens",
    "gen_ai.usage.input_audio_tokens",
)
AUDIO_OUT: Final = (
    "llm.token_count.completion_details.audio",
    "gen_ai.usage.details.output_audio_tokens",
    "gen_ai.usage.output_audio_tokens",
)
# Of the response first: a request may say auto.
SERVICE_TIER: Final = (
    "openai.response.service_tier",
    "gen_ai.openai.response.service_tier",
    "gen_ai.response.service_tier",
    "gen_ai.usage.details.service_tier",
    "openai.request.service_tier",
    "gen_ai.openai.request.service_tier",
    "gen_ai.request.service_tier",
)
BATCH: Final = ("wattledger.batch",)
DEPLOYMENT: Final = ("wattledger.deployment", "gen_ai.azure.deployment", "azure.openai.deployment")
TOOL_USES: Final = {
    "web_search": (
        "wattledger.tools.web_search",
        "gen_ai.usage.server_tool_use.web_search_requests",
        "gen_ai.usage.details.web_search_requests",
    ),
    "web_fetch": (
        "wattledger.tools.web_fetch",
        "gen_ai.usage.server_tool_use.web_fetch_requests",
        "gen_ai.usage.details.web_fetch_requests",
    ),
    "file_search": ("wattledger.tools.file_search", "gen_ai.usage.details.file_search_requests"),
    "code_execution": (
        "wattledger.tools.code_execution",
        "gen_ai.usage.server_tool_use.code_execution_requests",
        "gen_ai.usage.details.code_execution_requests",
    ),
    "maps_grounding": ("wattledger.tools.maps_grounding",),
}
"""Tools of the provider that it bills by use; a program's own tools are spans."""
BILLED: Final = {
    "images": ("wattledger.images", "gen_ai.usage.images", "gen_ai.usage.output_images"),
    "media_ms": ("wattledger.media_ms",),
    "characters": ("wattledger.characters", "gen_ai.usage.characters", "gen_ai.usage.input_characters"),
    "pages": ("wattledger.pages", "gen_ai.usage.pages"),
}
STREAMED: Final = ("gen_ai.is_streaming", "llm.is_streaming", "gen_ai.request.stream")
# Who called, best first. service.name is the last resort: it says which program, which is often one key.
KEY_ON_SPAN: Final = (
    API_KEY,
    "metadata.user_api_key_alias",
    "enduser.id",
    "user.id",
    "ai.telemetry.metadata.userId",
    "traceloop.association.properties.user_id",
)
KEY_ON_RESOURCE: Final = (API_KEY, "service.name")
KEPT: Final = {
    "gen_ai.agent.id": "gen_ai.agent.id",
    AGENT_NAME: AGENT_NAME,
    "agent.name": AGENT_NAME,
    TOOL_NAME: TOOL_NAME,
    "tool.name": TOOL_NAME,
    "ai.toolCall.name": TOOL_NAME,
    "gen_ai.tool.call.id": "gen_ai.tool.call.id",
    "ai.toolCall.id": "gen_ai.tool.call.id",
    "gen_ai.tool.type": "gen_ai.tool.type",
    "gen_ai.conversation.id": "gen_ai.conversation.id",
    "session.id": "session.id",
    "gen_ai.workflow.name": "gen_ai.workflow.name",
    "traceloop.workflow.name": "gen_ai.workflow.name",
    "traceloop.entity.name": "traceloop.entity.name",
    "gen_ai.data_source.id": "gen_ai.data_source.id",
    ERROR_TYPE: ERROR_TYPE,
}
"""Attributes kept with a span, and the name they are kept under."""
EVALUATION: Final = (
    "gen_ai.evaluation.name",
    "gen_ai.evaluation.score.value",
    "gen_ai.evaluation.score.label",
    "gen_ai.response.id",
)
"""What is read of an evaluation, on a span or on an event of it; its explanation is content and is not."""

_MEANINGS: Final[dict[str, tuple[str, ...]]] = {
    "provider": PROVIDER,
    "model": MODEL,
    "response_id": RESPONSE_ID,
    "request_id": REQUEST_ID,
    "input": INPUT,
    "output": OUTPUT,
    "total": TOTAL,
    "cache_read": CACHE_READ,
    "cache_write": CACHE_WRITE,
    "cache_write_1h": CACHE_WRITE_1H,
    "reasoning": REASONING,
    "audio_in": AUDIO_IN,
    "audio_out": AUDIO_OUT,
    "streamed": STREAMED,
    "first_chunk_ms": VERCEL_FIRST_CHUNK_MS,
    "first_chunk_s": FIRST_CHUNK_S,
    "service_tier": SERVICE_TIER,
    "batch": BATCH,
    "deployment": DEPLOYMENT,
    **{f"tool/{name}": told for name, told in TOOL_USES.items()},
    **BILLED,
}
_OWN_NAMES: Final = (
    ORIGIN,
    OPERATION,
    REQUEST_TYPE,
    OPENINFERENCE_KIND,
    TRACELOOP_KIND,
    VERCEL_OPERATION,
    OUTPUT_VALUE,
    VERCEL_USER_AGENT,
    *EVALUATION[:-1],
)


def _wanted(meanings: Mapping[str, Sequence[str]], own_names: Sequence[str]) -> dict[str, tuple[str, int]]:
    wanted = {name: (meaning, rank) for meaning, names in meanings.items() for rank, name in enumerate(names)}
    return wanted | {name: (name, 0) for name in own_names}


ON_SPAN: Final = _wanted(_MEANINGS | {"api_key": KEY_ON_SPAN}, _OWN_NAMES) | {
    name: (meaning, rank) for rank, (name, meaning) in enumerate(KEPT.items())
}
"""All that is read of a span."""
ON_RESOURCE: Final = _wanted({"api_key": KEY_ON_RESOURCE}, (ORIGIN,))
"""All that is read of a resource."""
ON_EVALUATION: Final = _wanted({}, EVALUATION)
ON_EVALUATION_RECORD: Final = _wanted({}, (*EVALUATION, ORIGIN, "event.name"))
"""All that is read of a log record that is an evaluation."""
TOKENS: Final = frozenset(
    ("input", "output", "total", "cache_read", "cache_write", "cache_write_1h", "reasoning", "audio_in", "audio_out")
)
"""Meanings that are counts of tokens."""
TERMS: Final = frozenset(("service_tier", "batch", "deployment", *BILLED, *(f"tool/{name}" for name in TOOL_USES)))
"""Meanings that say at which price a call is billed, or what is billed beside its tokens."""
VARYING: Final = TOKENS | {
    *("response_id", "request_id", "api_key", "first_chunk_ms", "first_chunk_s", OUTPUT_VALUE),
    *("gen_ai.conversation.id", "session.id", "gen_ai.tool.call.id"),
}
"""Meanings that decide neither what a span is nor how it is read: otherwise like spans differ in them."""
WANTED: Final[Wanted] = (ON_SPAN, ON_RESOURCE, ON_EVALUATION, VARYING)
KEPT_NAMES: Final = frozenset(KEPT.values())
