"""Limits on the fields of wire models that the operator may set: read while a request is parsed.

`parse_wire` passes the server's `Limits` as pydantic's context. A list that is too long is refused
before its entries are looked at. In a JSON schema a limit stands as `x-limit`, by name, until
`with_values` writes what it is: models are of the program, and limits of one server.
"""

from dataclasses import dataclass
from typing import Any, cast

from pydantic import (
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from server.limits import DEFAULT_LIMITS, Limits, value_of

NAMED = "x-limit"
_BOTH_SIDES = "x-limit-both-sides"
_LARGEST = {"integer": "maximum", "number": "maximum", "array": "maxItems", "string": "maxLength"}


def limits_of(info: ValidationInfo) -> Limits:
    return DEFAULT_LIMITS if info.context is None else cast(Limits, info.context)


def breaks(rule: str) -> PydanticCustomError:
    return PydanticCustomError("rule", "{rule}", {"rule": rule})


@dataclass(frozen=True, slots=True)
class AtMost:
    """Annotates a field: its number, or the length of its list, is at most the limit."""

    limit: str
    both_sides: bool = False  # of zero

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_wrap_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        described = handler(schema)
        for one in described.get("anyOf", [described]):
            if one.get("type") in _LARGEST:
                one[NAMED] = self.limit
                if self.both_sides:
                    one[_BOTH_SIDES] = True
        return described

    def _check(
        self, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> list[Any] | float | None:
        most = value_of(limits_of(info), self.limit)
        if isinstance(value, list) and len(cast(list[Any], value)) > most:
            raise breaks(f"must have at most {most} entries")
        checked = read(value)
        if isinstance(checked, int | float):
            if checked > most:
                raise breaks(f"must be at most {most}")
            if self.both_sides and checked < -most:
                raise breaks(f"must be at least {-most}")
        return checked


def with_values(schema: Any, limits: Limits) -> Any:
    """A JSON schema, with what the limits in it are."""
    if isinstance(schema, list):
        return [with_values(one, limits) for one in cast(list[Any], schema)]
    if not isinstance(schema, dict):
        return schema
    fields = cast(dict[str, Any], schema)
    written = {
        key: with_values(value, limits)
        for key, value in fields.items()
        if key not in (NAMED, _BOTH_SIDES)
    }
    if NAMED in fields:
        most = value_of(limits, fields[NAMED])
        written[_LARGEST[fields["type"]]] = most
        if _BOTH_SIDES in fields:
            written["minimum"] = -most
    return written
