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
EXTREME_SIDES = "is less than 2 pixels wide or high, or more than 200 times as long as wide"
