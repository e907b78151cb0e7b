"""Servers of the Model Context Protocol and clients of them, by the SDK.

  tools.py serve DIR CERT KEY   answers until its parent ends; its port is in DIR/tools.port
  tools.py ask PORT CA          calls each in every way, and writes what the SDK reports, a call a line

Served are both transports, with and without sessions, answers in JSON and in events: /json, /events, /stateless, /sse.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import ssl
import sys
import warnings

import httpx2
import uvicorn
from mcp import types
from mcp.client.client import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount

warnings.simplefilter("ignore")


class Sure(BaseModel):
    sure: bool


def server():
    tools = MCPServer("tools", log_level="ERROR")

    @tools.tool()
    def add(a: int, b: int) -> int:
        return a + b

    @tools.tool()
    async def echo(text: str, context: Context) -> str:
        await context.report_progress(1, 2, "half of it")
        return text

    @tools.tool()
    def fail() -> str:
        raise ValueError("It rains. Ærø 🦀")

    @tools.tool()
    async def confirm(context: Context) -> str:
        answer = await context.elicit("Are you sure? Ærø 🦀", Sure)
        return answer.action

    @tools.resource("note://{name}")
    def note(name: str) -> str:
        return f"A note about {name}."

    @tools.prompt()
    def greet(name: str) -> str:
        return f"Greet {name}."

    return tools


def apps():
    """By their paths."""
    return {
        "json": server().streamable_http_app(json_response=True),
        "events": server().streamable_http_app(),
        "stateless": server().streamable_http_app(stateless_http=True),
        "sse": server().sse_app(),
    }


async def serve(directory, certificate, key):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    served = apps()

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with contextlib.AsyncExitStack() as stack:
            for each in served.values():
                await stack.enter_async_context(each.router.lifespan_context(each))
            yield

    routes = [Mount(f"/{name}", app) for name, app in served.items()]
    app = Starlette(routes=routes, lifespan=lifespan)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, ssl_certfile=certificate, ssl_keyfile=key, log_level="error")
    path = os.path.join(directory, "tools.port")
    with open(path + "~", "w") as file:
        file.write(str(listener.getsockname()[1]))
    os.rename(path + "~", path)
    await uvicorn.Server(config).serve([listener])


def plain(result):
    return result.model_dump(mode="json", by_alias=True, exclude_none=True)


def answers(way):
    """To what a server asks."""

    async def answer(context, params):
        said = types.ElicitResult(action="accept", content={"sure": True})
        report = {"way": way, "method": "elicitation/create", "message": params.message, "result": plain(said)}
        print(json.dumps(report), flush=True)
        return said

    return answer


async def calls(client, way):
    """Each asks for something that says where it comes from."""

    async def report(method, name, ask, arguments=None):
        try:
            said = {"result": plain(await ask)}
        except Exception as error:
            said = {"error": {"code": error.error.code, "message": error.error.message}}
        print(json.dumps({"way": way, "method": method, "name": name, "arguments": arguments, **said}), flush=True)

    async def call(name, arguments):
        await report("tools/call", name, client.call_tool(name, arguments), arguments)

    await report("tools/list", None, client.list_tools())
    await call("add", {"a": 1, "b": 41})
    await call("echo", {"text": f"{way}: Ærø 🦀 \"\\\n" + "long " * 5000})
    await call("fail", {})
    # Only there can a server ask: before 2026-07-28, and where an answer is a stream that knows its client.
    if way in ("events legacy", "sse legacy"):
        await call("confirm", {})
    await call("none", {"a": [1, 2.5, None, True]})
    await report("resources/read", "note://rain", client.read_resource("note://rain"))
    await report("resources/read", "other://rain", client.read_resource("other://rain"))
    await report("prompts/get", "greet", client.get_prompt("greet", {"name": "Ærø"}))


async def ask(port, certificate):
    context = ssl.create_default_context(cafile=certificate)

    def client_of(headers=None, timeout=None, auth=None):
        return httpx2.AsyncClient(verify=context, headers=headers, timeout=30)

    for path in ["json", "events", "stateless"]:
        for mode in ["legacy", "auto"]:
            async with client_of() as http:
                transport = streamable_http_client(f"https://127.0.0.1:{port}/{path}/mcp", http_client=http)
                way = f"{path} {mode}"
                async with Client(transport, mode=mode, cache=None, elicitation_callback=answers(way)) as client:
                    await calls(client, way)
    transport = sse_client(f"https://127.0.0.1:{port}/sse/sse", httpx_client_factory=client_of)
    way = "sse legacy"
    async with Client(transport, mode="legacy", cache=None, elicitation_callback=answers(way)) as client:
        await calls(client, way)


def main():
    command, *rest = sys.argv[1:]
    asyncio.run({"serve": serve, "ask": ask}[command](*rest))


main()
