"""search.json: what was asked for, what each piece costs, what was tried, and what was chosen."""

from __future__ import annotations

from typing_extensions import TypedDict


class WishFacts(TypedDict):
    """A wish: `whole` is the untouched model's value, `limit` the bound, `got` what the result has."""

    wish: str
    about: str
    limit: float
    whole: float | None
    got: float | None
    held: bool | None


class PieceFacts(TypedDict):
    """What may go, alone: its share of the site, what it saves, by name, and KL in nats per token.

    `measured` is false where `kl` was read off the curve of its site, or follows from its two kinds.
    """

    site: str
    layer: int
    kind: str
    share: float
    saves: dict[str, float]
    kl: float
    measured: bool


class CandidateFacts(TypedDict):
    """A candidate that was measured: its pieces as [site, share], KL as predicted and as measured, what it takes.

    What is predicted is by all other candidates. `plan` is the file that replays it, where there's one.
    """

    pieces: list[tuple[str, float]]
    predicted: float
    measured: float
    takes: dict[str, float]
    chosen: bool
    front: bool
    plan: str | None


class HiddenFacts(TypedDict):
    """A level of hidden dimensions: how many of `units` are `kept`, KL of it alone and of its best candidate.

    `best` is null where none was looked for, as the level alone lost more than the best so far, or none was found.
    """

    kept: int
    units: int
    kl: float
    best: float | None
    chosen: bool


class FormatFacts(TypedDict):
    """A form of the whole model, a number format or zeros of single weights: bytes of its files with nothing gone, KL
    of it alone and of its best candidate.

    `kl` is null where it wasn't looked at, `best` where no candidate was looked for or found, as nothing could be
    gained or time was up; `perplexity`, of that candidate as a model, where it wasn't made to be compared.
    """

    type: str
    bytes: float
    kl: float | None
    best: float | None
    perplexity: float | None
    chosen: bool


class FinalistFacts(TypedDict):
    """A candidate that was made and compared: KL before the repair, perplexity after it and the training, if any."""

    pieces: list[tuple[str, float]]
    kl: float
    perplexity: float
    chosen: bool


class TimedFacts(TypedDict):
    """A candidate that was timed as it is, in seconds by `latency` (a decoding step) and `prefill` (a prompt).

    `whole`: the untouched model beside it; `predicted`: from the table; pieces as [site, level].
    """

    pieces: list[tuple[str, int]]
    whole: dict[str, float]
    predicted: dict[str, float]
    measured: dict[str, float]


class SearchReport(TypedDict):
    """The document."""

    secateur: str
    model: str
    settings: dict[str, object]
    calibration: dict[str, object]
    tokens: int
    layers: int
    whole: dict[str, float]
    wishes: list[WishFacts]
    pieces: list[PieceFacts]
    candidates: list[CandidateFacts]
    hidden: list[HiddenFacts]
    formats: list[FormatFacts]
    finalists: list[FinalistFacts]
    timed: list[TimedFacts]
    rank_correlation: float | None
    limited_by: str
    perplexity: dict[str, float] | None
    machine: dict[str, object]
    stages: list[dict[str, object]]
