"""Evaluates the few constructs of Ollama's templates (Go's text/template) that our Modelfiles use."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

_PARTS = re.compile(r"\{\{ (.*?) \}\}(?!\})", re.S)


def template_of(modelfile: str) -> str:
    """The template of a Modelfile."""
    return modelfile.partition('TEMPLATE """')[2].partition('"""')[0]


def render(template: str, messages: Sequence[dict[str, str]]) -> str:
    """The prompt of a conversation."""
    parts = _PARTS.split(template)  # texts at even places, actions at odd ones
    out, place, state = list[str](), 0, {"open": False, "n": 0}

    def holds(condition: str) -> bool:
        if condition == "$open":
            return bool(state["open"])
        if role := re.fullmatch(r'eq \.Role "(\w+)"', condition):
            return messages[state["n"]]["role"] == role[1]
        assert condition == "eq (len (slice $.Messages $n)) 1", condition
        return state["n"] == len(messages) - 1

    def run(place: int, *, active: bool) -> int:
        """Render from `place` to the action that ends this block; returns that action's place."""
        while place < len(parts):
            if place % 2 == 0:
                if active:
                    out.append(parts[place])
                place += 1
                continue
            action = parts[place]
            if action == "end" or action.startswith("else"):
                return place
            if action.startswith("if "):
                place = run_branches(place, active=active)
            elif action.startswith("range "):
                for n in range(len(messages)):
                    state["n"] = n
                    end = run(place + 1, active=active)
                place = end
            elif active and action.startswith("$open"):
                state["open"] = action.endswith("true")
            elif active:
                out.append(messages[state["n"]]["content"] if action == ".Content" else json.loads(action))
            place += 1
        return place

    def run_branches(place: int, *, active: bool) -> int:
        done = False
        while parts[place] != "end":
            condition = parts[place].removeprefix("else").strip().removeprefix("if ")
            chosen = active and not done and (not condition or holds(condition))
            done = done or chosen
            place = run(place + 1, active=chosen)
        return place

    run(place, active=True)
    return "".join(out)
