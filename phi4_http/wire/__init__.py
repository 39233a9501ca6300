"""JSON on the wire and values of ours: what is sent, what comes back, what a refusal means. Pure."""
