"""Reading a request's body: JSON, of bounded size, in bounded time."""

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from shears.serving.errors import RequestError

READ_SECONDS = 60.0  # for a whole body


async def read_object(request: Request, most: int) -> dict[str, Any]:
    """Return the object that a body holds.

    RequestError for one over `most` bytes, too slow, cut off, or no JSON object.
    """
    try:
        async with asyncio.timeout(READ_SECONDS):
            body = await _bytes(request, most)
    except TimeoutError:
        raise RequestError(408, f"a request must come within {READ_SECONDS:.0f} s") from None
    except ClientDisconnect:
        raise RequestError(499, "the client went away before its request was whole") from None  # nobody reads it
    try:
        content = json.loads(body.decode("utf-8-sig"))  # of bytes, json would take halves of surrogate pairs
        if b"\\u" in body:
            json.dumps(content, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body must be JSON: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise RequestError(400, f"the body must be a JSON object, got {type(content).__name__}", code="invalid_json")
    return content


async def _bytes(request: Request, most: int) -> bytes:
    too_large = RequestError(413, f"a request must have at most {most:,} bytes; shorten it", code="request_too_large")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_large
    return bytes(body)
