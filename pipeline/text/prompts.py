"""Summaries: prompts from templates, which samples are asked for, and how they are scored.

Templates are data (``resources/prompts.yaml``). Planning a run imports this, so nothing heavy is
imported before it is needed.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml

from .. import resources
from ..errors import DataError, unknown

if TYPE_CHECKING:
    from .documents import Pair


@dataclass(frozen=True)
class Template:
    """How a document and its summary are written in a prompt.

    Attributes:
        text: holds ``{document}`` and, after it, ``{summary}``.
        stop: the text that ends a summary.
    """

    text: str
    stop: str

    def demonstration(self, document: str, summary: str) -> str:
        """Return a solved example."""
        head, _, tail = self.text.partition("{summary}")
        return self._fill(head, document) + summary.strip() + tail

    def question(self, document: str) -> str:
        """Return the same up to the summary, which the model is to write."""
        return self._fill(self.text.partition("{summary}")[0], document)

    @staticmethod
    def _fill(text: str, document: str) -> str:
        # not str.format: documents may hold braces
        return text.replace("{document}", document.strip())


@cache
def templates() -> Mapping[str, Template]:
    """Return every template by name."""
    text = files(resources).joinpath("prompts.yaml").read_text("utf-8")
    return {name: Template(**fields) for name, fields in yaml.safe_load(text).items()}


def get_template(name: str) -> Template:
    """Return the template of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in templates():
        raise unknown("template", name, templates())
    return templates()[name]


@dataclass(frozen=True)
class Sample:
    """One prompt to continue.

    Attributes:
        document: its id.
        prompt: what the model reads.
        prompt_tokens: its length, with the tokens that a tokenizer adds.
        reference: the summary to score against.
        demonstrations: ids of the solved examples in the prompt.
        seed: of sampling, the same for every method, so that comparisons are paired.
    """

    document: str
    prompt: str
    prompt_tokens: int
    reference: str
    demonstrations: list[str]
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def choose_samples(
    pairs: Sequence[Pair],
    template: Template,
    length: Callable[[str], int],
    room: int,
    count: int,
    seed: int,
    *,
    shots: int = 0,
    pool: Sequence[Pair] = (),
    cut: tuple[int, int] | None = None,
) -> tuple[list[Sample], list[str]]:
    """Return ``count`` prompts of at most ``room`` tokens, and ids of what did not fit.

    Nothing is truncated but by ``cut``. The order of documents and the seed of each depend on
    ``seed`` and its id alone, so fewer samples are a prefix of more. By that seed demonstrations
    are drawn from the pairs of ``pool`` that take no more than an equal share of the room left.

    Args:
        length: tokens of a text.
        shots: demonstrations in each prompt.
        pool: pairs that demonstrations are drawn from.
        cut: (tokens, longest): documents lose words at their end until the prompt has at most
            ``tokens``; taken are those whose prompts exceed ``longest`` when whole, so that prompts
            of several lengths come of the same documents.

    Raises:
        DataError: fewer than ``count`` documents fit, or too few demonstrations do.
    """
    solved = [(pair, template.demonstration(pair.document, pair.summary)) for pair in pool]
    lengths = [length(text) for _, text in solved]
    drawn = [(random.Random(f"{seed} {pair.id}"), pair) for pair in pairs]
    ranked = sorted(((draw.random(), draw, pair) for draw, pair in drawn), key=lambda x: x[0])
    samples: list[Sample] = []
    skipped: list[str] = []
    for _, draw, whole in ranked:
        if len(samples) == count:
            break
        pair = whole if cut is None else _cut(whole, template, length, *cut)
        if pair is None:
            continue
        question = template.question(pair.document)
        share = (room - length(question)) // max(shots, 1)
        fitting = [shot for shot, tokens in zip(solved, lengths, strict=True) if tokens <= share]
        if share < 0 or len(fitting) < shots:
            skipped.append(pair.id)
            continue
        chosen = draw.sample(fitting, shots)
        prompt = "".join(text for _, text in chosen) + question
        tokens = length(prompt)
        if tokens > room:  # text joined may be cut into other tokens than its parts
            skipped.append(pair.id)
            continue
        samples.append(
            Sample(
                document=pair.id,
                prompt=prompt,
                prompt_tokens=tokens,
                reference=pair.summary,
                demonstrations=[shot.id for shot, _ in chosen],
                seed=draw.getrandbits(31),
            )
        )
    if len(samples) < count:
        raise DataError(
            f"{count} prompts of at most {room} tokens are wanted, but only {len(samples)} of "
            f"{len(ranked)} documents fit{f' with {shots} demonstrations' if shots else ''}: ask "
            "for fewer samples or demonstrations, or give the model more context."
        )
    return samples, skipped


def _cut(
    pair: Pair, template: Template, length: Callable[[str], int], tokens: int, longest: int
) -> Pair | None:
    """Return the pair with its document cut to what fits, None where that would not shorten it."""
    words = pair.document.split()
    if length(template.question(pair.document)) <= longest:
        return None
    kept = bisect_right(
        range(len(words)), tokens, key=lambda n: length(template.question(" ".join(words[:n])))
    )
    return pair._replace(document=" ".join(words[: max(kept - 1, 0)]))
