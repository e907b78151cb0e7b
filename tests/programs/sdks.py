"""The SDKs of providers of language models: calls each in every way, and writes what it reports, a call a line.

  sdks.py PORT CA

Who answers is `providers.py`; what it does is said by the model that is asked for.
"""

import asyncio
import itertools
import json
import os
import re
import signal
import sys
from types import SimpleNamespace

os.environ["AWS_EC2_METADATA_DISABLED"] = "true"

QUESTION = "Does it rain? Ærø 🦀"
BRIEF = "Be brief."
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
KINDS = ["plain", "tools", "thinking", "surprising", "failing"]
KEYS = {"aws_access_key": "made-up", "aws_secret_key": "made-up", "aws_region": "us-east-1"}


async def settle(value):
    return await value if hasattr(value, "__await__") else value


async def each(stream):
    """The pieces of a stream of either kind, or of a promise of one."""
    stream = await settle(stream)
    if hasattr(stream, "__aiter__"):
        async for piece in stream:
            yield piece
    else:
        for piece in stream:
            yield piece


async def final(manager, name):
    """What is left of a stream that an SDK puts together itself."""
    if hasattr(manager, "__aenter__"):
        async with manager as stream:
            async for _ in stream:
                pass
            return await getattr(stream, name)()
    with manager as stream:
        for _ in stream:
            pass
        return getattr(stream, name)()


# OpenAI.

CHAT_TOOLS = [{"type": "function", "function": {"name": "tool_0", "parameters": SCHEMA}}]
SAID = [{"role": "system", "content": BRIEF}, {"role": "user", "content": QUESTION}]


async def chat(client, model, streams):
    asked = {"model": model, "messages": SAID, "tools": CHAT_TOOLS, "temperature": 0.5}
    if streams:
        usage = {"include_usage": True}
        whole = await final(client.chat.completions.stream(**asked, stream_options=usage), "get_final_completion")
    else:
        whole = await settle(client.chat.completions.create(**asked))
    [choice] = whole.choices
    usage = whole.usage
    return {
        "id": whole.id,
        "model": whole.model,
        "text": choice.message.content,
        "calls": [[call.id, call.function.name, call.function.arguments] for call in choice.message.tool_calls or []],
        "finish": choice.finish_reason,
        "input": usage and usage.prompt_tokens,
        "output": usage and usage.completion_tokens,
        "cached": usage and usage.prompt_tokens_details.cached_tokens,
        "thought": usage and usage.completion_tokens_details.reasoning_tokens,
        "tier": whole.service_tier,
        "fingerprint": whole.system_fingerprint,
    }


async def responses(client, model, streams):
    tool = {"type": "function", "name": "tool_0", "parameters": SCHEMA, "strict": False}
    asked = {"model": model, "instructions": BRIEF, "input": QUESTION, "tools": [tool]}
    if streams:
        async for event in each(client.responses.create(**asked, stream=True)):
            whole = getattr(event, "response", None)
    else:
        whole = await settle(client.responses.create(**asked))
    if whole.error:
        return {"error": whole.error.code}
    items = whole.output
    return {
        "id": whole.id,
        "model": whole.model,
        "text": whole.output_text,
        "thoughts": "".join(part.text for item in items if item.type == "reasoning" for part in item.summary),
        "calls": [[item.call_id, item.name, item.arguments] for item in items if item.type == "function_call"],
        "finish": whole.status,
        "input": whole.usage.input_tokens,
        "output": whole.usage.output_tokens,
        "cached": whole.usage.input_tokens_details.cached_tokens,
        "thought": whole.usage.output_tokens_details.reasoning_tokens,
    }


# Anthropic.


async def messages(client, model, streams):
    asked = {
        "model": model,
        "max_tokens": 1024,
        "system": BRIEF,
        "messages": [{"role": "user", "content": QUESTION}],
        "tools": [{"name": "tool_0", "input_schema": SCHEMA}],
    }
    if streams:
        return told_messages(await final(client.messages.stream(**asked), "get_final_message"))
    return told_messages(await settle(client.messages.create(**asked)))


def told_messages(whole):
    blocks = whole.content
    usage = whole.usage
    return {
        "id": whole.id,
        "model": whole.model,
        "text": "".join(block.text for block in blocks if block.type == "text"),
        "thoughts": "".join(block.thinking for block in blocks if block.type == "thinking"),
        "calls": [[block.id, block.name, block.input] for block in blocks if block.type == "tool_use"],
        "finish": whole.stop_reason,
        "input": usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens,
        "output": usage.output_tokens,
        "cached": usage.cache_read_input_tokens,
        "created": usage.cache_creation_input_tokens,
        "tier": usage.service_tier,
    }


# Google.


async def generate(client, model, streams):
    tools = [{"function_declarations": [{"name": "tool_0", "description": "A tool"}]}]
    config = {
        "system_instruction": BRIEF,
        "temperature": 0.5,
        "tools": tools,
        "automatic_function_calling": {"disable": True},
    }
    asked = {"model": model, "contents": QUESTION, "config": config}
    if streams:
        pieces = [piece async for piece in each(client.models.generate_content_stream(**asked))]
    else:
        pieces = [await settle(client.models.generate_content(**asked))]
    whole = pieces[-1]
    parts = [part for piece in pieces for part in piece.candidates[0].content.parts]
    called = [part.function_call for part in parts if part.function_call]
    usage = whole.usage_metadata
    return {
        "id": whole.response_id,
        "model": whole.model_version,
        "text": "".join(part.text for part in parts if part.text and not part.thought),
        "thoughts": "".join(part.text for part in parts if part.text and part.thought),
        "calls": [[call.id, call.name, call.args] for call in called],
        "finish": whole.candidates[0].finish_reason.value,
        "input": usage.prompt_token_count,
        "output": usage.candidates_token_count + (usage.thoughts_token_count or 0),
        "cached": usage.cached_content_token_count,
        "thought": usage.thoughts_token_count,
    }


# Mistral.


async def mistral(client, model, streams):
    asked = {"model": model, "messages": SAID, "tools": CHAT_TOOLS, "temperature": 0.5}
    is_async = hasattr(client, "is_async")
    if streams:
        call = client.chat.stream_async if is_async else client.chat.stream
        pieces = [event.data async for event in each(call(**asked))]
        said = [piece.choices[0].delta for piece in pieces]
    else:
        call = client.chat.complete_async if is_async else client.chat.complete
        pieces = [await settle(call(**asked))]
        said = [pieces[0].choices[0].message]
    whole = pieces[-1]
    chunks = []
    for piece in said:
        content = piece.content or ""
        chunks += [SimpleNamespace(type="text", text=content)] if isinstance(content, str) else content
    called = [call for piece in said for call in piece.tool_calls or []]
    thoughts = [part.text for chunk in chunks if chunk.type == "thinking" for part in chunk.thinking]
    return {
        "id": whole.id,
        "model": whole.model,
        "text": "".join(chunk.text for chunk in chunks if chunk.type == "text"),
        "thoughts": "".join(thoughts),
        "calls": [[call.id, call.function.name, call.function.arguments] for call in called],
        "finish": whole.choices[0].finish_reason,
        "input": whole.usage and whole.usage.prompt_tokens,
        "output": whole.usage and whole.usage.completion_tokens,
    }


# Cohere.

ONCE = {"max_retries": 0}


async def cohere(client, model, streams):
    asked = {"model": model, "messages": SAID, "tools": CHAT_TOOLS, "temperature": 0.5, "request_options": ONCE}
    told = {"text": "", "thoughts": "", "calls": []}
    if not streams:
        end = await settle(client.chat(**asked))
        told["id"] = end.id
        told["thoughts"] = end.message.tool_plan or ""
        for block in end.message.content or []:
            told["text"] += block.text if block.type == "text" else ""
            told["thoughts"] += block.thinking if block.type == "thinking" else ""
        calls = end.message.tool_calls or []
        told["calls"] = [[call.id, call.function.name, call.function.arguments] for call in calls]
    else:
        async for event in each(client.chat_stream(**asked)):
            if event.type == "message-start":
                told["id"] = event.id
            elif event.type == "content-delta":
                content = event.delta.message.content
                told["text"] += content.text or ""
                told["thoughts"] += content.thinking or ""
            elif event.type == "tool-plan-delta":
                told["thoughts"] += event.delta.message.tool_plan
            elif event.type == "tool-call-start":
                call = event.delta.message.tool_calls
                told["calls"].append([call.id, call.function.name, ""])
            elif event.type == "tool-call-delta":
                told["calls"][-1][2] += event.delta.message.tool_calls.function.arguments
            elif event.type == "message-end":
                end = event.delta
        if end.error:
            return {"error": end.finish_reason}
    told["finish"] = end.finish_reason
    return {**told, **tokens(end.usage)}


def tokens(usage):
    """It counts them in floats."""
    used = usage.tokens
    counts = {"input": used.input_tokens, "output": used.output_tokens, "cached": usage.cached_tokens}
    return {name: int(count) for name, count in counts.items()}


async def first(client, model, streams):
    tool = {"name": "tool_0", "description": "A tool", "parameter_definitions": {"city": {"type": "str"}}}
    asked = {"model": model, "preamble": BRIEF, "message": QUESTION, "tools": [tool], "request_options": ONCE}
    if streams:
        async for event in each(client.chat_stream(**asked)):
            # One that it does not know it gives as it came.
            if getattr(event, "event_type", None) == "stream-end":
                end, whole = event.finish_reason, event.response
        if end == "ERROR":
            return {"error": end}
    else:
        whole = await settle(client.chat(**asked))
    return {
        "id": whole.response_id,
        "text": whole.text,
        "calls": [[None, call.name, call.parameters] for call in whole.tool_calls or []],
        "finish": whole.finish_reason,
        **tokens(whole.meta),
    }


# Ollama.


async def ollama(client, model, streams):
    asked = {"model": model, "messages": SAID, "tools": CHAT_TOOLS, "options": {"temperature": 0.5}}
    if streams:
        pieces = [piece async for piece in each(client.chat(**asked, stream=True))]
    else:
        pieces = [await settle(client.chat(**asked))]
    whole = pieces[-1]
    said = [piece.message for piece in pieces]
    called = [call.function for piece in said for call in piece.tool_calls or []]
    return {
        "model": whole.model,
        "text": "".join(piece.content or "" for piece in said),
        "thoughts": "".join(piece.thinking or "" for piece in said),
        "calls": [[None, call.name, call.arguments] for call in called],
        "finish": whole.done_reason,
        "input": whole.prompt_eval_count,
        "output": whole.eval_count,
    }


# Amazon Bedrock.


async def converse(client, model, streams):
    tool = {"toolSpec": {"name": "tool_0", "inputSchema": {"json": SCHEMA}}}
    asked = {
        "modelId": model,
        "system": [{"text": BRIEF}],
        "messages": [{"role": "user", "content": [{"text": QUESTION}]}],
        "toolConfig": {"tools": [tool]},
        "inferenceConfig": {"temperature": 0.5},
    }
    told = {"text": "", "thoughts": "", "calls": []}
    if not streams:
        whole = client.converse(**asked)
        for block in whole["output"]["message"]["content"]:
            told["text"] += block.get("text", "")
            if thought := block.get("reasoningContent"):
                told["thoughts"] += thought["reasoningText"]["text"]
            if call := block.get("toolUse"):
                told["calls"].append([call["toolUseId"], call["name"], call["input"]])
        usage = whole["usage"]
        told["finish"] = whole["stopReason"]
    else:
        for event in client.converse_stream(**asked)["stream"]:
            if begun := event.get("contentBlockStart"):
                call = begun["start"]["toolUse"]
                told["calls"].append([call["toolUseId"], call["name"], ""])
            if delta := event.get("contentBlockDelta", {}).get("delta"):
                told["text"] += delta.get("text", "")
                told["thoughts"] += delta.get("reasoningContent", {}).get("text", "")
                if "toolUse" in delta:
                    told["calls"][-1][2] += delta["toolUse"]["input"]
            if end := event.get("messageStop"):
                told["finish"] = end["stopReason"]
            if end := event.get("metadata"):
                usage = end["usage"]
    cached, created = usage["cacheReadInputTokens"], usage["cacheWriteInputTokens"]
    return {
        **told,
        "input": usage["inputTokens"] + cached + created,
        "output": usage["outputTokens"],
        "cached": cached,
        "created": created,
    }


FAMILIES = {
    "titan": {"inputText": QUESTION, "textGenerationConfig": {"temperature": 0.5}},
    "llama": {"prompt": QUESTION, "temperature": 0.5},
    "command": {"message": QUESTION, "preamble": BRIEF, "temperature": 0.5},
    "failing": {"message": QUESTION},
}


async def invoke(client, model, streams):
    """What the SDK says of it is a body, or its pieces, and what the service counted."""
    asked = {"modelId": model, "body": json.dumps(FAMILIES[model.split("-")[0]])}
    counted = {}
    if streams:
        pieces = []
        for event in client.invoke_model_with_response_stream(**asked)["body"]:
            pieces.append(json.loads(event["chunk"]["bytes"]))
        counted = pieces[-1].pop("amazon-bedrock-invocationMetrics")
        counted = {"input": counted["inputTokenCount"], "output": counted["outputTokenCount"]}
    else:
        whole = client.invoke_model(**asked)
        pieces = [json.loads(whole["body"].read())]
        fields = whole["ResponseMetadata"]["HTTPHeaders"]
        for name in ["input", "output"]:
            counted[name] = int(fields[f"x-amzn-bedrock-{name}-token-count"])
    end = pieces[-1]
    if "results" in end:
        [end] = pieces = end["results"]
    text = "".join(piece.get("outputText") or piece.get("generation") or piece.get("text", "") for piece in pieces)
    finish = end.get("completionReason") or end.get("stop_reason") or end.get("finish_reason")
    told = {"text": text, "calls": [], "finish": finish, **counted}
    if model.startswith("command"):
        told = {**told, "id": end.get("response", end)["response_id"], "cached": 64}
    return told


# All of them.


def word(error):
    """What an SDK says went wrong, as the API calls it; the status of a response where that has no word for it."""
    import openai

    if isinstance(error, openai.APIError):
        return error.type
    response, body = getattr(error, "response", None), getattr(error, "body", None)
    if isinstance(response, dict):
        return response["Error"]["Code"]
    if hasattr(error, "status") and hasattr(error, "details"):
        return error.status
    if isinstance(body, str):
        said = json.loads(body)
        return said.get("data", said)["type"]
    if isinstance(body, dict) and "error" in body:
        return body["error"]["type"]
    if response is not None:
        return response.headers["x-amzn-errortype"].split(":")[0]
    # Ollama's in mid-stream.
    return str(error.status_code) if error.status_code > 0 else "error"


def clients(base, ca, is_async, version):
    """Who asks, with which of its APIs: one client each, as programs have them."""
    import anthropic
    import boto3
    import botocore.config
    import cohere as cohere_sdk
    import httpx
    import httpx2
    import ollama as ollama_sdk
    import openai
    from google import genai
    from mistralai.client import Mistral

    prefix = "Async" if is_async else ""

    def http(module):
        return getattr(module, prefix + "Client")(http2=version == "2")

    def of(module, name, **options):
        return getattr(module, prefix + name)(**options)

    def mistral_client():
        client = Mistral(
            api_key="made-up",
            server_url=f"{base}/mistral",
            **{"async_client" if is_async else "client": http(httpx2)},
        )
        if is_async:
            client.is_async = True
        return client

    named = {"api_key": "made-up", "max_retries": 0}
    key = "httpx_async_client" if is_async else "httpx_client"
    gemini = genai.Client(api_key="made-up", http_options={"base_url": base, key: http(httpx)})
    co = {"api_key": "made-up", "base_url": base}
    yield chat, of(openai, "OpenAI", **named, base_url=f"{base}/v1", http_client=http(httpx2)), KINDS
    yield responses, of(openai, "OpenAI", **named, base_url=f"{base}/v1", http_client=http(httpx2)), KINDS
    azure = {"azure_endpoint": base, "api_version": "2026-10-01"}
    yield chat, of(openai, "AzureOpenAI", **named, **azure, http_client=http(httpx2)), KINDS
    yield messages, of(anthropic, "Anthropic", **named, base_url=base, http_client=http(httpx2)), KINDS
    claude = of(anthropic, "AnthropicBedrock", **KEYS, max_retries=0, base_url=base, http_client=http(httpx2))
    yield messages, claude, KINDS
    yield generate, gemini.aio if is_async else gemini, KINDS
    yield mistral, mistral_client(), KINDS
    yield cohere, of(cohere_sdk, "ClientV2", **co, httpx_client=http(httpx)), KINDS
    yield first, of(cohere_sdk, "Client", **co, httpx_client=http(httpx)), [k for k in KINDS if k != "thinking"]
    yield ollama, of(ollama_sdk, "Client", host=base, http2=version == "2"), KINDS
    if not is_async and version == "1.1":
        bedrock = boto3.client(
            "bedrock-runtime",
            region_name="us-east-1",
            aws_access_key_id="made-up",
            aws_secret_access_key="made-up",
            endpoint_url=base,
            verify=ca,
            config=botocore.config.Config(retries={"total_max_attempts": 1}),
        )
        yield converse, bedrock, KINDS
        yield invoke, bedrock, list(FAMILIES)


async def ask(port, ca):
    os.environ["SSL_CERT_FILE"] = ca
    numbers = itertools.count(1)
    for is_async, version in itertools.product([False, True], ["1.1", "2"]):
        for api, client, kinds in clients(f"https://localhost:{port}", ca, is_async, version):
            of = type(client)
            name = f"{of.__module__.split('.')[0]}.{of.__name__}"
            for streams, kind in itertools.product([False, True], kinds):
                model = f"{kind}-{next(numbers)}"
                what = {"client": name, "api": api.__name__, "async": is_async, "http": version}
                what = {**what, "streams": streams, "asked": model}
                try:
                    told = await api(client, model, streams)
                except Exception as error:
                    if kind != "failing":
                        raise
                    told = {"error": word(error)}
                print(json.dumps({**what, **told}), flush=True)


if __name__ == "__main__":
    signal.alarm(300)
    asyncio.run(ask(*sys.argv[1:]))
