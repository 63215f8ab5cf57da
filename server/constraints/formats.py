"""The `format`s of strings as regular expressions.

Each allows the part of its format that is in use, so that no reader refuses what fits it: years
have four digits and are not 0000, leap years are the plain ones, host names are short enough
whatever their labels are, and of what may be written in two ways one is taken.
"""

_N = "[0-9]{1,9}"
_DATE = (
    "(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    "|[1-9][0-9](?:0[48]|[2468][048]|[13579][26])-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_CLOCK = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_CALENDAR = f"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = "[0-9A-Fa-f]{1,4}"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,28}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,7}}"
_ATOM = "[A-Za-z0-9_+-]{1,20}"
_IN_URI = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:{_CALENDAR}(?:{_CLOCK})?|{_CLOCK}|{_N}W)",
    "uuid": "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": "|".join(
        (
            f"(?:{_HEX}:){{7}}{_HEX}",
            *(f"(?:{_HEX}:){{1,{i}}}(?::{_HEX}){{1,{7 - i}}}" for i in range(1, 7)),
            f"(?:{_HEX}:){{1,7}}:",
            f":(?::{_HEX}){{1,7}}",
            "::",
        )
    ),
    "hostname": _HOST,
    "email": rf"{_ATOM}(?:\.{_ATOM}){{0,2}}@{_LABEL}(?:\.{_LABEL}){{1,5}}",
    "uri": (
        rf"[A-Za-z][A-Za-z0-9+.-]{{0,19}}:(?:\/\/{_HOST}(?::[0-9]{{1,4}})?\/)?"
        rf"{_IN_URI}+(?:\/{_IN_URI}+)*\/?(?:\?{_IN_URI}*)?(?:#{_IN_URI}*)?"
    ),
}
