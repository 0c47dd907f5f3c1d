"""OpenAI's client against a server that runs: `elastikv serve`. Its address as argument; the usual one without."""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id

with client.chat.completions.stream(
    model=model, messages=[{"role": "user", "content": "What does os.path.join do?"}], max_tokens=48, seed=1
) as stream:
    for event in stream:
        if event.type == "content.delta":
            print(event.delta, end="", flush=True)

completion = client.completions.create(model=model, prompt="import os\n", max_tokens=16, seed=1)
print(f"\n{completion.choices[0].text!r}, {completion.usage}")
