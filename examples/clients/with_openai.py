"""OpenAI's client and a server of hetero. OPENAI_BASE_URL and OPENAI_API_KEY say which, as they do for every program
that uses this client."""

import json
from typing import Literal

import openai
from pydantic import BaseModel, ConfigDict


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["capital", "town"]
    large: bool


client = openai.OpenAI()
(model,) = client.models.list()
print("model:", model.id)

question = {"role": "user", "content": "What is the capital of France?"}
print("\n-- an answer that streams, with its reasoning and the use of tokens")
stream = client.chat.completions.create(
    model=model.id,
    messages=[question],
    temperature=0,
    reasoning_effort="high",
    stream=True,
    stream_options={"include_usage": True},
)
thought = None
for chunk in stream:
    for choice in chunk.choices:
        if thought and choice.delta.content:
            print(" =>", end=" ")
        thought = (choice.delta.model_extra or {}).get("reasoning_content")
        print(thought or choice.delta.content or "", end="", flush=True)
    if chunk.usage:
        print("\nprompt:", chunk.usage.prompt_tokens, "tokens, answer:", chunk.usage.completion_tokens)

print("\n-- log probabilities")
answer = client.chat.completions.create(
    model=model.id, messages=[question], temperature=0, logprobs=True, top_logprobs=2
)
for token in answer.choices[0].logprobs.content[:4]:
    print(f"{token.token!r:12}", ", ".join(f"{one.token!r} {one.logprob:.2f}" for one in token.top_logprobs))

print("\n-- an answer that was begun")
begin = {"role": "assistant", "content": "The capital of", "prefix": True}
answer = client.chat.completions.create(model=model.id, messages=[question, begin], temperature=0)
print(begin["content"], "|", answer.choices[0].message.content)

print("\n-- an answer in a form")
parsed = client.chat.completions.parse(model=model.id, messages=[question], temperature=0, response_format=City)
print(repr(parsed.choices[0].message.parsed))

print("\n-- a call of a function")
called = client.chat.completions.create(
    model=model.id,
    messages=[question],
    temperature=0,
    tools=[openai.pydantic_function_tool(City, name="describe_city")],
    tool_choice="required",
    parallel_tool_calls=False,
)
(call,) = called.choices[0].message.tool_calls
print(called.choices[0].finish_reason, call.function.name, json.loads(call.function.arguments))

print("\n-- responses")
response = client.responses.create(model=model.id, input="What is 2 + 3?", temperature=0)
print(response.output_text, response.status)

print("\n-- too long")
try:
    client.responses.create(model=model.id, input="word " * 3000)
except openai.BadRequestError as error:
    print(error.status_code, error.code, "|", error.body["message"])
