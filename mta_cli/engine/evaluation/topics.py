"""Groups users who write on similar topics, so that a difference in topic is not taken for a difference in style."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

WORD_FEATURES = 1 << 16  # hash buckets for words

AlikeGroup = dict[int, tuple[int, ...]]
"""The members of a group by user id, each with the other members, the nearest first."""


def group_alike(
    users: Sequence[int], texts: Mapping[int, str], group_names: Mapping[int, str], max_size: int
) -> list[AlikeGroup]:
    """Groups of at most `max_size` users who write on similar topics.

    `texts` are what each user wrote. `group_names` are group names from an imported file: users with the same name are
    grouped together. Users without a name, or with a name that no other user has, are grouped together; a single such
    user is added to the users of the first name. If the users of one name need several groups, the sizes of these
    differ by at most one. Similarity is the cosine of TF-IDF vectors. The same users and texts give the same groups.
    """
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    if not users:
        return []
    order = sorted(users)
    place = {user: n for n, user in enumerate(order)}
    counted = HashingVectorizer(n_features=WORD_FEATURES, alternate_sign=False, norm=None, token_pattern=r"\w+")
    rows = TfidfTransformer(sublinear_tf=True).fit_transform(counted.transform([texts.get(one, "") for one in order]))

    def nearest(user: int, others: Sequence[int]) -> list[int]:
        cosines = (rows @ rows[place[user]].T).toarray().ravel().round(6)  # [users]
        return sorted(others, key=lambda other: (-cosines[place[other]], other))

    counts = Counter(group_names[user] for user in order if user in group_names)
    pools: dict[str | None, list[int]] = {}
    for user in order:
        name = group_names.get(user)
        pools.setdefault(name if counts.get(name or "", 0) > 1 else None, []).append(user)
    # a single leftover user would have no other to be compared with
    if len(pools) > 1 and len(pools.get(None, ())) == 1:
        (alone,) = pools.pop(None)
        next(iter(pools.values())).append(alone)
    groups = list[AlikeGroup]()
    for left in pools.values():
        for waiting in range(math.ceil(len(left) / max_size), 0, -1):
            size = math.ceil(len(left) / waiting)
            members = sorted([left[0], *nearest(left[0], left[1:])[: size - 1]])
            groups.append({one: tuple(nearest(one, [other for other in members if other != one])) for one in members})
            left = [user for user in left if user not in groups[-1]]
    return groups
