"""A judge behind the tests' chat endpoint: it reads the published prompt and writes GREEN's format."""

from mu2llm.evaluation.judges import RulesJudge


class GreenModel:
    """Judges as the rules do; `asked` holds the pairs in the order in which they came."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def stage(self, messages: list[dict[str, str]]) -> str:
        assert [message["role"] for message in messages] == ["user"]
        return "green"

    def reply(self, stage: str, user: str) -> str:
        reference, rest = user.split("2. Reference Report:\n    ")[1].split(
            "\n\n    3. Candidate Report:\n    "
        )
        candidate = rest.split("\n\n    4. Reporting")[0]
        self.asked.append((reference, candidate))
        return RulesJudge().score([reference], [candidate])[0].completion
