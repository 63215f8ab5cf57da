"""The log never holds anybody up, and says what it had to drop."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_lines_come_in_order_with_tracebacks_and_before_what_is_written_past_the_log() -> None:
    process = run(
        """
        import logging, sys
        from engine.log import flush_log, start_log
        start_log(logging.INFO)
        log = logging.getLogger("here")
        log.debug("never")
        log.info("first %d", 1)
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("second \\ud800")
        flush_log()
        print("third", file=sys.stderr)
        log.warning("last")
        """
    )
    _, said = process.communicate(timeout=30)
    lines = said.decode().splitlines()
    assert process.returncode == 0
    assert lines[0].endswith(" INFO here: first 1")
    assert lines[1].endswith(r" ERROR here: second \ud800")
    assert lines[2] == "Traceback (most recent call last):"
    assert lines[-2] == "third"
    assert lines[-1].endswith(" WARNING here: last")


def test_lines_that_nobody_takes_are_dropped_and_counted() -> None:
    process = run(
        """
        import logging, sys
        from engine import log
        log.MAX_LINES = 100
        log.start_log(logging.INFO)
        for index in range(5000):
            logging.info("%d %s", index, "x" * 200)
        print("done", flush=True)
        sys.stdin.readline()  # the other side reads on
        log.flush_log()
        logging.info("after")
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"done\n"  # though the pipe is full
    _, said = process.communicate(b"go on\n", timeout=30)
    lines = said.decode().splitlines()
    assert process.returncode == 0
    assert 100 < len(lines) < 5000
    assert "INFO root: after" in lines[-1]  # with a notice, if the last of all were dropped
    notice = r" \((\d+) lines before this one were not taken in time\)$"
    dropped = re.findall(notice, said.decode(), re.M)
    assert sum(map(int, dropped)) + len(lines) == 5001
