"""Tells what kind of step a span is, in each dialect: an LLM call, a tool, an agent, a workflow, or something else. Pure.

Spans of agents, tools and workflows repeat the usage of the calls inside them and are not calls.
"""

from __future__ import annotations

from typing import Final

from ingest.receivers import gen_ai_names as names
from ingest.receivers.otlp_spans import Span

OTHER: Final = "other"
_CHAT: Final = "chat"
CALLS: Final = frozenset((_CHAT, "text_completion", "generate_content", "embeddings", "rerank"))
"""Kinds that are LLM calls."""
_TOOL: Final = "execute_tool"
_AGENT: Final = "invoke_agent"
_WORKFLOW: Final = "invoke_workflow"
_OPERATIONS: Final = {
    **{kind: kind for kind in (*CALLS, _TOOL, _AGENT, _WORKFLOW, "create_agent", "retrieval", "task", "evaluate")},
    # Traceloop and LiteLLM; the latter names asynchronous calls apart.
    "completion": "text_completion",
    "embedding": "embeddings",
    "responses": _CHAT,
    "acompletion": _CHAT,
    "atext_completion": "text_completion",
    "aembedding": "embeddings",
    "aresponses": _CHAT,
    "arerank": "rerank",
    "anthropic_messages": _CHAT,
}
_OPENINFERENCE: Final = {
    "LLM": _CHAT,
    "EMBEDDING": "embeddings",
    "TOOL": _TOOL,
    "AGENT": _AGENT,
    "CHAIN": _WORKFLOW,
    "RETRIEVER": "retrieval",
    "RERANKER": "retrieval",
    "EVALUATOR": "evaluate",
    "GUARDRAIL": "evaluate",
}
_TRACELOOP: Final = {"workflow": _WORKFLOW, "task": "task", "agent": _AGENT, "tool": _TOOL}
_VERCEL_CALLS: Final = {"doGenerate": _CHAT, "doStream": _CHAT, "doEmbed": "embeddings"}
_LONGEST_KIND: Final = 40


def kind_of(span: Span) -> str:
    """Return the span's kind; OTHER where it is no step of generative AI."""
    attributes = span.attributes
    kind = attributes.get(names.OPENINFERENCE_KIND)
    if kind is not None:
        return _OPENINFERENCE.get(str(kind), OTHER)
    vercel = attributes.get(names.VERCEL_OPERATION)
    if vercel is not None:
        return _vercel(str(vercel))
    operation = attributes.get(names.OPERATION) or attributes.get(names.REQUEST_TYPE)
    if operation is not None:
        known = _OPERATIONS.get(str(operation))
        return known if known is not None else f"gen_ai:{operation}"[:_LONGEST_KIND]
    traceloop = attributes.get(names.TRACELOOP_KIND)
    if traceloop is not None:
        return _TRACELOOP.get(str(traceloop), OTHER)
    # Before the convention named operations, pydantic-ai among others told a tool or an agent by its name alone.
    if names.TOOL_NAME in attributes:
        return _TOOL
    if names.AGENT_NAME in attributes:
        return _AGENT
    return _unnamed(span)


def _vercel(operation: str) -> str:
    """``ai.generateText`` runs steps and adds them up; each step is an ``ai.generateText.doGenerate``, the call."""
    last = operation.rpartition(".")[2]
    return _VERCEL_CALLS.get(last) or (_TOOL if last == "toolCall" else _AGENT)


def _unnamed(span: Span) -> str:
    """Older senders name no operation; a provider and a model, or usage, together are only on calls."""
    attributes = span.attributes
    if "provider" not in attributes:
        return OTHER
    first_word, _, rest = span.name.partition(" ")
    named = _OPERATIONS.get(first_word, _CHAT)
    if "model" in attributes:
        return named if named in CALLS else OTHER
    # The convention's span name is "operation model": enough where usage is there and the model's attribute is not.
    used = "input" in attributes or "output" in attributes
    return named if used and rest and first_word in CALLS else OTHER
