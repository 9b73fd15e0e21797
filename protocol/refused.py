"""`MessageRefused`: a message that is JSON but not a message of the protocol, in words that a person can
act on.
"""


class MessageRefused(Exception):
    """Answer 400 with `code`, `message` and `place` (a JSON pointer into the body); nothing of the message
    was used.

    Codes: wrong_type, unknown_op, missing_field, bad_field, bad_name, reserved_name, out_of_range,
    too_many, too_few, too_large, too_deep, misplaced_op, duplicate_run, duplicate_function, invalid_json.
    """

    def __init__(self, code: str, message: str, place: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.place = place
