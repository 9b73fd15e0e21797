"""How each function that a page defines is driven, and what it must give. A function without a drive fails the test of its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

ANY: Final = object()


@dataclass(frozen=True)
class Drive:
    """Start with `data`; then advance the clock ("2d") or send an event (name, data); then on to the end.

    ANY as the output: it depends on the time or on ids.
    """

    data: Any
    output: Any = None
    actions: tuple[str | tuple[str, Any], ...] = ()
    status: Literal["completed", "failed"] = "completed"
    evaluate_if: Callable[[str, dict[str, Any]], bool] | None = None


DRIVES: dict[str, dict[str, list[Drive]]] = {
    "README.md": {
        "onboarding": [
            Drive({"id": 7, "tenantId": "a"}, {"approved": True}, ("2d", ("approval.received", {"userId": 7}))),
            Drive({"id": 7}, {"approved": True}, (("approval.received", {"userId": 7}),)),
            Drive({"id": 7}, {"approved": False}),
        ],
        "welcome": [Drive({"id": 7}, "Hello, user 7!")],
    },
    "sdk_python/README.md": {"welcome": [Drive({"id": 7}, "Hello, user 7!")]},
    "docs/concepts.md": {
        "ship": [Drive({"order": 5}, "label-5 is on its way", ("2h",))],
        "take_money": [Drive({"amount": 9}, ANY)],
    },
    "docs/guides/steps.md": {
        "invoice": [Drive({"order": 3}, {"path": "/invoices/17.pdf"})],
        "report": [Drive({}, ANY)],
        "pages": [Drive({"pages": ["a", "b", "a"]}, ["text of a", "text of b", "text of a"])],
        "logs": [Drive({}, None, ("1h",))],
    },
    "docs/guides/sleeping.md": {"trial": [Drive({}, "reminded", ("2w", "2d"))]},
    "docs/guides/waiting-for-events.md": {
        "order": [
            Drive({"orderId": 1}, "paid with card", (("payment.received", {"orderId": 1, "method": "card"}),)),
            Drive({"orderId": 1}, "expired", (("payment.received", {"orderId": 2, "method": "card"}),)),
        ],
        "auction": [
            Drive(
                {"lot": 4},
                [100, 120],
                tuple(("bid.made", {"lot": 4, "amount": amount}) for amount in (90, 100, 95, 120)),
                evaluate_if=lambda _, event: event["data"]["amount"] >= 100,
            )
        ],
    },
    "docs/guides/errors-and-retries.md": {
        "trip": [Drive({"to": "Oslo"}, "no trip: the hotel does not answer", ("1h",))],
        "charge": [Drive({"card": "stolen"}, "declined"), Drive({"card": "good"}, "charged", ("30s",))],
    },
    "docs/guides/concurrency.md": {"import_rows": [Drive({"rows": [1, 2, 3], "tenantId": "a"}, 3)]},
    "docs/guides/parallel-steps.md": {
        "prices": [Drive({"shops": ["ab", "abc"]}, {"ab": 2, "abc": 3})],
        "parcel": [
            Drive({"email": "a@example.com"}, "delivered", (("parcel.delivered", {}),)),
            Drive({"email": "a@example.com"}, "lost"),
        ],
        "checks": [Drive({"names": ["one", "two"]}, ANY)],
        "thumbnails": [Drive({"names": ["a", "b"]}, ["a.small", "b.small"])],
    },
    "docs/guides/sending-events.md": {
        "greet": [Drive({"name": "Ada", "age": 36}, "Hello, Ada")],
        "close_cart": [Drive({"cart": 8}, ANY)],
    },
    "docs/guides/starting-runs.md": {"total": [Drive({"numbers": [1, 2]}, 3)]},
    "docs/guides/cancelling.md": {"long_work": [Drive({}, None, ("12h",))]},
    "docs/guides/testing.md": {"onboarding": [Drive({"id": 1}, {"approved": False})]},
    "docs/reference/api.md": {"onboarding": [Drive({"id": 1}, "done")]},
    "docs/guides/serving.md": {"ping": [Drive({}, "pong")]},
}
