"""The turns of a chat, and the file they are saved in."""

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hetero.errors import FileError

Message = dict[str, str]

ROLES = ("system", "user", "assistant")
MAX_FILE_BYTES = 64 * 2**20  # a million-token conversation is about 5 MB


@dataclass
class Conversation:
    """Alternating user and assistant turns under an optional system prompt."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def messages(self) -> list[Message]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.turns

    def with_user(self, text: str) -> list[Message]:
        """The messages as they would be if the user said `text`; the conversation itself is not changed."""
        return [*self.messages(), {"role": "user", "content": text}]

    def add(self, user: str, answer: str, thinking: str = "") -> None:
        reply = {"role": "assistant", "content": answer}
        if thinking:
            reply["reasoning_content"] = thinking  # the key templates that show earlier reasoning read
        self.turns += [{"role": "user", "content": user}, reply]

    def save(self, path: str | Path) -> Path:
        """Writes beside the target and renames: an existing file stays whole if this fails."""
        target = Path(os.path.realpath(os.path.expanduser(path)))
        if target.is_dir():
            raise IsADirectoryError(21, "Is a directory", str(target))
        text = json.dumps({"messages": self.messages()}, ensure_ascii=False, indent=1) + "\n"
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")  # mode 0600
        try:
            with open(handle, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                os.chmod(temporary, target.stat().st_mode & 0o777)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
        return target

    @classmethod
    def load(cls, path: str | Path) -> "Conversation":
        source = Path(os.path.expanduser(path))
        if source.stat().st_size > MAX_FILE_BYTES:
            raise FileError(f"{source} is larger than {MAX_FILE_BYTES // 2**20} MiB", remedy="it is no saved chat")
        try:
            document = json.loads(source.read_text(encoding="utf-8"))
            return cls._from_messages(document["messages"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FileError(
                f"{source} is not a saved chat ({error or type(error).__name__})",
                'expected {"messages": [{"role": ..., "content": ...}, ...]}',
            ) from error

    @classmethod
    def _from_messages(cls, messages: Iterable[Message]) -> "Conversation":
        conversation = cls()
        for index, message in enumerate(messages):
            if not isinstance(message, dict) or not all(isinstance(part, str) for part in message.values()):
                raise ValueError(f"message {index} holds something that is not text")
            role, content = message["role"], message["content"]
            if role not in ROLES or (role == "system" and index > 0):
                raise ValueError(f"message {index} has role {role!r}")
            if role == "system":
                conversation.system = content
            else:
                conversation.turns.append(dict(message))
        return conversation
