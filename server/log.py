"""How the processes of the server write their log: one line each, on standard error."""

import logging

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def start_log(level: int) -> None:
    logging.basicConfig(level=level, format=LOG_FORMAT)
