"""OpenAI's client against a server that runs: `elastikv serve`. Its address as argument; the usual one without."""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id

messages = [{"role": "user", "content": "What does os.path.join do?"}]
stream = client.chat.completions.create(model=model, messages=messages, max_tokens=48, seed=1, stream=True)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)

completion = client.completions.create(model=model, prompt="import os\n", max_tokens=16, seed=1)
print(f"\n{completion.choices[0].text!r}, {completion.usage}")
