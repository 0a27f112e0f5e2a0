"""What W&B has on disk of a run that is offline. Its process writes a block at a time: what it was told after the last
whole one is gone with it, if it is killed."""

import importlib
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any

HEADER = 7  # bytes of a .wandb file, after which it is a log as LevelDB's is, in blocks
BLOCK = 2**15
PART = struct.Struct("<IHB")  # what comes before each part of a record: its checksum, its length and which part it is
WHOLE, LAST = 1, 4  # parts that end a record


def records(path: pathlib.Path) -> Iterator[Any]:
    """The records of a .wandb file, in order, up to the first that is not there as a whole."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    at, record = HEADER, b""
    with open(path, "rb") as file:
        while True:
            if BLOCK - at % BLOCK < PART.size:  # too little was left of the block
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
    """What a record says was logged at once: JSON by name; nothing of a record of another kind."""
    return {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
