"""Anthropic's client and a server of hetero. ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY say which, as they do for every
program that uses this client."""

import anthropic

GREEDY = {"temperature": 0}  # the client has no argument for it any more; the server takes it
CITY = {
    "type": "object",
    "properties": {"kind": {"enum": ["capital", "town"]}, "large": {"type": "boolean"}},
    "required": ["kind", "large"],
    "additionalProperties": False,
}

client = anthropic.Anthropic()
(model,) = client.models.list()
print("model:", model.id, "|", model.display_name)

question = {"role": "user", "content": "What is the capital of France?"}
print("tokens of the question:", client.messages.count_tokens(model=model.id, messages=[question]).input_tokens)

print("\n-- an answer that streams, with its reasoning")
with client.messages.stream(
    model=model.id,
    max_tokens=64,
    messages=[question],
    thinking={"type": "enabled", "budget_tokens": 32},
    extra_body=GREEDY,
) as stream:
    for event in stream:
        if event.type == "thinking":
            print(event.thinking, end="", flush=True)
        elif event.type == "signature":
            print(" =>", end=" ")
        elif event.type == "text":
            print(event.text, end="", flush=True)
    message = stream.get_final_message()
print("\n" + message.stop_reason, [block.type for block in message.content], message.usage.output_tokens, "tokens")

print("\n-- a conversation that goes on")
turns = [question, {"role": "assistant", "content": message.content}]
turns.append({"role": "user", "content": "What is the capital of Italy?"})
message = client.messages.create(model=model.id, max_tokens=64, messages=turns, extra_body=GREEDY)
print(message.content[0].text)

print("\n-- an answer that was begun")
turns = [question, {"role": "assistant", "content": "The capital of"}]
message = client.messages.create(model=model.id, max_tokens=64, messages=turns, extra_body=GREEDY)
print(turns[-1]["content"], "|", message.content[0].text)

print("\n-- a tool")
message = client.messages.create(
    model=model.id,
    max_tokens=200,
    messages=[question],
    tools=[{"name": "describe_city", "description": "Describes a city.", "input_schema": CITY}],
    tool_choice={"type": "tool", "name": "describe_city", "disable_parallel_tool_use": True},
    extra_body=GREEDY,
)
print(message.stop_reason, [(block.name, block.input) for block in message.content if block.type == "tool_use"])

print("\n-- too long")
try:
    client.messages.create(model=model.id, max_tokens=64, messages=[{"role": "user", "content": "word " * 3000}])
except anthropic.BadRequestError as error:
    print(error.status_code, error.type, "|", error.body["error"]["message"])
