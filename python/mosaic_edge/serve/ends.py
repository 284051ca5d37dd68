"""What ends a service well."""

from __future__ import annotations

import signal


def ends() -> tuple[signal.Signals, ...]:
    """Signals to hear: of a terminal that closes (SIGHUP) too, but under nohup."""
    hung_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return signal.SIGTERM, signal.SIGINT, *hung_up
