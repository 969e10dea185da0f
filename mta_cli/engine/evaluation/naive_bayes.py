"""Authorship by naive Bayes on character n-grams: the baseline without a language model for tasks of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NGRAM_LENGTHS = (1, 4)  # characters


def attribute_texts(
    written: Mapping[int, Sequence[str]], asked: Sequence[tuple[int, str, Sequence[int]]]
) -> list[list[float]]:
    """For each (user, text, others) of `asked`, the log-probabilities (nats) that the user, and each of `others`, wrote
    the text.

    `written` are the training texts by user; for each text only the user's and the others' texts are used. All users
    have the same prior probability, however much they wrote. Without any training text all are equally probable.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    learned: dict[tuple[int, ...], tuple[CountVectorizer, MultinomialNB]] = {}
    found = []
    for user, text, others in asked:
        candidates = tuple(sorted({user, *others}))
        # an empty text for each user, so that users without training texts are classes too
        pairs = [(one, own) for one in candidates for own in ("", *written.get(one, ()))]
        if not any(own for _, own in pairs):
            found.append([0.0] * (1 + len(others)))
            continue
        if candidates not in learned:
            counter = CountVectorizer(analyzer="char", ngram_range=NGRAM_LENGTHS, lowercase=False)
            counts = counter.fit_transform([own for _, own in pairs])
            learned[candidates] = counter, MultinomialNB(fit_prior=False).fit(counts, [one for one, _ in pairs])
        counter, classifier = learned[candidates]
        (values,) = classifier.predict_log_proba(counter.transform([text]))
        by_user = dict(zip(classifier.classes_.tolist(), values.tolist(), strict=True))
        found.append([by_user[one] for one in (user, *others)])
    return found
