"""Record real exchanges once, replay them for ever: format, transports, loopback server, proxy, pytest plugin."""
