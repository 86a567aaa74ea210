"""Records in a folder of append-only files: found by a key, checked before they are used, safe for several writers and for killed ones.

A file (a shard) belongs to the process that made it; nobody else writes into it, and what is written is never changed. A record counts once all of it is
there and its checksums fit, so that a writer may be killed at any moment. Other processes see new records when they look for one that they do not have.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import mmap
import os
import secrets
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b'mmdrmap2'
HEADER = struct.Struct('<8sIIQ32s32s')  # magic, CRC-32 of all behind it, length of the JSON, of the content, key, SHA-256 of JSON and content
STEP = 64  # records begin at multiples of it
SHARD_BYTES = 2**28
MOST_ABOUT = 2**20
STATM = Path('/proc/self/statm')


@dataclass(slots=True)
class Record:
    """Where a record is, and what it says about itself."""

    shard: Shard
    begin: int  # of the content
    length: int
    sha256: bytes
    raw: bytes  # JSON; the same object for all records that say the same
    checked: bool = False

    @property
    def about(self) -> dict[str, Any]:
        return _parsed(self.raw)

    def content(self) -> tuple[mmap.mmap, int]:
        """The file in memory, and where in it the content begins. OSError: it is gone or too short."""
        return self.shard.map_to(self.begin + self.length), self.begin


@dataclass
class Shard:
    """One file, as far as it has been read."""

    path: Path
    known: int = 0  # up to where records have been read
    mapped: mmap.mmap | None = None
    told: bool = False  # that something in it is not used

    def map_to(self, end: int) -> mmap.mmap:
        """The file in memory, at least up to ``end``. OSError: it is gone or too short."""
        if self.mapped is None or len(self.mapped) < end:
            with self.path.open('rb') as file:
                if os.fstat(file.fileno()).st_size < end:
                    raise OSError(f'{self.path} is cut short')
                # copy on write, so that tensors may be made of it; nothing is ever written
                self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self.mapped


@dataclass
class _Writer:
    shard: Shard
    file: BinaryIO
    size: int = 0
    process: int = field(default_factory=os.getpid)


@functools.lru_cache(maxsize=1024)
def _parsed(raw: bytes) -> dict[str, Any]:
    return json.loads(raw)


@dataclass
class Shards:
    """Records under one mark.

    Args:
        folder: where files lie; made when something is written.
        mark: names what the records are of. Files of other marks in the folder are not read.
        limit: bytes that all shards in the folder, of any mark, may take. Shards that were used least recently go first; this process's own stay, and
            what then finds no room is not kept.
        shard_bytes: a file that has reached it is closed, and a new one begun.
    """

    folder: Path
    mark: str
    limit: int | None = None
    shard_bytes: int = SHARD_BYTES
    full: bool = False
    records: dict[bytes, Record] = field(default_factory=dict)
    _shards: dict[str, Shard] = field(default_factory=dict)
    _writer: _Writer | None = None
    _texts: dict[bytes, bytes] = field(default_factory=dict)
    _copies: dict[bytes, list[Record]] = field(default_factory=dict)  # of several writers, or of damaged ones
    _others: int | None = None  # bytes of all other files, when a shard of this process was begun

    def __post_init__(self) -> None:
        self.prefix = hashlib.sha256(self.mark.encode()).hexdigest()[:24]
        self.refresh()

    # ---- reading ------------------------------------------------------------------------------------------

    def find(self, key: bytes) -> Record | None:
        """The record of a key (32 bytes), checked; None: there is none, or it is damaged, which is said."""
        if key not in self.records:
            self.refresh()
        while (record := self.records.get(key)) is not None and not record.checked:
            try:
                mapped, begin = record.content()
                if _checksum(record.raw, [memoryview(mapped)[begin : begin + record.length]]) != record.sha256:
                    raise ValueError('an entry does not match its SHA-256')
                record.checked = True
            except (OSError, ValueError) as error:
                warnings.warn(f'{record.shard.path}: {error}; it is not used', stacklevel=4)
                copies = self._copies.get(key)
                if copies:
                    self.records[key] = copies.pop()
                else:
                    del self.records[key]
        return record

    def refresh(self) -> None:
        """Read what other processes have written meanwhile."""
        try:
            found = {entry.name: entry.stat().st_size for entry in os.scandir(self.folder) if self._own(entry.name)}
        except FileNotFoundError:
            return
        for name in sorted(found):
            shard = self._shards.get(name)
            if shard is None:
                shard = self._shards[name] = Shard(self.folder / name)
                with contextlib.suppress(OSError):
                    os.utime(shard.path)  # used now: others go first
            if found[name] > shard.known:
                self._read_on(shard, found[name])

    def _own(self, name: str) -> bool:
        return name.startswith(self.prefix) and name.endswith('.shard')

    def _read_on(self, shard: Shard, size: int) -> None:
        try:
            file = shard.path.open('rb')
        except OSError:
            return  # evicted by another process meanwhile
        with file:
            while shard.known < size:
                key, record = _header(shard, functools.partial(os.pread, file.fileno()), shard.known)
                if record is None:
                    later = _next_record(file, shard.known, size)
                    self._tell(shard, 'an entry is damaged' if later else 'its last entry is cut short, as when its writer was stopped')
                    if not later:
                        return  # perhaps it is being written: read again when there is more
                    shard.known = later
                    continue
                end = record.begin + record.length
                if end > size:
                    self._tell(shard, 'its last entry is cut short, as when its writer was stopped')
                    return
                shard.known = -(-end // STEP) * STEP
                if record.about.get('mark') == self.mark:
                    record.raw = self._texts.setdefault(record.raw, record.raw)
                    if self.records.setdefault(key, record) is not record:
                        self._copies.setdefault(key, []).append(record)
                else:
                    self._tell(shard, 'it holds entries of another backbone')

    def _tell(self, shard: Shard, what: str) -> None:
        if not shard.told:
            shard.told = True
            warnings.warn(f'{shard.path}: {what}; that is not used', stacklevel=5)

    # ---- writing ------------------------------------------------------------------------------------------

    def append(self, key: bytes, about: dict[str, Any], parts: Sequence[memoryview]) -> Record | None:
        """Keep a record; None where the limit leaves no room, which is said once."""
        raw = json.dumps(about | dict(mark=self.mark), sort_keys=True).encode()
        raw = self._texts.setdefault(raw, raw)
        length = sum(part.nbytes for part in parts)
        sha256 = _checksum(raw, parts)
        begin_content = -(-(HEADER.size + len(raw)) // STEP) * STEP
        whole = -(-(begin_content + length) // STEP) * STEP
        if not self._room(whole):
            return None
        writer = self._writer
        if writer is None or writer.process != os.getpid() or writer.size + whole > self.shard_bytes:
            self._begin()
        writer = self._writer
        assert writer is not None
        behind = HEADER.pack(MAGIC, 0, len(raw), length, key, sha256)[12:] + raw
        head = MAGIC + struct.pack('<I', zlib.crc32(behind)) + behind
        begin = writer.size
        try:
            for part in (head, b'\0' * (begin_content - len(head)), *parts, b'\0' * (whole - begin_content - length)):
                writer.file.write(part)
            writer.file.flush()
        except BaseException:
            self.close()  # what is behind the last whole record is no record: go on in a new file
            raise
        writer.size += whole
        writer.shard.known = writer.size
        record = Record(writer.shard, begin + begin_content, length, sha256, raw, checked=True)
        self.records[key] = record
        return record

    def close(self) -> None:
        """No more is written into the file at hand."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.file.flush()
                os.fsync(self._writer.file.fileno())
                self._writer.file.close()
            self._writer = None

    def _begin(self) -> None:
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f'{self.prefix}-{os.getpid()}-{secrets.token_hex(6)}.shard'
        shard = self._shards[name] = Shard(self.folder / name)
        self._writer = _Writer(shard, shard.path.open('xb', buffering=0))
        self._others = None

    def _room(self, wanted: int) -> bool:
        """Whether so many bytes more fit; makes room by evicting files that this process does not use."""
        if self.limit is None:
            return True
        if self.full:
            return False
        own, own_path = (0, None) if self._writer is None else (self._writer.size, self._writer.shard.path)
        if self._others is None:
            self._others = sum(size for path, size, _ in self._all() if path != own_path)
        if self._others + own + wanted > self.limit:
            for path, size, _ in sorted(self._all(), key=lambda one: one[2]):
                if self._others + own + wanted <= self.limit:
                    break
                if path.name in self._shards:
                    continue
                with contextlib.suppress(OSError):
                    path.unlink()  # where it is still mapped it stays readable (POSIX), and elsewhere it stays
                    self._others -= size
        self.full = self._others + own + wanted > self.limit
        if self.full:
            warnings.warn(
                f'{self.folder} has reached its limit of {self.limit / 2**30:g} GiB with what is in use: what comes now is not kept. Raise the limit',
                stacklevel=5,
            )
        return not self.full

    def _all(self) -> list[tuple[Path, int, float]]:
        try:
            entries = [(Path(e.path), e.stat()) for e in os.scandir(self.folder) if e.name.endswith('.shard')]
        except FileNotFoundError:
            return []
        return [(path, stat.st_size, stat.st_mtime) for path, stat in entries]

    # ---- memory -------------------------------------------------------------------------------------------

    def release(self, resident: int) -> None:
        """Give mapped pages back where more than ``resident`` bytes of files are in main memory (Linux)."""
        mapped = [shard.mapped for shard in self._shards.values() if shard.mapped is not None]
        if not mapped or not STATM.exists() or not hasattr(mmap, 'MADV_DONTNEED'):
            return
        if int(STATM.read_text().split()[2]) * mmap.PAGESIZE > resident:
            for one in mapped:
                one.madvise(mmap.MADV_DONTNEED)


def _checksum(raw: bytes, parts: Iterable[memoryview]) -> bytes:
    found = hashlib.sha256(raw + b'\0')
    for part in parts:
        found.update(part)
    return found.digest()


def _header(shard: Shard, read: Callable[[int, int], bytes], place: int) -> tuple[bytes, Record | None]:
    """Key and record at a place; None: there is none, or it is damaged, or not all of its header is there. ``read(count, place)`` gives bytes."""
    head = read(1024, place)
    if len(head) < HEADER.size:
        return b'', None
    magic, crc, about, length, key, sha256 = HEADER.unpack(head[: HEADER.size])
    if magic != MAGIC or about > MOST_ABOUT:
        return b'', None
    if HEADER.size + about > len(head):
        head = read(HEADER.size + about, place)
    head = head[: HEADER.size + about]
    if len(head) < HEADER.size + about or zlib.crc32(head[12:]) != crc:
        return b'', None
    begin = place + -(-len(head) // STEP) * STEP
    return key, Record(shard, begin, length, sha256, head[HEADER.size :])


def _next_record(file: BinaryIO, place: int, size: int) -> int:
    """Where the next whole header behind ``place`` begins; 0: there is none."""
    read = functools.partial(os.pread, file.fileno())
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(MAGIC, place + 1)
        while 0 <= place < size:
            if place % STEP == 0 and _header(Shard(Path()), read, place)[1] is not None:
                return place
            place = content.find(MAGIC, place + 1)
    return 0
