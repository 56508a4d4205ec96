"""``regraft doctor``: what this machine has, and what is therefore available."""

from __future__ import annotations

from regraft.cli.options import command
from regraft.cli.session import Session


@command("doctor")
def doctor(session: Session) -> None:
    """Show versions, devices, memory and disk of this machine, and what is available because of them."""
    from regraft.machine import machine
    from regraft.views.reports import doctor_report

    found = machine()
    session.show(lambda: doctor_report(found.to_json()), found.to_json)
