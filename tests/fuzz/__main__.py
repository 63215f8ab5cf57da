"""Looks for inputs that break a target, guided by the code they reach, and grows its corpus.

    pip install -e '.[test,fuzz]'
    python -m tests.fuzz answer -max_total_time=60      # and any other flag of libFuzzer

What breaks is written to `crash-...` in the working directory and ends the run; the name of such
a file as an argument runs it alone. A run that found nothing adds what reached new code to the
corpus, `corpus/TARGET.hex`, an input a line, which `test_corpus` runs through in the suite.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.corpus import read_corpus, write_corpus

TARGET_NAMES = ("answer", "constraint", "schema", "stream", "url", "image", "video")
RUN = "--run"


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == [RUN]:
        run(arguments[1], arguments[2:])
    if not arguments or arguments[0] not in TARGET_NAMES:
        print(f"usage: python -m tests.fuzz {'|'.join(TARGET_NAMES)} [flags of libFuzzer]")
        return 2
    name, *flags = arguments
    command = [sys.executable, "-m", "tests.fuzz", RUN, name]
    if any(not flag.startswith("-") for flag in flags):
        return subprocess.run([*command, *flags], check=False).returncode
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(read_corpus(name)):
            (Path(folder) / str(number)).write_bytes(data)
        status = subprocess.run([*command, *flags, folder], check=False).returncode
        if status == 0:
            write_corpus(name, [path.read_bytes() for path in Path(folder).iterdir()])
    return status


def run(name: str, flags: Sequence[str]) -> None:
    """Hand over to libFuzzer, which ends the process."""
    import atheris

    with atheris.instrument_imports(
        include=["server.parse", "server.constraints", "server.media", "server.chat"]
    ):
        from tests.fuzz.targets import TARGETS

    atheris.Setup([sys.argv[0], "-max_len=512", "-len_control=0", *flags], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
