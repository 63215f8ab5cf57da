"""Why an image or a video is refused: the one error of this package's parts."""


class Unusable(Exception):
    """`reason` completes a sentence that begins with the medium's place in the request.

    It goes to the client: a fixed sentence, without paths, addresses or a library's words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


NOT_FETCHED = "could not be fetched"
NOT_DECODED = "cannot be decoded"


def too_large(max_bytes: int) -> Unusable:
    mib = max_bytes / (1 << 20)
    return Unusable(f"is larger than {f'{mib:.4g} MiB' if mib >= 1 else f'{max_bytes} bytes'}")
