"""`--limit NAME=VALUE`, the variable, and the table that `deltaserve limits` prints."""

from pathlib import Path

import msgspec
import pytest

from server.arguments import LIMITS_VARIABLE, LimitsArguments, ServeArguments, parse_arguments
from server.limit_flags import describe_limits
from server.limits import BOUNDS, DEFAULT_LIMITS, Limits, value_of

README = Path(__file__).resolve().parents[3] / "README.md"


def limits(*settings: str, variable: str = "", command: str = "limits") -> Limits:
    argv = [command, *(word for setting in settings for word in ("--limit", setting))]
    arguments = parse_arguments(argv, {LIMITS_VARIABLE: variable})
    assert isinstance(arguments, LimitsArguments | ServeArguments)
    return arguments.limits


def test_flags_go_before_the_variable_and_the_variable_before_defaults():
    found = limits("max_images=3", "max-videos=1", variable="max_images=9 max_tools=7")
    assert (found.max_images, found.max_videos, found.max_tools) == (3, 1, 7)
    assert limits() == DEFAULT_LIMITS
    served = limits("max_body_bytes=1MiB", "head_timeout_s=2.5", command="serve")
    assert (served.max_body_bytes, served.head_timeout_s) == (1 << 20, 2.5)
    assert served.request_timeout_s == 600


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("max_image=3", "there is no limit max_image; did you mean max_images?"),
        ("qqqq=3", "there is no limit qqqq"),
        ("max_images", "max_images is not a limit: write NAME=VALUE"),
        ("max_images=x", "max_images: x is not a whole number"),
        ("max_images=-1", "max_images=-1 is out of its range, 0 to 4096"),
        ("max_body_bytes=9GiB", "max_body_bytes=9GiB is out of its range, 1 to 2GiB"),
        ("max_body_bytes=big", "max_body_bytes: big is not a size"),
        ("head_timeout_s=nan", "head_timeout_s: nan is not a number"),
        ("request_timeout_s=5", "there is no limit request_timeout_s"),
    ],
)
def test_what_is_wrong_is_said(setting: str, said: str, capsys: pytest.CaptureFixture[str]):
    for given in ([setting], []):
        with pytest.raises(SystemExit) as ended:
            limits(*given, variable="" if given else setting)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_defaults_lie_in_their_ranges():
    for name, bound in BOUNDS.items():
        assert bound.least <= value_of(DEFAULT_LIMITS, name) <= bound.most, name


def test_the_table_names_every_limit_once():
    lines = describe_limits(DEFAULT_LIMITS).splitlines()
    assert [line.split()[0] for line in lines] == list(BOUNDS)
    assert "64MiB" in next(line for line in lines if line.startswith("max_body_bytes"))


def test_limits_cross_to_workers_as_they_are():
    given = limits("max_images=3", "head_timeout_s=2.5")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(given), type=Limits) == given


def test_the_readme_has_the_table():
    text = README.read_text("utf-8")
    for line in describe_limits(DEFAULT_LIMITS).splitlines():
        assert line in text, line
