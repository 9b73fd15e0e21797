"""The numbers of the protocol, each once. SPEC.md section 2 is where they come from; nothing here decides
anything.
"""

from typing import Final

PROTOCOL_VERSION: Final = 1

EVENT_BYTES_MAX: Final = 1 << 20
STEP_RESULT_BYTES_MAX: Final = 4 << 20
ERROR_BYTES_MAX: Final = 64 << 10
BODY_BYTES_MAX: Final = 64 << 20
# What an app with references takes in one call, and what one answer with values carries unless a single value is larger.
CALL_BYTES_MAX: Final = 4 << 20
# Values from here on travel by reference where both sides can.
REF_BYTES_MIN: Final = 64 << 10
REFS_PER_MESSAGE_MAX: Final = 1_000
REF_CHARACTERS_MAX: Final = 128
ALIVE_RUNS_MAX: Final = 10_000

EVENTS_PER_MESSAGE_MAX: Final = 1_000
ENTRIES_PER_MESSAGE_MAX: Final = 1_000
MEMO_ENTRIES_MAX: Final = 10_000
TRIGGERS_MAX: Final = 10
MATCH_PATHS_MAX: Final = 8
RETRIES_MAX: Final = 100

SIGNATURE_AGE_SECONDS_MAX: Final = 300
WAIT_SECONDS_MAX: Final = 30
RETRY_AFTER_SECONDS_MIN: Final = 1
RETRY_AFTER_SECONDS_MAX: Final = 86_400

# A hundred years of 365 days. Any length of time beyond it is a mistake in units, and would leave the range
# of dates later.
LENGTH_SECONDS_MAX: Final = 3_153_600_000

# Deepest nesting of a payload. A body may nest deeper by what the protocol itself puts around a payload (at
# most 6 in `invoke`).
PAYLOAD_DEPTH_MAX: Final = 100
BODY_DEPTH_MAX: Final = 110

INTEGER_MAX: Final = 2**53 - 1
# Counts (attempts, positions) live in 32-bit columns and in 32-bit integers of small hosts.
COUNT_MAX: Final = 2**31 - 1
