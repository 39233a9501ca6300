"""The two clients: tables that bind flows, blocking and asynchronous."""
