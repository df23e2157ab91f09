"""How well de-duplication tells duplicates from distinct facts, on labelled pairs of turns about one image.

    python -m benchmarks.dedup.dedup_quality PAIRS.jsonl [PAIRS.jsonl …]

A line of PAIRS: {"source", "image", "a": {"question", "answer"}, "b": {…}, "label": "dup" | "distinct"}.
"source" groups the pairs in the last table; in tests/pipelines/dedup/held_back_pairs.jsonl, it is the kind of pair.
Fits the weights of pipelines/dedup/similarity.py and prints them; prints what each part gains and how the shipped
weights and threshold perform; draws benchmarks/plots/dedup_quality.png. Every fitted figure is cross-validated: ten
folds that keep the pairs of an image together, mean of ten assignments of images to folds.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks import toy
from benchmarks.dedup import rule_gains
from benchmarks.measure import parser, show, working
from pipelines.dedup.decide import normalize
from pipelines.dedup.embeddings import PACKAGED_MODEL, Embeddings, embed_texts
from pipelines.dedup.fact_rules import FACT_RULES, is_named_alike
from pipelines.dedup.question_rules import are_contradictory, are_opposite_claims
from pipelines.dedup.settings import DEFAULT_THRESHOLD
from pipelines.dedup.similarity import BIAS, FEATURES, WEIGHTS, Similarity, texts_to_embed

PLOT = Path(__file__).parents[1] / "plots" / "dedup_quality.png"
SHIPPED = "and restatements always (shipped)"
FOLDS, DEALS = 10, 10
RIDGE = 1.0  # on weights of standardised features
DROPPED = (0.02, 0.05, 0.10)  # shares of distinct pairs at which recall is read


@dataclass
class Pairs:
    is_dup: np.ndarray  # (P,) bool
    image: list[str]
    source: list[str]
    plain: dict[str, np.ndarray]  # name → (P,) cosine of whole texts
    features: np.ndarray  # (P, len(FEATURES))
    contradicts: np.ndarray  # (P,) bool: never a duplicate
    restates: np.ndarray  # (P,) bool: always a duplicate
    shipped: np.ndarray  # (P,) similarity as the pipeline computes it
    decide: Callable[[], np.ndarray]  # returns (P,) bool, the shipped decisions under the rules that apply at the call
    same_answer: np.ndarray  # (P,) bool: what the authors' released rule drops


def read_pairs(paths: list[Path]) -> Pairs:
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines() if line.strip()]
    questions = [row[side]["question"] for row in rows for side in "ab"]
    answers = [row[side]["answer"] for row in rows for side in "ab"]
    whole = {
        "question and answer": [f"{q} {a}" for q, a in zip(questions, answers, strict=True)],
        "question": questions,
        "answer": answers,
    }
    first = np.arange(0, len(questions), 2)
    words = texts_to_embed(questions, answers, "pair")
    known = embed_texts(words, PACKAGED_MODEL)
    contents = Similarity(questions, answers, Embeddings(known), "pair").contents(first, first + 1, at_least=0)
    embeddings = Embeddings(embed_texts(words.union(contents, *whole.values()), PACKAGED_MODEL, known))
    plain = {}
    for name, column in whole.items():
        vectors = embeddings.vectors(column)
        plain[name] = np.einsum("kd,kd->k", vectors[first], vectors[first + 1])
    similarity = Similarity(questions, answers, embeddings, "pair")
    turns = similarity.turns

    def by(rule: Callable[..., bool]) -> np.ndarray:
        pairs = ((turns[k], turns[k + 1]) for k in first)
        return np.array([rule(a.question, a.answer, b.question, b.answer) for a, b in pairs])

    return Pairs(
        is_dup=np.array([row["label"] == "dup" for row in rows]),
        image=[row["image"] for row in rows],
        source=[row["source"] for row in rows],
        plain=plain,
        features=similarity.features(first, first + 1).astype(np.float64),
        contradicts=np.any([by(rule) for rule in (are_contradictory, *FACT_RULES)], axis=0),
        restates=by(are_opposite_claims) | by(is_named_alike),
        shipped=similarity(first, first + 1),
        decide=lambda: (
            Similarity(questions, answers, embeddings, "pair")(first, first + 1) >= DEFAULT_THRESHOLD["pair"]
        ),
        same_answer=np.array([normalize(answers[k]) == normalize(answers[k + 1]) for k in first]),
    )


def fit(features: np.ndarray, is_dup: np.ndarray) -> np.ndarray:
    """Weights and bias of a logistic model with balanced classes, by Newton's method."""
    mean, scale = features.mean(0), features.std(0) + 1e-9
    x = np.column_stack([(features - mean) / scale, np.ones(len(features))])
    share = np.where(is_dup, 0.5 / is_dup.mean(), 0.5 / (~is_dup).mean())
    ridge = np.diag([RIDGE] * features.shape[1] + [0.0])
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (share * (p - is_dup)) + ridge @ w
        w -= np.linalg.solve((x * (share * p * (1 - p))[:, None]).T @ x + ridge, gradient)
    return np.append(w[:-1] / scale, w[-1] - (w[:-1] * mean / scale).sum())


def cross_validated(features: np.ndarray, pairs: Pairs, deal: int, rules: int) -> np.ndarray:
    """(P,) scores, each by weights that were fitted without the pairs of its image.

    rules: 1 gives opposites the lowest score, 2 also gives restatements the highest.
    """
    images = sorted(set(pairs.image))
    np.random.default_rng(deal).shuffle(images)
    fold_of = {image: k % FOLDS for k, image in enumerate(images)}
    fold = np.array([fold_of[image] for image in pairs.image])
    scores = np.empty(len(fold))
    for k in range(FOLDS):
        w = fit(features[fold != k], pairs.is_dup[fold != k])
        scores[fold == k] = features[fold == k] @ w[:-1] + w[-1]
    scores = np.where(pairs.restates & (rules > 1), np.inf, scores)
    return np.where(pairs.contradicts & (rules > 0), -np.inf, scores)


def recall_at(scores: np.ndarray, is_dup: np.ndarray, dropped: float) -> float:
    """Share of duplicates found at the lowest threshold that drops at most `dropped` of the distinct pairs."""
    distinct = np.sort(scores[~is_dup])[::-1]
    return float(np.mean(scores[is_dup] > distinct[int(dropped * len(distinct))]))


def recall_at_precision(scores: np.ndarray, is_dup: np.ndarray, precision: float) -> float:
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(is_dup[order])
    good = found / np.arange(1, len(order) + 1) >= precision
    return float(found[good].max(initial=0) / is_dup.sum())


def curve(scores: np.ndarray, is_dup: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of distinct pairs dropped, recall and precision, for every threshold from high to low."""
    order = np.argsort(-scores, kind="stable")
    found, wrong = np.cumsum(is_dup[order]), np.cumsum(~is_dup[order])
    return wrong / (~is_dup).sum(), found / is_dup.sum(), found / (found + wrong)


def variants(pairs: Pairs) -> dict[str, list[np.ndarray]]:
    """Name → one (P,) score for each assignment to folds; only one where nothing is fitted."""
    result = {f"cosine of {name}": [cosine] for name, cosine in pairs.plain.items()}
    names = list(FEATURES)

    def fitted(columns: list[str], rules: int) -> list[np.ndarray]:
        chosen = pairs.features[:, [names.index(c) for c in columns]]
        return [cross_validated(chosen, pairs, deal, rules) for deal in range(DEALS)]

    for n in range(1, len(names) + 1):
        result[" + ".join(names[:n])] = fitted(names[:n], rules=0)
    result["all of these, opposites never"] = fitted(names, rules=1)
    result[SHIPPED] = fitted(names, rules=2)
    for name in names:
        result[f"shipped without “{name}”"] = fitted([other for other in names if other != name], rules=2)
    return result


def draw(scores: dict[str, list[np.ndarray]], pairs: Pairs, plot: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    shown = [name for name in scores if "without" not in name]
    for name, color in zip(shown, plt.colormaps["viridis"](np.linspace(0, 0.95, len(shown))), strict=True):
        dropped, recall, precision = curve(scores[name][0], pairs.is_dup)
        style = {"color": color, "lw": 2.4 if "shipped" in name else 1.2, "label": name}
        left.plot(dropped, recall, **style)
        right.plot(recall, precision, **style)
    decided = pairs.shipped >= DEFAULT_THRESHOLD["pair"]
    dropped, recall = decided[~pairs.is_dup].mean(), decided[pairs.is_dup].mean()
    mark = {"marker": "*", "s": 130, "color": "crimson", "zorder": 5}
    left.scatter(dropped, recall, label=f"default threshold {DEFAULT_THRESHOLD['pair']}", **mark)
    right.scatter(recall, pairs.is_dup[decided].mean(), **mark)
    left.axvline(0.05, color="gray", lw=0.8, ls=":")
    left.axhline(0.75, color="gray", lw=0.8, ls=":")
    left.set(xlim=(0, 0.4), ylim=(0, 1), xlabel="distinct pairs dropped", ylabel="duplicates found (recall)")
    right.set(xlim=(0, 1), ylim=(0.65, 1.005), xlabel="recall", ylabel="precision")
    left.legend(fontsize=7, loc="lower right")
    figure.suptitle(f"De-duplication on {len(pairs.is_dup)} labelled pairs ({pairs.is_dup.mean():.0%} duplicates)")
    plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(plot, dpi=130, metadata={"Software": None})


def gains(scores: dict[str, list[np.ndarray]], is_dup: np.ndarray) -> list[dict[str, str]]:
    def means(deals: list[np.ndarray]) -> dict[str, float]:
        at = {f"recall at {d:.0%} dropped": np.mean([recall_at(s, is_dup, d) for s in deals]) for d in DROPPED}
        return {**at, "recall at precision 0.95": np.mean([recall_at_precision(s, is_dup, 0.95) for s in deals])}

    best = means(scores[SHIPPED])["recall at precision 0.95"]
    rows = []
    for name, deals in scores.items():
        found = means(deals)
        ratio = {"the latter ÷ shipped": f"{found['recall at precision 0.95'] / best:.2f}"}
        rows.append({"similarity": name, **{key: f"{value:.3f}" for key, value in found.items()}, **ratio})
    return rows


def decisions(pairs: Pairs) -> list[dict[str, str]]:
    """What the shipped weights decide at the default threshold, by source."""
    decided = pairs.shipped >= DEFAULT_THRESHOLD["pair"]
    rows = []
    for source in ["all", *sorted(set(pairs.source))]:
        here = np.array([source in ("all", s) for s in pairs.source])
        wrong, right = decided[here & ~pairs.is_dup], decided[here & pairs.is_dup]
        shares = {"distinct dropped": rule_gains.share(wrong), "duplicates found": rule_gains.share(right)}
        rows.append({"source": source, "pairs": str(here.sum()), **shares})
    return rows


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("pairs", type=Path, nargs="*", metavar="PAIRS.jsonl")
    options = options_of.parse_args()
    with working(options) as workdir:
        plot = PLOT
        if options.toy:
            options.pairs, plot = [toy.labelled_pairs(workdir)], workdir / PLOT.name
        if not options.pairs:
            options_of.error("PAIRS.jsonl is required")
        pairs = read_pairs(options.pairs)
        scores = variants(pairs)
        draw(scores, pairs, plot)
    show(f"De-duplication, {len(pairs.is_dup)} labelled pairs", gains(scores, pairs.is_dup))
    deals = scores[SHIPPED]
    limit = np.log(DEFAULT_THRESHOLD["pair"] / (1 - DEFAULT_THRESHOLD["pair"]))
    dropped, found = (np.mean([s[which] >= limit for s in deals]) for which in (~pairs.is_dup, pairs.is_dup))
    print(f"\ncross-validated at the default threshold: {dropped:.3f} of distinct dropped, {found:.3f} of dup found")
    w = fit(pairs.features, pairs.is_dup)
    print(f"\nfitted on all pairs: WEIGHTS = ({', '.join(f'{x:.2f}' for x in w[:-1])}), BIAS = {w[-1]:.2f}")
    print(f"shipped:             WEIGHTS = ({', '.join(f'{x:.2f}' for x in WEIGHTS)}), BIAS = {BIAS:.2f}")
    show("What each rule gains and loses", rule_gains.gains(pairs.decide, pairs.is_dup))
    show(f"Shipped weights at the default threshold {DEFAULT_THRESHOLD['pair']}", decisions(pairs))
    wrong, right = pairs.same_answer[~pairs.is_dup].mean(), pairs.same_answer[pairs.is_dup].mean()
    print(f"\nthe rule `answer` (equal answers): {wrong:.3f} of distinct dropped, {right:.3f} of dup found")
    if not options.toy:
        print(f"\nplot: {plot}")


if __name__ == "__main__":
    main()
