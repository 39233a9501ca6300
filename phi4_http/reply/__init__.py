"""One reply: from bytes to thought, solution and outcome. Pure, but for `stream`, which is a flow."""
