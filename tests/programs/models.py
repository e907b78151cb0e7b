"""Streamed answers of two providers of language models, imitated.

The kinds of events, their order and their fields are those of the providers' documentation. A client that asks for
the model "surprising" also gets a kind of event that it can't know, which both documents tell it to expect.
  messages   Anthropic, "Streaming messages" (docs.anthropic.com/en/api/messages-streaming)
  responses  OpenAI, "Streaming API responses" (developers.openai.com/docs/guides/streaming-responses) and the
             reference of its events
both as of November 2026. The words are ours.
"""

import json


def pieces(rng):
    """What a model says, a few words at a time, with characters of one to four bytes; one piece is long."""
    words = ["alpha", "żółw", "☃", "🦀", "delta\n", '"quoted"', "\\", "omega"]
    said = ["".join(rng.choice(words) + " " for _ in range(rng.randint(1, 9))) for _ in range(300)]
    return said[:150] + ["long " * 9000] + said[150:]


def event(kind, **fields):
    return ("event: %s\ndata: %s\n\n" % (kind, json.dumps({"type": kind, **fields}, ensure_ascii=False))).encode()


def messages(request, rng):
    said = pieces(rng)
    message = {
        "id": "msg_imitated",
        "type": "message",
        "role": "assistant",
        "model": request["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 25, "output_tokens": 1},
    }
    yield event("message_start", message=message)
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield event("ping")
    for number, text in enumerate(said):
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
        if number == 100 and request["model"] == "surprising":
            yield event("an_event_of_the_future", whatever=True)
    yield event("content_block_stop", index=0)
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    yield event("message_delta", delta=end, usage={"output_tokens": len(said)})
    yield event("message_stop")


def responses(request, rng):
    said = pieces(rng)
    number = -1

    def numbered(kind, **fields):
        nonlocal number
        number += 1
        return event(kind, sequence_number=number, **fields)

    text = "".join(said)
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "msg_imitated", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    response = {
        "id": "resp_imitated",
        "object": "response",
        "created_at": 1795219200,
        "status": "in_progress",
        "model": request["model"],
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
    }
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield numbered("response.created", response=response)
    yield numbered("response.in_progress", response=response)
    started = {**item, "status": "in_progress", "content": []}
    yield numbered("response.output_item.added", output_index=0, item=started)
    yield numbered("response.content_part.added", **place, part={**part, "text": ""})
    for at, piece in enumerate(said):
        yield numbered("response.output_text.delta", **place, delta=piece)
        if at == 100 and request["model"] == "surprising":
            yield numbered("response.an_event_of_the_future", whatever=True)
    yield numbered("response.output_text.done", **place, text=text)
    yield numbered("response.content_part.done", **place, part=part)
    yield numbered("response.output_item.done", output_index=0, item=item)
    usage = {
        "input_tokens": 25,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": len(said),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 25 + len(said),
    }
    yield numbered("response.completed", response={**response, "status": "completed", "output": [item], "usage": usage})


STREAMS = {"/v1/messages": messages, "/v1/responses": responses}
