"""The app: welcome a new user, let them settle in, wait for an approval, send a mail. One durable function and its two steps.

Serve it with any ASGI server, for example `hypercorn examples.onboarding.app:asgi`.
"""

from __future__ import annotations

import os
import smtplib
from email.message import EmailMessage
from typing import Any

import durable
from examples.onboarding.users import find_user

# The function says what happens; how long it takes is configuration, so that a demo takes seconds and production days.
COOLDOWN = os.environ.get("ONBOARDING_COOLDOWN", "2d")
APPROVAL_TIMEOUT = os.environ.get("ONBOARDING_APPROVAL_TIMEOUT", "7d")

app = durable.App("shop")


@app.function(
    trigger=durable.Event("user.created"),
    concurrency=durable.Concurrency(limit=2, key="tenantId"),
)
async def onboarding(event: durable.ReceivedEvent, step: durable.Step) -> dict[str, Any]:
    user = await step.run("load-user", load_user, event.data["id"])
    await step.sleep("cooldown", COOLDOWN)
    ok = await step.wait_for_event("approve", event="approval.received", match={"userId": user["id"]}, timeout=APPROVAL_TIMEOUT)
    await step.run("send-email", send_mail, user)
    return {"approved": ok is not None}


def load_user(user_id: int) -> dict[str, Any]:
    """Read the user from the app's own database."""
    user = find_user(user_id)
    if user is None:
        raise durable.NonRetriableError(f"There is no user {user_id}.")
    return user


def send_mail(user: dict[str, Any]) -> dict[str, str]:
    """Send the welcome mail. The idempotency key makes a second sending recognizable, should the process die in mid-send."""
    message = EmailMessage()
    message["From"] = "shop@example.com"
    message["To"] = user["email"]
    message["Subject"] = f"Welcome, {user['name']}!"
    message["Message-ID"] = f"<{durable.current_step().idempotency_key}@shop.example.com>"
    message.set_content(f"Hello {user['name']},\n\nyour account is ready.\n")
    host, port = os.environ.get("SMTP_HOST", "127.0.0.1"), int(os.environ.get("SMTP_PORT", "1025"))
    with smtplib.SMTP(host, port, timeout=10) as smtp:
        smtp.send_message(message)
    return {"sent_to": user["email"]}


asgi = app.asgi()
