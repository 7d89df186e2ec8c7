"""What a broker's message must look like before anything here touches it: one of our tasks, in JSON, and nothing else.

Celery puts much into a message besides the task's name and its arguments: callbacks, chords and chains that are run
afterwards, times before which it must wait, where it is to be put back. Whoever can write to the broker would decide
on them. So a message is not passed on but written anew, from the few fields that our own messages use.
"""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from bank.errors import Rejected
from workers.broker.messages import NOOP_TASK, TASK, first_fault

BODY_MAX = 4_000_000
"""The longest body, in characters of base64: twice that of a job with as many orders as it may have."""
RETRIES_MAX = 2**31 - 1

Opened = tuple[list[Any], dict[str, Any], dict[str, Any]]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _DeliveryInfo(_Part):
    redelivered: bool = False


class _Properties(_Part):
    delivery_tag: Name
    body_encoding: Literal["base64"]
    delivery_info: _DeliveryInfo = _DeliveryInfo()


class _Envelope(_Part):
    body: Annotated[str, Field(min_length=1, max_length=BODY_MAX)]
    content_type: Annotated[Literal["application/json"], Field(alias="content-type")]
    content_encoding: Annotated[Literal["utf-8"], Field(alias="content-encoding")]
    properties: _Properties


class _Headers(_Part):
    task: Literal[TASK, NOOP_TASK]  # type: ignore[valid-type]
    id: Name
    retries: Annotated[int, Field(ge=0, le=RETRIES_MAX)] = 0
    eta: None = None  # a pause is made before publishing; a worker holds nothing for later
    expires: None = None


class _CommandHeaders(_Part):
    compression: None = None


class _Job(_Envelope):
    headers: _Headers


class _Command(_Envelope):
    headers: _CommandHeaders = _CommandHeaders()


class _Delivered(_Part):
    """What RabbitMQ hands over beside the body."""

    content_type: Literal["application/json"]
    content_encoding: Literal["utf-8"]
    application_headers: _Headers


class _DeliveredCommand(_Part):
    application_headers: _CommandHeaders = _CommandHeaders()


class _MarkedProperties(_Part):
    delivery_info: dict[str, Any]


class _Marked(_Part):
    headers: dict[str, Any]
    properties: _MarkedProperties


def job(raw: object, queue: str) -> dict[str, Any]:
    """Return the message of a job, written anew. Raises Rejected, with the first thing that is wrong with it.

    If it has to be put back, that is into ``queue``, where it came from.
    """
    try:
        given = _Job.model_validate(raw)
    except ValidationError as error:
        raise Rejected(f"not a message: {first_fault(error)}") from None
    _open_body(_decode(given.body))
    return _anew(given, queue, given.properties.delivery_tag, given.body, "base64")


def open_job(raw: bytes, queue: str, tag: str) -> dict[str, Any]:
    """Return the message of a job from what lies in the queue, under the tag that it was noted with; as ``job`` does.

    Its body is opened here, and not again by Celery, which would do it twice.
    """
    try:
        given = _Job.model_validate_json(raw)
    except ValidationError as error:
        raise Rejected(f"not a message: {first_fault(error)}") from None
    body = _decode(given.body)
    opened = _open_body(body)
    return {**_anew(given, queue, tag, body, None), "opened": opened}


def open_delivery(body: str | bytes, properties: Mapping[str, Any]) -> tuple[dict[str, Any], Opened]:
    """Return the properties of a job that RabbitMQ delivers, written anew, and what its body says; as ``job`` does."""
    try:
        given = _Delivered.model_validate(properties)
    except ValidationError as error:
        raise Rejected(f"not a message: {first_fault(error)}") from None
    _check_length(body)
    headers = given.application_headers
    anew = {
        "content_type": given.content_type,
        "content_encoding": given.content_encoding,
        "application_headers": _headers_anew(headers),
        "correlation_id": headers.id,
        "delivery_mode": 2,
        "priority": 0,
    }
    return anew, _open_body(body)


def check_delivered_command(body: str | bytes, properties: Mapping[str, Any]) -> None:
    """Raise Rejected unless this can be the message of a remote-control command, as RabbitMQ delivers it."""
    try:
        _DeliveredCommand.model_validate(properties)
    except ValidationError as error:
        raise Rejected(f"not a command: {first_fault(error)}") from None
    _check_length(body)


def _check_length(body: str | bytes) -> None:
    if not 0 < len(body) <= BODY_MAX:
        raise Rejected(f"not a message: body: {len(body):,} bytes")


def _headers_anew(headers: _Headers, **more: object) -> dict[str, Any]:
    return {
        "lang": "py",
        "task": headers.task,
        "id": headers.id,
        "root_id": headers.id,
        "parent_id": None,
        "retries": headers.retries,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        **more,
    }


def _anew(given: _Job, queue: str, tag: str, body: str | bytes, encoding: str | None) -> dict[str, Any]:
    headers = given.headers
    return {
        "body": body,
        "content-type": given.content_type,
        "content-encoding": given.content_encoding,
        "headers": _headers_anew(headers, origin=queue),
        "properties": {
            "correlation_id": headers.id,
            "delivery_info": {
                "exchange": "",
                "routing_key": queue,
                "redelivered": given.properties.delivery_info.redelivered,
            },
            "delivery_mode": 2,
            "priority": 0,
            "body_encoding": encoding,
            "delivery_tag": tag,
        },
    }


def check_marks(raw: object) -> None:
    """Raise Rejected if this has no place for the mark of a message that is delivered again.

    Nothing else is asked: what comes back may be another application's, that uses the same Redis.
    """
    try:
        _Marked.model_validate(raw)
    except ValidationError as error:
        raise Rejected(f"not a message: {first_fault(error)}") from None


def check_command(raw: object) -> None:
    """Raise Rejected unless this can be the message of a remote-control command: Celery checks the rest of it."""
    try:
        _Command.model_validate(raw)
    except ValidationError as error:
        raise Rejected(f"not a command: {first_fault(error)}") from None


def _decode(body: str) -> bytes:
    try:
        return a2b_base64(body, strict_mode=True)
    except ValueError as error:
        raise Rejected(f"not a message: body: {type(error).__name__}") from None


def _open_body(body: str | bytes) -> Opened:
    """Return what a body says: one argument, and nothing that would be run when the task has ended.

    Raises Rejected if it says anything else.
    """
    arguments, named, after = None, None, None
    try:
        arguments, named, after = from_json(body)
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises, it is the message's fault
        raise Rejected(f"not a message: body: {type(error).__name__}") from None
    if not isinstance(arguments, list) or len(arguments) != 1 or named:
        raise Rejected("not a message: body: a task takes one argument")
    if not isinstance(after, dict) or any(after.values()):
        raise Rejected("not a message: body: callbacks, chains and chords are not run")
    return arguments, {}, after
