"""Providers of language models, imitated.

  providers.py DIR CERT KEY   answers until its parent ends; its port is in DIR/providers.port

What is answered is in the words of the providers' documentation, as of November 2026:
  chat       OpenAI, "Create chat completion" and "Streaming" (platform.openai.com/docs/api-reference/chat)
  responses  OpenAI, "Responses" and "Streaming events" (platform.openai.com/docs/api-reference/responses-streaming)
  messages   Anthropic, "Messages" and "Streaming messages" (docs.anthropic.com/en/api/messages-streaming)
  generate   Google, "Generating content" (ai.google.dev/api/generate-content), "Thinking" and "Function calling"
             (ai.google.dev/gemini-api/docs)
  mistral    Mistral, "Chat Completion" (docs.mistral.ai/api) and "Reasoning"
             (docs.mistral.ai/inference/conversations/reasoning)
  cohere     Cohere, "Chat" and "Chat with streaming" (docs.cohere.com/reference), "Streaming", "Streaming for tool
             use" and "Reasoning" (docs.cohere.com/docs)
  first      Cohere, "Chat" and "Chat with streaming" of the first version (docs.cohere.com/v1/reference)
  ollama     Ollama, "Generate a chat completion" (github.com/ollama/ollama/blob/main/docs/api.md), "Thinking"
             (docs.ollama.com/capabilities/thinking)
  converse   Amazon Bedrock, "Converse" and "ConverseStream" (docs.aws.amazon.com/bedrock/latest/APIReference)
  invoke     Amazon Bedrock, "InvokeModelWithResponseStream" (there), "Inference request parameters and response
             fields for foundation models" (docs.aws.amazon.com/bedrock/latest/userguide/model-parameters.html);
             Amazon, "Event stream encoding" (docs.aws.amazon.com/transcribe/latest/dg/event-stream.html)

The model that is asked for says what happens, and in which call: `tools-7`. Every answer has an id of its own.
"""

import base64
import binascii
import ctypes
import http.server
import json
import os
import re
import signal
import ssl
import struct
import sys
import urllib.parse

import h2.config
import h2.connection
import h2.events

WORDS = ["It", " rains", " in", " Ærø", ", said", ' "the', " 🦀\"", ".\n", "\\o/"]
THOUGHTS = "Let me see. Ærø? " * 9
ARGUMENTS = {"city": "Ærø", "days": [1, 2.5, None, True], "note": 'a "quoted"\nline'}


def model(request):
    kind, _, number = request["model"].partition("-")
    return kind, number


def halves(text):
    """In pieces of a few characters, as models give them."""
    return [text[at : at + 7] for at in range(0, len(text), 7)]


def calls(request):
    """The tools that are called, by name and arguments."""
    return [("tool_0", ARGUMENTS), ("tool_1", {})] if model(request)[0] == "tools" else []


# OpenAI.


def chat(request):
    kind, number = model(request)
    message = {"role": "assistant", "content": "".join(WORDS), "refusal": None}
    if kind == "tools":
        arguments = [json.dumps(ARGUMENTS), "{}"]
        calls = [
            {"id": f"call_{at}", "type": "function", "function": {"name": f"tool_{at}", "arguments": text}}
            for at, text in enumerate(arguments)
        ]
        message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1795219200,
        "model": request["model"] + "-2026-11-01",
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": "tool_calls" if kind == "tools" else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 19,
            "completion_tokens": 10,
            "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 4 if kind == "thinking" else 0, "audio_tokens": 0},
        },
        "service_tier": "default",
        "system_fingerprint": "fp_44709d6fcb",
    }


def chat_events(request):
    kind, _ = model(request)
    whole = chat(request)
    [choice] = whole.pop("choices")
    usage = whole.pop("usage")
    whole["object"] = "chat.completion.chunk"

    def chunk(delta, finish=None):
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        return {**whole, "choices": choices, "usage": None}

    yield chunk({"role": "assistant", "content": "", "refusal": None})
    message = choice["message"]
    for word in WORDS if message["content"] else []:
        yield chunk({"content": word})
        if kind == "failing" and word == " in":
            yield {"error": {"message": "The server had an error", "type": "server_error", "param": None, "code": None}}
            return
    for at, call in enumerate(message.get("tool_calls", [])):
        function = call["function"]
        yield chunk({"tool_calls": [{"index": at, **call, "function": {**function, "arguments": ""}}]})
        for piece in halves(function["arguments"]):
            yield chunk({"tool_calls": [{"index": at, "function": {"arguments": piece}}]})
    yield {**chunk({}, choice["finish_reason"])}
    if kind == "surprising":
        # As if usage had not been asked for, which is for the client to say.
        yield {**chunk({}), "obfuscation": "aB3", "a_field_of_the_future": [{"whatever": 1}]}
    else:
        yield {**whole, "choices": [], "usage": usage}
    yield "[DONE]"


# Anthropic.


def messages(request):
    kind, number = model(request)
    content = [{"type": "text", "text": "".join(WORDS)}]
    if kind == "thinking":
        content.insert(0, {"type": "thinking", "thinking": THOUGHTS, "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"})
    if kind == "tools":
        for at, arguments in enumerate([ARGUMENTS, {}]):
            content.append({"type": "tool_use", "id": f"toolu_{at}", "name": f"tool_{at}", "input": arguments})
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": request["model"] + "-20261101",
        "content": content,
        "stop_reason": "tool_use" if kind == "tools" else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 25,
            "cache_creation_input_tokens": 3,
            "cache_read_input_tokens": 40,
            "output_tokens": 15,
            "service_tier": "standard",
        },
    }


def messages_events(request):
    kind, _ = model(request)
    whole = messages(request)
    usage = {**whole["usage"], "output_tokens": 1}
    start = {**whole, "content": [], "stop_reason": None, "usage": usage}
    yield {"type": "message_start", "message": start}
    for at, block in enumerate(whole["content"]):
        kinds = {
            "text": (("text", ""), lambda: [("text_delta", "text", word) for word in WORDS]),
            "thinking": (
                ("thinking", ""),
                lambda: [("thinking_delta", "thinking", piece) for piece in halves(block["thinking"])]
                + [("signature_delta", "signature", block["signature"])],
            ),
            "tool_use": (
                ("input", {}),
                lambda: [("input_json_delta", "partial_json", "")]
                + [("input_json_delta", "partial_json", piece) for piece in halves(json.dumps(block["input"]))],
            ),
        }
        (field, empty), pieces = kinds[block["type"]]
        begun = {**block, field: empty}
        if "signature" in begun:
            begun["signature"] = ""
        yield {"type": "content_block_start", "index": at, "content_block": begun}
        yield {"type": "ping"}
        for number, (delta, key, piece) in enumerate(pieces()):
            yield {"type": "content_block_delta", "index": at, "delta": {"type": delta, key: piece}}
            if kind == "surprising" and number == 2:
                yield {"type": "an_event_of_the_future", "whatever": True}
            if kind == "failing" and number == 2:
                yield {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
                return
        yield {"type": "content_block_stop", "index": at}
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": whole["usage"]["output_tokens"]}}
    yield {"type": "message_stop"}


# OpenAI's responses.


def items(request):
    kind, _ = model(request)
    part = {"type": "output_text", "text": "".join(WORDS), "annotations": [], "logprobs": []}
    said = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    thought = {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": THOUGHTS}]}
    called = [
        {
            "id": f"fc_{at}",
            "type": "function_call",
            "status": "completed",
            "call_id": f"call_{at}",
            "name": name,
            "arguments": json.dumps(arguments),
        }
        for at, (name, arguments) in enumerate(calls(request))
    ]
    return called or ([thought] if kind == "thinking" else []) + [said]


def responses(request):
    kind, number = model(request)
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1795219200,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": "Be brief.",
        "model": request["model"] + "-2026-11-01",
        "output": items(request),
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 36,
            "input_tokens_details": {"cached_tokens": 16},
            "output_tokens": 87,
            "output_tokens_details": {"reasoning_tokens": 64 if kind == "thinking" else 0},
            "total_tokens": 123,
        },
        "user": None,
        "metadata": {},
    }


def responses_events(request):
    for number, event in enumerate(responses_pieces(request)):
        yield {**event, "sequence_number": number}


def responses_pieces(request):
    kind, _ = model(request)
    whole = responses(request)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for at, item in enumerate(whole["output"]):
        place = {"item_id": item["id"], "output_index": at}
        added = {"message": {"content": []}, "reasoning": {"summary": []}, "function_call": {"arguments": ""}}
        open_item = {**item, **added[item["type"]], "status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": at, "item": open_item}
        if item["type"] == "function_call":
            for piece in halves(item["arguments"]):
                yield {"type": "response.function_call_arguments.delta", **place, "delta": piece}
            yield {"type": "response.function_call_arguments.done", **place, "arguments": item["arguments"]}
        elif item["type"] == "reasoning":
            inner = {**place, "summary_index": 0}
            kind_of = "response.reasoning_summary"
            yield {"type": f"{kind_of}_part.added", **inner, "part": {"type": "summary_text", "text": ""}}
            for piece in halves(THOUGHTS):
                yield {"type": f"{kind_of}_text.delta", **inner, "delta": piece}
            yield {"type": f"{kind_of}_text.done", **inner, "text": THOUGHTS}
            yield {"type": f"{kind_of}_part.done", **inner, "part": item["summary"][0]}
        else:
            [part] = item["content"]
            inner = {**place, "content_index": 0}
            yield {"type": "response.content_part.added", **inner, "part": {**part, "text": ""}}
            for word in WORDS:
                yield {"type": "response.output_text.delta", **inner, "delta": word, "logprobs": []}
                if kind == "surprising" and word == " in":
                    yield {"type": "response.an_event_of_the_future", "whatever": True}
                if kind == "failing" and word == " in":
                    error = {"code": "server_error", "message": "The model failed to generate a response."}
                    yield {"type": "response.failed", "response": {**begun, "status": "failed", "error": error}}
                    return
            yield {"type": "response.output_text.done", **inner, "text": part["text"], "logprobs": []}
            yield {"type": "response.content_part.done", **inner, "part": part}
        yield {"type": "response.output_item.done", "output_index": at, "item": item}
    yield {"type": "response.completed", "response": whole}


# Gemini.


def generate(request):
    kind, number = model(request)
    parts = [{"text": "".join(WORDS)}]
    if kind == "thinking":
        parts.insert(0, {"text": THOUGHTS, "thought": True})
    if kind == "tools":
        parts = [
            {"functionCall": {"id": f"call_{at}", "name": name, "args": arguments}}
            for at, (name, arguments) in enumerate(calls(request))
        ]
    usage = {
        "promptTokenCount": 19,
        "candidatesTokenCount": 10,
        "totalTokenCount": 33,
        "cachedContentTokenCount": 8,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 19}],
    }
    if kind == "thinking":
        usage["thoughtsTokenCount"] = 4
    return {
        "candidates": [{"content": {"parts": parts, "role": "model"}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": usage,
        "modelVersion": request["model"] + "-001",
        "responseId": f"resp{number}",
    }


def generate_events(request):
    kind, _ = model(request)
    whole = generate(request)
    [candidate] = whole["candidates"]
    pieces = []
    for part in candidate["content"]["parts"]:
        texts = [part.get("text")]
        if texts[0] is not None:
            texts = halves(THOUGHTS) if part.get("thought") else WORDS
        pieces += [{**part, "text": text} if text is not None else part for text in texts]
    for at, part in enumerate(pieces):
        chosen = {"content": {"parts": [part], "role": "model"}, "index": 0}
        if at == len(pieces) - 1:
            chosen["finishReason"] = "STOP"
        piece = {**whole, "candidates": [chosen]}
        # Tokens are counted as they come.
        piece["usageMetadata"] = {"promptTokenCount": 19, "totalTokenCount": 19 + at}
        if kind == "surprising" and at == 2:
            yield {**piece, "aFieldOfTheFuture": {"whatever": True}}
        elif kind == "failing" and at == 2:
            yield {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
            return
        elif at == len(pieces) - 1:
            yield {**piece, "usageMetadata": whole["usageMetadata"]}
        else:
            yield piece


# Mistral.


def mistral(request):
    kind, number = model(request)
    text = "".join(WORDS)
    message = {"role": "assistant", "tool_calls": None, "content": text}
    if kind == "thinking":
        thought = {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHTS}]}
        message["content"] = [thought, {"type": "text", "text": text}]
    if kind == "tools":
        message["content"] = ""
        message["tool_calls"] = [
            {"id": f"D681PevK{at}", "index": at, "function": {"name": name, "arguments": json.dumps(arguments)}}
            for at, (name, arguments) in enumerate(calls(request))
        ]
    return {
        "id": f"cmpl-{number}",
        "object": "chat.completion",
        "created": 1795219200,
        "model": request["model"] + "-2611",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if kind == "tools" else "stop"}],
        "usage": {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29},
    }


def mistral_events(request):
    kind, _ = model(request)
    whole = mistral(request)
    [choice] = whole.pop("choices")
    usage = whole.pop("usage")
    whole["object"] = "chat.completion.chunk"

    def chunk(delta, finish=None):
        return {**whole, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    yield chunk({"role": "assistant", "content": ""})
    if kind == "tools":
        # All of them at once, and the end with them.
        delta = {"content": "", "tool_calls": choice["message"]["tool_calls"]}
        yield {**chunk(delta, "tool_calls"), "usage": usage}
        yield "[DONE]"
        return
    for piece in halves(THOUGHTS) if kind == "thinking" else []:
        yield chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": piece}]}]})
    for word in WORDS:
        yield chunk({"content": word})
        if kind == "surprising" and word == " in":
            yield {**chunk({"content": ""}), "p": "abcdefgh"}
        if kind == "failing" and word == " in":
            yield {"object": "error", "message": "Service unavailable.", "type": "unavailable", "code": "3000"}
            return
    yield {**chunk({"content": ""}, "stop"), "usage": usage}
    yield "[DONE]"


# Cohere.

COHERE_USAGE = {
    "billed_units": {"input_tokens": 11, "output_tokens": 9},
    "tokens": {"input_tokens": 219, "output_tokens": 10},
    "cached_tokens": 64,
}


def cohere(request):
    kind, number = model(request)
    message = {"role": "assistant", "content": [{"type": "text", "text": "".join(WORDS)}]}
    if kind == "thinking":
        message["content"].insert(0, {"type": "thinking", "thinking": THOUGHTS})
    if kind == "tools":
        called = [
            {"id": f"{name}_x{at}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for at, (name, arguments) in enumerate(calls(request))
        ]
        message = {"role": "assistant", "tool_plan": THOUGHTS, "tool_calls": called}
    return {
        "id": f"c14c80c3-{number}",
        "finish_reason": "TOOL_CALL" if kind == "tools" else "COMPLETE",
        "message": message,
        "usage": COHERE_USAGE,
    }


def cohere_events(request):
    kind, _ = model(request)
    whole = cohere(request)
    message = whole["message"]
    empty = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    yield {"id": whole["id"], "type": "message-start", "delta": {"message": empty}}
    for piece in halves(message.get("tool_plan", "")):
        yield {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": piece}}}
    for at, block in enumerate(message.get("content", [])):
        name = block["type"]
        begun = {"type": name, name: ""}
        yield {"type": "content-start", "index": at, "delta": {"message": {"content": begun}}}
        for piece in halves(THOUGHTS) if name == "thinking" else WORDS:
            yield {"type": "content-delta", "index": at, "delta": {"message": {"content": {name: piece}}}}
            if kind == "surprising" and piece == " in":
                yield {"type": "an-event-of-the-future", "whatever": True}
                cited = {"start": 0, "end": 2, "text": "It", "sources": [], "type": "TEXT_CONTENT"}
                yield {"type": "citation-start", "index": 0, "delta": {"message": {"citations": cited}}}
                yield {"type": "citation-end", "index": 0}
            if kind == "failing" and piece == " in":
                delta = {"finish_reason": "ERROR", "error": "Something went wrong", "usage": COHERE_USAGE}
                yield {"type": "message-end", "delta": delta}
                return
        yield {"type": "content-end", "index": at}
    for at, call in enumerate(message.get("tool_calls", [])):
        function = call["function"]
        begun = {**call, "function": {**function, "arguments": ""}}
        yield {"type": "tool-call-start", "index": at, "delta": {"message": {"tool_calls": begun}}}
        for piece in halves(function["arguments"]):
            more = {"function": {"arguments": piece}}
            yield {"type": "tool-call-delta", "index": at, "delta": {"message": {"tool_calls": more}}}
        yield {"type": "tool-call-end", "index": at}
    yield {"type": "message-end", "delta": {"finish_reason": whole["finish_reason"], "usage": whole["usage"]}}


# Cohere's first version, which Bedrock has, too.


def first(request):
    kind, number = model(request)
    whole = {
        "response_id": f"a1b2-{number}",
        "generation_id": f"c3d4-{number}",
        "text": "" if kind == "tools" else "".join(WORDS),
        "chat_history": [{"role": "USER", "message": request["message"]}],
        "finish_reason": "COMPLETE",
        "meta": {"api_version": {"version": "1"}, **COHERE_USAGE},
    }
    if kind == "tools":
        whole["tool_calls"] = [{"name": name, "parameters": arguments} for name, arguments in calls(request)]
    return whole


def first_events(request):
    kind, _ = model(request)
    whole = first(request)
    yield {"is_finished": False, "event_type": "stream-start", "generation_id": whole["generation_id"]}
    for word in WORDS if whole["text"] else []:
        yield {"is_finished": False, "event_type": "text-generation", "text": word}
        if kind == "surprising" and word == " in":
            yield {"is_finished": False, "event_type": "an-event-of-the-future", "whatever": True}
        if kind == "failing" and word == " in":
            failed = {**whole, "text": "It rains in", "finish_reason": "ERROR"}
            yield {"is_finished": True, "event_type": "stream-end", "finish_reason": "ERROR", "response": failed}
            return
    for at, call in enumerate(whole.get("tool_calls", [])):
        delta = {"is_finished": False, "event_type": "tool-calls-chunk"}
        yield {**delta, "tool_call_delta": {"index": at, "name": call["name"]}}
        for piece in halves(json.dumps(call["parameters"])):
            yield {**delta, "tool_call_delta": {"index": at, "parameters": piece}}
    if kind == "tools":
        yield {"is_finished": False, "event_type": "tool-calls-generation", "tool_calls": whole["tool_calls"]}
    yield {"is_finished": True, "event_type": "stream-end", "finish_reason": "COMPLETE", "response": whole}


# Ollama.


def ollama(request):
    kind, _ = model(request)
    message = {"role": "assistant", "content": "".join(WORDS)}
    if kind == "thinking":
        message["thinking"] = THOUGHTS
    if kind == "tools":
        called = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls(request)]
        message = {"role": "assistant", "content": "", "tool_calls": called}
    return {
        "model": request["model"],
        "created_at": "2026-11-22T12:00:00.000000Z",
        "message": message,
        "done_reason": "stop",
        "done": True,
        "total_duration": 5191566416,
        "load_duration": 2154458,
        "prompt_eval_count": 26,
        "prompt_eval_duration": 383809000,
        "eval_count": 298,
        "eval_duration": 4799921000,
    }


def ollama_events(request):
    kind, _ = model(request)
    whole = ollama(request)
    message = whole["message"]

    def piece(**fields):
        said = {"role": "assistant", "content": "", **fields}
        return {"model": whole["model"], "created_at": whole["created_at"], "message": said, "done": False}

    for more in halves(message.get("thinking", "")):
        yield piece(thinking=more)
    for call in message.get("tool_calls", []):
        yield piece(tool_calls=[call])
    for word in WORDS if message["content"] else []:
        yield piece(content=word)
        if kind == "surprising" and word == " in":
            yield {**piece(a_field_of_the_future=True), "another": {"whatever": 1}}
        if kind == "failing" and word == " in":
            yield {"error": "an error was encountered while running the model"}
            return
    yield {**whole, "message": {"role": "assistant", "content": ""}}


# Amazon Bedrock's own.


def converse(request):
    kind, _ = model(request)
    content = [{"text": "".join(WORDS)}]
    if kind == "thinking":
        thought = {"text": THOUGHTS, "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"}
        content.insert(0, {"reasoningContent": {"reasoningText": thought}})
    for at, (name, arguments) in enumerate(calls(request)):
        content.append({"toolUse": {"toolUseId": f"tooluse_{at}", "name": name, "input": arguments}})
    return {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": "tool_use" if kind == "tools" else "end_turn",
        "usage": {
            "inputTokens": 30,
            "outputTokens": 628,
            "totalTokens": 701,
            "cacheReadInputTokens": 40,
            "cacheWriteInputTokens": 3,
        },
        "metrics": {"latencyMs": 1275},
    }


def converse_events(request):
    kind, _ = model(request)
    whole = converse(request)
    yield "messageStart", {"role": "assistant", "p": "abcdefgh"}
    for at, block in enumerate(whole["output"]["message"]["content"]):
        deltas = []
        if "reasoningContent" in block:
            thought = block["reasoningContent"]["reasoningText"]
            deltas = [{"reasoningContent": {"text": piece}} for piece in halves(thought["text"])]
            deltas.append({"reasoningContent": {"signature": thought["signature"]}})
        elif "toolUse" in block:
            call = block["toolUse"]
            begun = {"toolUse": {"toolUseId": call["toolUseId"], "name": call["name"]}}
            yield "contentBlockStart", {"contentBlockIndex": at, "start": begun, "p": "abc"}
            deltas = [{"toolUse": {"input": piece}} for piece in halves(json.dumps(call["input"]))]
        else:
            deltas = [{"text": word} for word in WORDS]
        for number, delta in enumerate(deltas):
            yield "contentBlockDelta", {"contentBlockIndex": at, "delta": delta, "p": "abcdef"}
            if kind == "surprising" and number == 2:
                yield "anEventOfTheFuture", {"whatever": True}
            if kind == "failing" and number == 2:
                yield "modelStreamErrorException", {"message": "The model failed."}
                return
        yield "contentBlockStop", {"contentBlockIndex": at, "p": "ab"}
    yield "messageStop", {"stopReason": whole["stopReason"], "p": "abcd"}
    yield "metadata", {"usage": whole["usage"], "metrics": whole["metrics"], "p": "a"}


# What the families of models say there.


def family(request):
    """Whose model is asked, by what it is given, and how many tokens the service counts of it."""
    if "anthropic_version" in request:
        return messages, messages_events, 25, 15
    if "inputText" in request:
        return titan, titan_events, 19, 10
    if "message" in request:
        return first, first_events, 219, 10
    return llama, llama_events, 19, 10


def titan(_request):
    result = {"tokenCount": 10, "outputText": "".join(WORDS), "completionReason": "FINISH"}
    return {"inputTextTokenCount": 19, "results": [result]}


def titan_events(_request):
    for word in WORDS:
        last = word == WORDS[-1]
        yield {
            "outputText": word,
            "index": 0,
            "totalOutputTextTokenCount": 10 if last else None,
            "completionReason": "FINISH" if last else None,
            "inputTextTokenCount": 19,
        }


def llama(_request):
    return {
        "generation": "".join(WORDS),
        "prompt_token_count": 19,
        "generation_token_count": 10,
        "stop_reason": "stop",
    }


def llama_events(_request):
    for at, word in enumerate(WORDS):
        count = 19 if at == 0 else None
        last = word == WORDS[-1]
        yield {
            "generation": word,
            "prompt_token_count": count,
            "generation_token_count": at + 1 if not last else 10,
            "stop_reason": "stop" if last else None,
        }


def invoke(request):
    return family(request)[0](request)


def invoke_events(request):
    kind, _ = model(request)
    pieces = list(family(request)[1](request))
    # What fails here fails as the service says it.
    pieces = pieces[:4] if kind == "failing" else pieces
    if kind != "failing":
        _, _, fresh, made = family(request)
        metrics = {"inputTokenCount": fresh, "outputTokenCount": made, "invocationLatency": 1275, "firstByteLatency": 9}
        if "anthropic_version" in request:
            metrics.update({"cacheReadInputTokenCount": 40, "cacheWriteInputTokenCount": 3})
        pieces[-1] = {**pieces[-1], "amazon-bedrock-invocationMetrics": metrics}
    for piece in pieces:
        encoded = base64.b64encode(json.dumps(piece, ensure_ascii=False).encode()).decode()
        yield "chunk", {"bytes": encoded, "p": "abcdefghijkl"}
    if kind == "failing":
        yield "modelStreamErrorException", {"message": "The model failed."}


# How it is written.


def data(event):
    text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def named(event):
    return f"event: {event['type']}\n".encode() + data(event)


def crlf(event):
    return data(event).replace(b"\n", b"\r\n")


def pinged(event):
    """With what keeps a connection alive: lines that are no events."""
    return b": ping\n\n" + data(event)


def line(event):
    return json.dumps(event, ensure_ascii=False).encode() + b"\n"


def message(event):
    """A message of an event stream."""
    name, body = event
    is_exception = name.endswith("Exception")
    fields = {
        ":exception-type" if is_exception else ":event-type": name,
        ":content-type": "application/json",
        ":message-type": "exception" if is_exception else "event",
    }
    headers = b"".join(
        struct.pack(">B%dsBH" % len(name), len(name), name.encode(), 7, len(value)) + value.encode()
        for name, value in fields.items()
    )
    payload = json.dumps(body, ensure_ascii=False).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    written = prelude + struct.pack(">I", binascii.crc32(prelude)) + headers + payload
    return written + struct.pack(">I", binascii.crc32(written))


EVENTS = "text/event-stream; charset=utf-8"
LINES = "application/x-ndjson"
MESSAGES = "application/vnd.amazon.eventstream"
LIMITED = {"message": "Too many requests, please wait before trying again."}

# By path: in one piece, streamed, of which type and how written, and how it is refused.
APIS = {
    r"/v1/chat/completions|/openai/deployments/[^/]+/chat/completions": (
        chat,
        chat_events,
        EVENTS,
        data,
        (429, {"error": {"message": "Rate limit", "type": "requests", "param": None, "code": "rate_limit_exceeded"}}),
    ),
    r"/v1/responses": (
        responses,
        responses_events,
        EVENTS,
        named,
        (429, {"error": {"message": "Rate limit", "type": "requests", "param": None, "code": "rate_limit_exceeded"}}),
    ),
    r"/v1/messages": (
        messages,
        messages_events,
        EVENTS,
        named,
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    ),
    r"/v1(?:beta)?/models/(?P<model>[^/:]+):(generateContent|(?P<stream>streamGenerateContent))": (
        generate,
        generate_events,
        EVENTS,
        crlf,
        (429, {"error": {"code": 429, "message": "Quota exceeded.", "status": "RESOURCE_EXHAUSTED"}}),
    ),
    r"/mistral/v1/chat/completions": (
        mistral,
        mistral_events,
        EVENTS,
        data,
        (429, {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited", "code": "1300"}),
    ),
    r"/v2/chat": (cohere, cohere_events, EVENTS, named, (429, LIMITED)),
    r"/v1/chat": (first, first_events, "application/stream+json", line, (429, LIMITED)),
    r"/api/chat": (ollama, ollama_events, LINES, line, (404, {"error": "model 'failing' not found"})),
    r"/model/(?P<model>[^/]+)/converse(?P<stream>-stream)?": (
        converse,
        converse_events,
        MESSAGES,
        message,
        (429, LIMITED),
    ),
    r"/model/(?P<model>[^/]+)/invoke(?P<stream>-with-response-stream)?": (
        invoke,
        invoke_events,
        MESSAGES,
        message,
        (429, LIMITED),
    ),
}


def answer(target, body):
    """Status, header fields, and the body: in one piece, or an iterator of pieces."""
    path = urllib.parse.unquote(target.split("?")[0])
    matches = [(found, api) for key, api in APIS.items() if (found := re.fullmatch(key, path))]
    assert len(matches) == 1, path
    [(found, api)] = matches
    whole, events, media, write, refusal = api
    in_path = found.groupdict()
    request = json.loads(body)
    request["model"] = in_path.get("model") or request["model"]
    streams = bool(in_path["stream"] if "stream" in in_path else request.get("stream"))
    fields = {"content-type": media}
    if streams and write is data and model(request)[0] == "surprising":
        return 200, fields, map(pinged, events(request))
    if streams:
        return 200, fields, map(write, events(request))
    fields["content-type"] = "application/json"
    status, said = 200, None
    if model(request)[0] == "failing":
        status, said = refusal
        if path.startswith("/model/"):
            fields["x-amzn-errortype"] = "ThrottlingException:http://internal.amazon.com/"
    else:
        said = whole(request)
        if whole is invoke:
            _, _, fresh, made = family(request)
            fields["x-amzn-bedrock-input-token-count"] = str(fresh)
            fields["x-amzn-bedrock-output-token-count"] = str(made)
    return status, fields, json.dumps(said, ensure_ascii=False).encode()


class Provider(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def handle(self):
        if self.connection.selected_alpn_protocol() == "h2":
            return multiplexed(self.connection)
        super().handle()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        status, fields, said = answer(self.path, body)
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        is_whole = isinstance(said, bytes)
        self.send_header(*("content-length", str(len(said))) if is_whole else ("transfer-encoding", "chunked"))
        self.end_headers()
        if is_whole:
            return self.wfile.write(said)
        for piece in said:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


def multiplexed(connection):
    """HTTP/2. Answers are small: there is room for them in every window."""
    asked = {}
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    peer.initiate_connection()
    connection.sendall(peer.data_to_send())
    while received := connection.recv(65536):
        for event in peer.receive_data(received):
            if isinstance(event, h2.events.RequestReceived):
                asked[event.stream_id] = (dict(event.headers)[":path"], bytearray())
            elif isinstance(event, h2.events.DataReceived):
                asked[event.stream_id][1].extend(event.data)
                peer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                status, fields, said = answer(*asked.pop(event.stream_id))
                peer.send_headers(event.stream_id, [(":status", str(status)), *fields.items()])
                for piece in [said] if isinstance(said, bytes) else said:
                    peer.send_data(event.stream_id, piece)
                    connection.sendall(peer.data_to_send())
                peer.end_stream(event.stream_id)
        connection.sendall(peer.data_to_send())


def serve(directory, certificate, key):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    signal.alarm(300)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    server.socket = context.wrap_socket(server.socket, server_side=True)
    port = os.path.join(directory, "providers.port")
    with open(port + ".new", "w") as file:
        file.write(str(server.server_port))
    os.rename(port + ".new", port)
    server.serve_forever()


if __name__ == "__main__":
    serve(*sys.argv[1:])
