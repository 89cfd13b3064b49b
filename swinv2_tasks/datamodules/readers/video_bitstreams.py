"""What the first bytes of coded pictures say, without decoding them.

H.264: https://www.itu.int/rec/T-REC-H.264 (7.3.1, 7.3.2.1.1, D.1.8).
HEVC: https://www.itu.int/rec/T-REC-H.265 (7.4.2.2).
VP8: https://www.rfc-editor.org/rfc/rfc6386 (9.1). VP9: bitstream specification (6.2, annex B).
"""

import re
from collections.abc import Iterator

_HOLE = bytes(16)


def nal_length(codec: str, extradata: bytes) -> int:
    """Bytes of the length before each NAL unit; 0 where start codes separate them (ISO/IEC 14496-15)."""
    if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        return (extradata[21] & 3) + 1
    return 0


def _nal_units(content: bytes, nal_length: int) -> Iterator[tuple[int, int]]:
    """Where each NAL unit of a packet begins and ends."""
    position = 0
    if nal_length:
        while position + nal_length <= len(content):
            start = position + nal_length
            position = start + int.from_bytes(content[position:start], "big")
            yield start, position
        if position != len(content):
            yield position, len(content) + 1  # what is left is no unit
        return
    start = content.find(b"\0\0\1")
    while start >= 0:
        after = content.find(b"\0\0\1", start + 3)
        yield start + 3, after if after >= 0 else len(content)
        start = after


def _nal_type(codec: str, first: int) -> int:
    return first & 31 if codec == "h264" else first >> 1 & 63


def is_whole(codec: str, content: bytes, nal_length: int) -> bool:
    """Whether a packet is made of NAL units, and the coded pictures among them hold no bytes that none can hold.

    Encoders never write three zero bytes within a unit (emulation prevention): where a file has a hole, as downloads in
    pieces leave it, this does not hold. Zeros may stand before a start code, and a few after a unit without one.
    Longer runs than needed are looked for, because these are found several times faster.
    """
    if not nal_length:
        return all(run.end() == len(content) or content[run.end()] == 1 for run in re.finditer(rb"\0{3,}", content))
    for start, end in _nal_units(content, nal_length):
        if start >= end or end > len(content) or content[start] & 0x80:
            return False
        unit_type = _nal_type(codec, content[start])
        is_picture = unit_type in (1, 5) if codec == "h264" else unit_type < 32
        if is_picture and content.find(_HOLE, start, end) >= 0:
            return False
    return True


def random_access(codec: str, content: bytes, nal_length: int) -> tuple[bool, bool]:
    """What can be decoded from a packet on that the container calls a key frame.

    Returns:
        Whether frames shown later need none before it, and whether all packets after it need none.
    """
    recovers = False
    for start, end in _nal_units(content, nal_length):
        if end > len(content) or start >= end:
            break
        unit_type = _nal_type(codec, content[start])
        if codec == "hevc":
            if unit_type < 32:  # the first coded picture: an intra random access point, of which 19 and 20 are IDR
                return 16 <= unit_type <= 21, unit_type in (19, 20)
        elif unit_type == 5:
            return True, True
        elif unit_type == 6:
            recovers = recovers or _recovers_at_once(content[start + 1 : end])
        elif unit_type in (1, 2):
            return recovers, False
    return False, False


def _recovers_at_once(message: bytes) -> bool:
    """Whether supplemental information of H.264 holds a recovery point of no frames: exact from this frame on."""
    position = 0
    while position + 2 < len(message):
        numbers = []
        for _ in range(2):
            number = 0
            while position < len(message) and message[position] == 255:
                number, position = number + 255, position + 1
            if position >= len(message):
                return False
            numbers.append(number + message[position])
            position += 1
        payload_type, size = numbers
        if payload_type == 6:
            return position < len(message) and bool(message[position] & 0x80)  # ue(0) is a single 1
        position += size
    return False


def shows_frame(codec: str, content: memoryview) -> bool:
    """Whether a packet of VP8 or VP9 is a frame to be shown: both have frames that others are made of only.

    VP8: RFC 6386, 9.1. VP9: bitstream specification, 6.2 and annex B (superframes show one of their frames).
    """
    first = content[0] if len(content) else 0
    if codec == "vp8":
        return bool(first & 0x10)
    if content[len(content) - 1] & 0xE0 == 0xC0:
        return True
    bits = first << 8 | (content[1] if len(content) > 1 else 0)
    profile = (first >> 5 & 1) | (first >> 4 & 1) << 1
    position = 5 if profile == 3 else 4
    shows_existing = bits >> (15 - position) & 1
    return bool(shows_existing or bits >> (13 - position) & 1)


def may_hold_fields(extradata: bytes) -> bool:
    """Whether H.264 may code two fields of a frame apart, so that two packets make a frame; True where unknown."""
    if len(extradata) > 8 and extradata[0] == 1:
        length = int.from_bytes(extradata[6:8], "big")
        parameters = extradata[8 : 8 + length]
    else:
        units = (extradata[start:end] for start, end in _nal_units(extradata, 0))
        parameters = next((unit for unit in units if unit and unit[0] & 31 == 7), b"")
    try:
        return not _frames_only(parameters[1:].replace(b"\0\0\3", b"\0\0"))
    except (ValueError, IndexError):
        return True


def _frames_only(parameters: bytes) -> bool:
    """frame_mbs_only_flag of a sequence parameter set, which begins with its profile.

    Raises:
        ValueError: The set has scaling lists, which are not read.
    """
    bits = "".join(f"{byte:08b}" for byte in parameters[3:])
    position = 0

    def unsigned() -> int:
        nonlocal position
        zeros = bits.index("1", position) - position
        start = position + zeros
        position = start + zeros + 1
        return int(bits[start:position], 2) - 1

    def flag() -> bool:
        nonlocal position
        position += 1
        return bits[position - 1] == "1"

    unsigned()  # its number
    if parameters[0] in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
        if unsigned() == 3:  # chroma_format_idc
            flag()
        unsigned()  # bits of luma
        unsigned()  # bits of chroma
        flag()
        if flag():
            raise ValueError("scaling lists")
    unsigned()  # log2_max_frame_num
    order = unsigned()  # pic_order_cnt_type
    if order == 0:
        unsigned()
    elif order == 1:
        flag()
        unsigned()  # as the signed number has as many bits
        unsigned()
        for _ in range(unsigned()):
            unsigned()
    unsigned()  # max_num_ref_frames
    flag()
    unsigned()  # width
    unsigned()  # height
    return flag()
