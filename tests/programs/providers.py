"""Providers of language models, imitated, and their SDKs, which ask them.

  providers.py serve DIR CERT KEY   answers until its parent ends; its port is in DIR/providers.port
  providers.py ask PORT CA          calls each in every way, and writes what the SDK reports, a call a line

What is answered is in the words of the providers' documentation, as of November 2026:
  chat      OpenAI, "Create chat completion" and "Streaming" (platform.openai.com/docs/api-reference/chat)
  messages  Anthropic, "Messages" and "Streaming messages" (docs.anthropic.com/en/api/messages-streaming)

The model that is asked for says what happens, and in which call: `tools-7`. Every answer has an id of its own.
"""

import asyncio
import ctypes
import http.server
import itertools
import json
import os
import signal
import ssl
import sys

KINDS = ["plain", "tools", "thinking", "surprising", "failing"]
WORDS = ["It", " rains", " in", " Ærø", ", said", ' "the', " 🦀\"", ".\n", "\\o/"]
ARGUMENTS = {"city": "Ærø", "days": [1, 2.5, None, True], "note": 'a "quoted"\nline'}


def model(request):
    kind, _, number = request["model"].partition("-")
    return kind, number


def halves(text):
    """In pieces of a few characters, as models give them."""
    return [text[at : at + 7] for at in range(0, len(text), 7)]


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
    if kind != "surprising":
        yield {**whole, "choices": [], "usage": usage}
    yield "[DONE]"


# Anthropic.


def messages(request):
    kind, number = model(request)
    content = [{"type": "text", "text": "".join(WORDS)}]
    if kind == "thinking":
        content.insert(0, {"type": "thinking", "thinking": "Let me see. " * 9, "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"})
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


ANSWERS = {"/v1/chat/completions": (chat, chat_events), "/v1/messages": (messages, messages_events)}
REFUSALS = {
    "/v1/chat/completions": (
        429,
        {"error": {"message": "Rate limit reached", "type": "requests", "param": None, "code": "rate_limit_exceeded"}},
    ),
    "/v1/messages": (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
}


class Provider(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        path = self.path.split("?")[0]
        if request.get("stream"):
            return self.stream(path, ANSWERS[path][1](request))
        if model(request)[0] == "failing":
            return self.whole(*REFUSALS[path])
        self.whole(200, ANSWERS[path][0](request))

    def whole(self, status, answer):
        body = json.dumps(answer, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, path, events):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in events:
            data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
            name = f"event: {event['type']}\n" if path == "/v1/messages" else ""
            text = f"{name}data: {data}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
        self.wfile.write(b"0\r\n\r\n")


def serve(directory, certificate, key):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    signal.alarm(300)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    port = os.path.join(directory, "providers.port")
    with open(port + ".new", "w") as file:
        file.write(str(server.server_port))
    os.rename(port + ".new", port)
    server.serve_forever()


# What is asked, and what of it the SDKs report.

QUESTION = "Does it rain? Ærø 🦀"
CHAT = {
    "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
    "tools": [{"type": "function", "function": {"name": "tool_0", "parameters": {"type": "object"}}}],
    "temperature": 0.5,
}
MESSAGES = {
    "max_tokens": 1024,
    "system": "Be brief.",
    "messages": [{"role": "user", "content": QUESTION}],
    "tools": [{"name": "tool_0", "input_schema": {"type": "object"}}],
}


def told_chat(whole):
    [choice] = whole.choices
    calls = [[call.id, call.function.name, call.function.arguments] for call in choice.message.tool_calls or []]
    usage = whole.usage
    return {
        "id": whole.id,
        "model": whole.model,
        "text": choice.message.content or "",
        "calls": calls,
        "finish": choice.finish_reason,
        "input": usage and usage.prompt_tokens,
        "output": usage and usage.completion_tokens,
        "cached": usage and usage.prompt_tokens_details.cached_tokens,
        "thought": usage and usage.completion_tokens_details.reasoning_tokens,
    }


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
    }


def report(what, told):
    print(json.dumps({**what, **told}), flush=True)


async def settle(value):
    return await value if hasattr(value, "__await__") else value


async def each(stream):
    if hasattr(stream, "__aiter__"):
        async for event in stream:
            pass
    else:
        for event in stream:
            pass


async def streamed_chat(client, request):
    manager = client.chat.completions.stream(**request, stream_options={"include_usage": True})
    if hasattr(manager, "__aenter__"):
        async with manager as stream:
            await each(stream)
            return await stream.get_final_completion()
    with manager as stream:
        await each(stream)
        return stream.get_final_completion()


async def streamed_messages(client, request):
    manager = client.messages.stream(**request)
    if hasattr(manager, "__aenter__"):
        async with manager as stream:
            await each(stream)
            return await stream.get_final_message()
    with manager as stream:
        await each(stream)
        return stream.get_final_message()


async def ask(port, ca):
    import anthropic
    import openai

    os.environ["SSL_CERT_FILE"] = ca
    base = f"https://localhost:{port}"
    numbers = itertools.count(1)
    sdks = [
        ("openai", [openai.OpenAI, openai.AsyncOpenAI], f"{base}/v1", openai.APIError),
        ("anthropic", [anthropic.Anthropic, anthropic.AsyncAnthropic], base, anthropic.APIError),
    ]
    for (sdk, clients, url, failure), streams, kind in itertools.product(sdks, [False, True], KINDS):
        for make in clients:
            client = make(api_key="made-up", base_url=url, max_retries=0)
            what = {"sdk": sdk, "client": make.__name__, "streams": streams, "asked": f"{kind}-{next(numbers)}"}
            try:
                if sdk == "openai":
                    request = {"model": what["asked"], **CHAT}
                    whole = streamed_chat(client, request) if streams else client.chat.completions.create(**request)
                    told = told_chat(await settle(whole))
                else:
                    request = {"model": what["asked"], **MESSAGES}
                    whole = streamed_messages(client, request) if streams else client.messages.create(**request)
                    told = told_messages(await settle(whole))
            except failure as error:
                told = {"error": error.type if isinstance(error, openai.APIError) else error.body["error"]["type"]}
            report(what, told)
            await settle(client.close())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        signal.alarm(300)
        asyncio.run(ask(*sys.argv[2:]))
