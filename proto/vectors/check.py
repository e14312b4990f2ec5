#!/usr/bin/env python3
"""Checks the test vectors with a decoder and encoder written from ../PROTOCOL.md alone.

Needs nothing but Python 3. Prints a line per file and exits with 1 at the first difference."""

import functools
import hashlib
import hmac
import json
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

FOLDER = Path(__file__).parent
HEADER = "<IBBHHHIIIQII"  # section 1
FIELDS = ("magic version op flags status part body_length payload_length budget_ms request_id "
          "body_checksum header_checksum").split()
BODY_MAX, PAYLOAD_MAX = 65536, 16 << 20
MASK = (1 << 64) - 1

# Section 4. A type is a number's name, "text", "id", "kind", a structure's name, or [element].
PATH = {"path": "text"}
STRUCTURES = {
    "HelloRequest": {"client": "text", "version_min": "u8", "version_max": "u8", "features": "u64"},
    "HelloReply": {"server": "text", "version": "u8", "features": "u64", "block_size": "u32",
                   "body_length_max": "u32", "requests_in_flight_max": "u32", "ranges_max": "u32",
                   "shards": ["text"]},
    "StatRequest": PATH, "LoadRequest": PATH, "FreeRequest": PATH,
    "Entry": {"name": "text", "kind": "kind", "id": "id", "version": "u64", "length": "u64",
              "modified_ms": "i64"},
    "StatReply": {"entry": "Entry", "block_size": "u32"},
    "ListRequest": {"path": "text", "token": "text", "limit": "u32"},
    "ListReply": {"entries": ["Entry"], "next": "text"},
    "PartialListReply": {"left_out_count": "u64", "example": "text", "page": "ListReply"},
    "Range": {"file": "id", "version": "u64", "offset": "u64", "length": "u32"},
    "ReadReply": {"checksums": ["u32"]},
    "ReadManyRequest": {"ranges": ["Range"]},
    "AttachReply": {"node": "u64", "machine": "text", "shards": ["text"], "memory_length": "u64",
                    "lease_ms": "u32"},
    "Extent": {"offset": "u64", "length": "u32"},
    "LeaseReply": {"lease_ms": "u32", "checksum": "u32", "extents": ["Extent"]},
    "LoadReply": {"entry": "Entry", "block_count": "u64", "filled_count": "u64"},
    "FreeReply": {"block_count": "u64", "byte_count": "u64"},
    "Counter": {"name": "text", "value": "u64"},
    "StatusReply": {"server": "text", "uptime_ms": "u64", "shard_count": "u32",
                    "counters": ["Counter"]},
    "ErrorReply": {"message": "text"},
    "RingRequest": {"epoch": "u64", "first": "u32", "wait": "u8"},
    "Mount": {"prefix": "text", "source": "text", "replicas": "u8"},
    "Member": {"id": "text", "key": "u64", "weight": "u32", "zone": "text", "state": "u8",
               "address": "text", "shards": ["text"], "local": ["text"], "machine": "text",
               "run": "u64", "capacity": "u64", "server": "text"},
    "RingReply": {"cluster": "text", "epoch": "u64", "node": "text", "master": "text",
                  "is_fenced": "u8", "mounts": ["Mount"], "member_count": "u32",
                  "members": ["Member"]},
    "InventoryRequest": {"key": "u64", "epoch": "u64", "cursor": "u64"},
    "InventoryFile": {"id": "id", "version": "u64", "length": "u64", "path": "text",
                      "blocks": ["u32"]},
    "InventoryReply": {"next": "u64", "files": ["InventoryFile"]},
    "DrainRequest": {"node": "text", "undo": "u8"},
    "MountRequest": {"mount": "Mount", "remove": "u8"},
    "PinRequest": {"path": "text", "undo": "u8"},
    "PinsReply": {"pins": ["text"]},
    "ChallengeRequest": {"role": "u8", "node": "u64", "nonce": "bytes32"},
    "ChallengeReply": {"nonce": "bytes32"},
    "Proof": {"mac": "bytes32"},
    "RefreshRequest": {"path": "text", "recursive": "u8"},
    "WriteRequest": {"path": "text", "condition": "u8", "version": "u64"},
    "RenameRequest": {"path": "text", "to": "text", "condition": "u8"},
    "PutReply": {"upload": "u64", "credit": "u32"},
    "PutPartRequest": {"upload": "u64", "offset": "u64", "checksum": "u32", "bytes": ["u8"]},
    "PutEndRequest": {"upload": "u64", "length": "u64"},
    "PutAbortRequest": {"upload": "u64"},
    "CachedRequest": {"file": "id", "version": "u64", "first": "u32", "count": "u32"},
    "CachedReply": {"blocks": ["u8"]},
}
SIZES = dict(zip(STRUCTURES, (18, 41, 8, 8, 8, 49, 53, 20, 16, 32, 36, 8, 8, 36, 12, 16, 65, 16, 16, 28, 8,
                              13, 17, 85, 53, 24, 48, 16, 9, 18, 9, 8, 41, 32, 32, 9, 17, 17, 12, 28, 16, 8, 32,
                              8),
                 strict=True))
OPS = dict(enumerate((
    ("HelloRequest", "HelloReply"), ("None", "None"), ("StatRequest", "StatReply"),
    ("ListRequest", "ListReply"), ("Range", "ReadReply"), ("ReadManyRequest", "ReadReply"),
    ("LoadRequest", "LoadReply"), ("FreeRequest", "FreeReply"), ("None", "StatusReply"),
    ("None", "AttachReply"), ("ReadManyRequest", "LeaseReply"), ("ReadManyRequest", "None"),
    ("RingRequest", "RingReply"), ("Range", "ReadReply"), ("InventoryRequest", "InventoryReply"),
    ("DrainRequest", "None"), ("MountRequest", "None"), ("Range", "ReadReply"),
    ("PinRequest", "None"), ("None", "PinsReply"), ("ChallengeRequest", "ChallengeReply"),
    ("Proof", "Proof"), ("Range", "Proof"), ("RefreshRequest", "StatReply")), 1))
OPS |= dict(enumerate((
    ("WriteRequest", "PutReply"), ("PutPartRequest", "None"), ("PutEndRequest", "StatReply"),
    ("PutAbortRequest", "None"), ("WriteRequest", "None"), ("RenameRequest", "StatReply"),
    ("CachedRequest", "CachedReply")), 32))
# Section 18.
JOBS = {
    "StartJobRequest": (26, {"id": "u64", "paths": ["text"], "recursive": "u8", "pin": "u8",
                             "bytes_per_second": "u64"}),
    "CancelJobRequest": (8, {"id": "u64"}),
    "JobsRequest": (8, {"id": "u64"}),
    "JobFailure": (16, {"path": "text", "reason": "text"}),
    "Job": (103, {"id": "u64", "state": "u8", "node": "text", "first_path": "text", "path_count": "u32",
                  "recursive": "u8", "pin": "u8", "bytes_per_second": "u64", "begun_ms": "i64",
                  "recorded_ms": "i64", "file_count": "u64", "total_bytes": "u64", "block_count": "u64",
                  "filled_count": "u64", "failed_count": "u64", "failures": ["JobFailure"]}),
    "JobsReply": (8, {"jobs": ["Job"]}),
    "LoadPartRequest": (40, {"path": "text", "file": "id", "version": "u64", "first": "u32",
                             "count": "u32"}),
    "LoadCopiesRequest": (9, {"path": "text", "replicas": "u8"}),
    "LoadPartCopiesRequest": (49, {"part": "LoadPartRequest", "replicas": "u8", "holder": "text"}),
    "StartCopiesJobRequest": (27, {"job": "StartJobRequest", "replicas": "u8"}),
    "LoadPartReply": (16, {"block_count": "u32", "filled_count": "u32", "filled_bytes": "u64"}),
}
STRUCTURES |= {name: fields for name, (_, fields) in JOBS.items()}
SIZES |= {name: size for name, (size, _) in JOBS.items()}
OPS |= dict(enumerate((
    ("StartJobRequest", "None"), ("CancelJobRequest", "None"), ("JobsRequest", "JobsReply"),
    ("LoadPartRequest", "LoadPartReply"), ("LoadCopiesRequest", "LoadReply"),
    ("LoadPartCopiesRequest", "LoadPartReply"), ("StartCopiesJobRequest", "None")), 25))
NUMBERS = {"u8": "<B", "u32": "<I", "u64": "<Q", "i64": "<q"}


class Refused(Exception):
    """Why, the status of the answer, and whether the connection closes."""

def size_of(kind):
    if isinstance(kind, list) or kind == "text":
        return 8
    if kind in NUMBERS:
        return struct.calcsize(NUMBERS[kind])
    if kind in STRUCTURES:
        return sum(size_of(field) for field in STRUCTURES[kind].values())
    return {"id": 16, "kind": 1, "bytes32": 32}[kind]

# ---- section 3, reading: the area low..high shrinks as it is claimed
def need(condition):
    if not condition:
        raise Refused("BadBody", 10, False)

def utf8(data):
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        need(False)


class Reader:
    def __init__(self, body):
        self.body, self.low, self.high = body, 0, 0

    def root(self, kind):
        start = len(self.body) - size_of(kind)
        need(start >= 0)
        self.high = start
        return self.read(kind, start)

    def read(self, kind, at):
        if isinstance(kind, list):
            return self.read_list(kind[0], at)
        if kind == "text":
            return self.read_text(at)
        if kind in NUMBERS:
            return struct.unpack_from(NUMBERS[kind], self.body, at)[0]
        if kind == "id":
            return f"{int.from_bytes(self.body[at:at + 16], 'little'):032x}"
        if kind == "kind":
            need(self.body[at] in (1, 2))
            return self.body[at]
        if kind == "bytes32":
            return self.body[at:at + 32].hex()
        value = {}
        for name, field in STRUCTURES[kind].items():
            value[name] = self.read(field, at)
            at += size_of(field)
        return value

    def read_text(self, at):
        inline = self.body[at:at + 8]
        if inline[0] & 0xC0 != 0x80:
            return utf8(inline.split(b"\xff")[0])
        mark, offset = struct.unpack_from("<Ii", self.body, at)
        length, target = (mark & 0x3F) | ((mark >> 8) << 6), at + offset
        need(length >= 9 and self.low <= target and target + length <= self.high)
        self.low = target + length
        return utf8(self.body[target:target + length])

    def read_list(self, element, at):
        offset, count = struct.unpack_from("<iI", self.body, at)
        target, size = at + offset, size_of(element)
        end = target + count * size
        need(self.low <= target and end <= self.high)
        high, self.high = self.high, target
        values = [self.read(element, target + index * size) for index in range(count)]
        self.low, self.high = end, high
        return values

# ---- section 3, writing: out of line first, then the value
def encode(kind, value):
    out = bytearray()
    place(kind, value, prepare(kind, value, out), out)
    return bytes(out)

def prepare(kind, value, out):
    """Writes what `value` has out of line; returns where."""
    start = len(out)
    if isinstance(kind, list):
        prepared = [prepare(kind[0], element, out) for element in value]
        start = len(out)
        for element, where in zip(value, prepared):
            place(kind[0], element, where, out)
    elif kind == "text":
        if len(value.encode()) > 8:
            out += value.encode()
    elif kind in STRUCTURES:
        return {name: prepare(field, value[name], out) for name, field in STRUCTURES[kind].items()}
    return start

def place(kind, value, where, out):
    at = len(out)
    if isinstance(kind, list):
        out += struct.pack("<iI", where - at, len(value))
    elif kind == "text":
        data = value.encode()
        if len(data) <= 8:
            out += data.ljust(8, b"\xff")
        else:
            length = len(data)
            out += struct.pack("<Ii", (length & 0x3F) | 0x80 | ((length >> 6) << 8), where - at)
    elif kind in NUMBERS:
        out += struct.pack(NUMBERS[kind], value)
    elif kind == "id":
        out += int(value, 16).to_bytes(16, "little")
    elif kind == "kind":
        out.append(value)
    elif kind == "bytes32":
        out += bytes.fromhex(value)
    else:
        for name, field in STRUCTURES[kind].items():
            place(field, value[name], where[name], out)

# ---- section 1: headers
def header(data):
    fields = dict(zip(FIELDS, struct.unpack_from(HEADER, data)))
    if data[:4] != b"MILR":
        raise Refused("BadMagic", 10, True)
    if fields["header_checksum"] != zlib.crc32(data[:36]):
        raise Refused("BadHeaderChecksum", 10, True)
    return fields

def judge(frame, message, payload_max):
    fields, body = header(frame), frame[40:]
    if fields["body_length"] > BODY_MAX:
        raise Refused("BodyTooLarge", 14, True)
    if fields["payload_length"] > payload_max:
        raise Refused("PayloadTooLarge", 14, True)
    if fields["body_checksum"] != zlib.crc32(body):
        raise Refused("BadBodyChecksum", 11, False)
    if fields["version"] != 1:
        raise Refused("UnsupportedVersion", 12, False)
    if fields["op"] not in OPS:
        raise Refused("UnknownOp", 13, False)
    return fields, None if message == "None" else Reader(body).root(message)

# ---- sections 6 and 7: checksums and placement
def cut(offset, length, block):
    position, end = offset, offset + length
    while position < end:
        chunk, page = min(block, position + 65536), min(block, position + 4096)
        if position == 0 and end == block:
            stop, grain = end, "block"
        elif position % 65536 == 0 and chunk <= end:
            stop, grain = chunk, "chunk"
        elif position % 4096 == 0 and page <= end:
            stop, grain = page, "page"
        else:
            stop, grain = min(end, (position // 4096 + 1) * 4096), "part"
        yield position, stop - position, grain
        position = stop

@functools.cache
def content(length):
    return bytes((i ^ (i >> 8) ^ (i >> 16)) & 0xFF for i in range(length))

def mix(h):
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & MASK
    return h ^ (h >> 31)

def block_hash(file, block):
    low, high = file & MASK, file >> 64
    rotated = ((high << 32) | (high >> 32)) & MASK
    return mix(low ^ rotated ^ (block * 0x9E3779B97F4A7C15 & MASK))

# ---- section 8: the ring
WEIGHT_MAX, ZONES_MAX = 1 << 24, 128

def score(key, h):
    product = (h ^ key) * (mix(key) | 1)
    return (product >> 64) ^ (product & MASK)

def cost(score):
    score = max(score, 1)
    log = score.bit_length() - 1
    m = score << (63 - log)
    for _ in range(32):
        s = (m * m) >> 63
        log, m = (2 * log, s) if s < 1 << 64 else (2 * log + 1, s >> 1)
    return (1 << 38) - log

def best(members, h):
    """The best of members (number, key, weight, zone)."""
    firsts = {}
    for member in sorted(members, key=lambda member: (-score(member[1], h), member[1])):
        firsts.setdefault(member[2], member)
    costs = ((Fraction(cost(score(key, h)), weight), key, member)
             for member in firsts.values() for _, key, weight, _ in [member])
    return min(costs)[2]

def order(members, h, replicas):
    members = [(number, key, min(weight, WEIGHT_MAX), zone)
               for number, (key, weight, zone) in enumerate(members) if weight > 0]
    names = sorted({zone.encode() for *_, zone in members})
    zone_of = {name.decode(): at if at < ZONES_MAX else 0 for at, name in enumerate(names)}
    found = []
    while members:
        taken = {zone_of[member[3]] for member in found} if len(found) < replicas else ()
        apart = [member for member in members if zone_of[member[3]] not in taken]
        found.append(best(apart or members, h))
        members.remove(found[-1])
    return [member[0] for member in found]

def weight_of(capacity):
    weight = min(max(capacity >> 20, 1), WEIGHT_MAX)
    spare = weight.bit_length() - 5
    if spare > 0:
        weight = (weight + (1 << (spare - 1))) >> spare << spare
    return weight

# ---- the files
def vectors(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    return [dict(line.split(": ", 1) for line in vector.strip("\n").split("\n"))
            for vector in text.split("\n\n")[1:]]

def data(text):
    return b"" if text == "-" else bytes.fromhex(text)

def same(vector, left, right):
    if left != right:
        sys.exit(f"differs: {vector}\n  {left}\n  {right}")

def check_frame(reply, vector):
    title, message, value = vector["name"], vector["message"], json.loads(vector["value"])
    head, body, payload = (data(vector[key]) for key in ("header_hex", "body_hex", "payload_hex"))
    if title == "refused_frame":  # its op means nothing
        fields, decoded = header(head), Reader(body).root(message)
    else:
        fields, decoded = judge(head + body, message, PAYLOAD_MAX)
        failed = reply and fields["status"] != 0 and message in ("ErrorReply", "None")
        wanted = OPS[fields["op"]][reply]
        if reply and wanted == "ListReply" and fields["flags"] & 4:
            same(title, value["page"], Reader(body).root(wanted))
            wanted = "PartialListReply"
        same(title, True, failed or message == wanted)
    same(title, decoded, value)
    same(title, b"" if message == "None" else encode(message, value), body)
    wanted = json.loads(vector["header"])
    same(title, {key: fields[key] for key in wanted}, wanted)
    same(title, (len(body), len(payload)), (fields["body_length"], fields["payload_length"]))
    built = b"MILR" + struct.pack("<BBHHHIIIQ", *(wanted[key] for key in FIELDS[1:10]))
    built += struct.pack("<I", zlib.crc32(body))
    same(title, built + struct.pack("<I", zlib.crc32(built)), head)
    if message == "ReadReply":
        block = content(70000)
        pieces = cut(block.index(payload), len(payload), len(block))
        same(title, [zlib.crc32(block[at:at + size]) for at, size, _ in pieces], value["checksums"])

def check_invalid(vector):
    try:
        judge(data(vector["frame_hex"]), vector["message"], 0)
        sys.exit(f"accepted: {vector['name']}")
    except Refused as refused:
        wanted = (vector["error"], int(vector["status"]), vector["closes"] == "true")
        same(vector["name"], refused.args, wanted)

def check_checksum(vector):
    length, offset, size = (int(vector[key]) for key in ("block_length", "offset", "length"))
    block = content(16 << 20)
    pieces = [(*piece, zlib.crc32(block[piece[0]:piece[0] + piece[1]]))
              for piece in cut(offset, size, length)]
    same(vector, len(pieces), int(vector["count"]))
    if "digest" in vector:
        values = struct.pack(f"<{len(pieces)}I", *(piece[3] for piece in pieces))
        same(vector, f"{zlib.crc32(values):08x}", vector["digest"])
    else:
        texts = [f"{at}+{count} {grain} {value:08x}" for at, count, grain, value in pieces]
        same(vector, ", ".join(texts), vector["pieces"])

def check_tag(vector):
    named = struct.pack("<QQQI", int(vector["file"], 16) & MASK, int(vector["file"], 16) >> 64,
                        int(vector["version"], 16), int(vector["block"]))
    same(vector, f"{zlib.crc32(named):08x}", vector["tag"])

# ---- section 16: proofs
def code(secret, purpose, text):
    return hmac.new(secret, purpose + b"\0" + text, hashlib.sha256).hexdigest()

def check_proof(vector):
    secret = vector["secret"].encode()
    text = struct.pack("<BQ", int(vector["role"]), int(vector["node"]))
    text += bytes.fromhex(vector["client_nonce"]) + bytes.fromhex(vector["node_nonce"])
    same("client", code(secret, b"millrace 1 prove client", text), vector["client_proof"])
    same("node", code(secret, b"millrace 1 prove node", text), vector["node_proof"])
    length = int(vector["block_length"])
    text = int(vector["file"], 16).to_bytes(16, "little")
    text += struct.pack("<QII", int(vector["version"]), int(vector["block"]), length)
    same("block", code(secret, b"millrace 1 block", text + content(length)), vector["block_code"])

def check_placement(vector):
    h = block_hash(int(vector["file"], 16), int(vector["block"]))
    same(vector, f"{h:016x}", vector["hash"])
    for count in (1, 3, 8, 256):
        same(vector, (h * count) >> 64, int(vector[f"shard_of_{count}"]))

def check_ring(vector):
    if vector["name"] == "weight_of":
        weights = [weight_of(int(capacity)) for capacity in vector["capacities"].split(" ")]
        same("weight_of", weights, [int(weight) for weight in vector["weights"].split(" ")])
        return
    fields = (member.split(" ") for member in vector["members"].split(", "))
    members = [(int(key, 16), int(weight), zone.strip("-")) for key, weight, zone in fields]
    columns = ("hashes", "owner", "replicas_1", "replicas_2", "replicas_3")
    for h, owner, *orders in zip(*(vector[column].split(", ") for column in columns), strict=True):
        for replicas, wanted in enumerate(orders, 1):
            found = order(members, int(h, 16), replicas)
            same((vector["name"], h), " ".join(map(str, found[:5])) or "-", wanted)
            same((vector["name"], h), str(found[0]) if found else "-", owner)

def check_examples():
    """Numbers that are in the text."""
    same("CRC-32", zlib.crc32(b"123456789"), 0xCBF43926)
    h = block_hash(0x00112233445566778899AABBCCDDEEFF, 1)
    same("hash", h, 0xA36D6272817ABE05)
    pair = ((0x0123456789ABCDEF, 0xB2C058E4EBB5112D, 0x5664380AC797395B, 6730999145),
            (0x9E3779B97F4A7C15, 0xE220A8397B1DCDAF, 0x0A7F294D023D2871, 19791779565))
    for key, *wanted in pair:
        same("score", [mix(key) | 1, score(key, h), cost(score(key, h))], wanted)
    for weights, owner in (((64, 64), 0), ((64, 192), 1)):
        members = [(key[0], weight, "") for key, weight in zip(pair, weights)]
        same("owner", order(members, h, 1)[0], owner)
    costs = {0: 1 << 38, 1: 274877906944, 3: 268070544839, 10**18: 18061601455,
             1 << 32: 137438953472, 0x7FFFFFFFFFFFFFFF: 4294967297, 1 << 63: 4294967296,
             0xCBF43926CBF43926: 1408319902, MASK: 1}
    for number, wanted in costs.items():
        same("cost", cost(number), wanted)

def main():
    for kind, size in SIZES.items():
        same(kind, size_of(kind), size)
    check_examples()
    checks = {"requests": functools.partial(check_frame, 0),
              "replies": functools.partial(check_frame, 1), "invalid": check_invalid,
              "checksum": check_checksum, "tag": check_tag, "proof": check_proof,
              "placement": check_placement, "ring": check_ring}
    for name, check in checks.items():
        found = vectors(f"{name}.txt")
        for vector in found:
            check(vector)
        print(f"{name}: {len(found)} vectors hold")


if __name__ == "__main__":
    main()
