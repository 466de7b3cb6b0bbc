"""The operator's own log lines: one logger, one line per event."""

import logging

log = logging.getLogger("rljob.operator")


def configure(verbose: bool = False) -> None:
    """Lines to stderr. kopf's own are kept to what a person must act on."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
