"""Reads W&B's .wandb files, in which it keeps an offline run on disk. W&B's process writes a block at a time: if it is
killed, what was logged after the last whole block is lost."""

import importlib
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any

HEADER = 7  # bytes at the start of a .wandb file; the rest is a log in blocks, as LevelDB's
BLOCK = 2**15  # bytes
PART = struct.Struct("<IHB")  # before each part of a record: its checksum, its length and its type
WHOLE, LAST = 1, 4  # the types of parts that end a record


def records(path: pathlib.Path) -> Iterator[Any]:
    """Yields the records of a .wandb file, in order, up to the first that is incomplete or damaged."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    at, record = HEADER, b""
    with open(path, "rb") as file:
        while True:
            if BLOCK - at % BLOCK < PART.size:  # too little is left of the block for another part
                at += BLOCK - at % BLOCK
            file.seek(at)
            head = file.read(PART.size)
            if len(head) < PART.size:
                return
            checksum, length, part = PART.unpack(head)
            body = file.read(length)
            if len(body) < length or zlib.crc32(head[-1:] + body) != checksum:
                return
            at += PART.size + length
            record += body
            if part in (WHOLE, LAST):
                parsed = messages.Record()
                parsed.ParseFromString(record)
                record = b""
                yield parsed


def logged(record: Any) -> dict[str, str]:
    """Returns the values that one call of W&B's log gave, as JSON by name; {} for a record of another kind."""
    return {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
