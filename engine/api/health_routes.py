"""Health, for load balancers and supervisors: alive, and ready for work. They say nothing else, since anyone may ask."""

from __future__ import annotations

from typing import Any, Final

from engine.api.routes import HealthRoute
from engine.api.services import Services


async def is_alive(services: Services) -> tuple[bool, Any]:
    """The process answers; whether its database does is another question, for which it must not be restarted."""
    return True, {"status": "ok"}


async def is_ready(services: Services) -> tuple[bool, Any]:
    """Whether new work should be sent here."""
    if services.is_draining():
        return False, {"status": "draining"}
    ready, reason = await services.is_ready()
    return ready, {"status": "ready"} if ready else {"status": "not_ready", "reason": reason}


HEALTH_ROUTES: Final = (HealthRoute("/healthz", is_alive), HealthRoute("/readyz", is_ready))
