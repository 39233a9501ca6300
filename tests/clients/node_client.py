"""OpenAI's client for Node, from the folder that `NODE_PATH` names."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from clients.check import QUESTION, Case, Seen

_SCRIPT = """
const { createRequire } = require('module');
const { OpenAI } = require('openai');
(async () => {
  const { cases, question } = JSON.parse(require('fs').readFileSync(0, 'utf8'));
  const text = (value) => value || '';
  for (const { url, name, stream } of cases) {
    const client = new OpenAI({ baseURL: url, apiKey: 'sk-none', maxRetries: 0, timeout: 30000 });
    const seen = { content: '', thought: '', finish: null, error: null };
    const messages = [{ role: 'user', content: question }];
    try {
      if (stream) {
        const options = { include_usage: true };
        const chunks = await client.chat.completions.create(
          { model: name, messages, stream, stream_options: options });
        for await (const chunk of chunks) for (const choice of chunk.choices) {
          seen.content += text(choice.delta.content);
          seen.thought += text(choice.delta.reasoning_content);
          seen.finish = choice.finish_reason || seen.finish;
        }
      } else {
        const choice = (await client.chat.completions.create({ model: name, messages })).choices[0];
        seen.content = text(choice.message.content);
        seen.thought = text(choice.message.reasoning_content);
        seen.finish = choice.finish_reason;
      }
    } catch (error) { seen.error = `${error.message} ${error.code}`; }
    console.log(JSON.stringify(seen));
  }
})();
"""


def version() -> str:
    """Which one."""
    package = Path(os.environ["NODE_PATH"]) / "openai" / "package.json"
    found: str = json.loads(package.read_text())["version"]
    return found


def ask_all(address: Callable[[Case], str], cases: list[Case]) -> Iterator[Seen]:
    """Each chat, in one process."""
    asked = [{"url": address(case), "name": case.name, "stream": case.stream} for case in cases]
    given = json.dumps({"cases": asked, "question": QUESTION})
    done = subprocess.run(
        ["node", "-e", _SCRIPT], input=given.encode(), stdout=subprocess.PIPE, check=True, timeout=600
    )
    return (Seen(**json.loads(line)) for line in done.stdout.splitlines())
