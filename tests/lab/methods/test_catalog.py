"""Methods by name: presets, suffixes, compositions, wrong names, and every method for users of every kind."""

from __future__ import annotations

import math

import pytest

from mta_cli.engine.methods.anchor_weights import SHARE_BYTES
from mta_cli.engine.methods.method import Method, Settings, UserModel
from mta_cli.engine.methods.personalize import build_models
from mta_cli.engine.model.load import LoadedBase
from mta_cli.errors import UsageError, words_to_text
from mta_cli.lab.methods.catalog import PRESET_METHODS, PRESETS_BY_NAME, find_method, find_methods
from mta_cli.options import MEMORIES, PRESETS, AdaptOptions, FuseOptions
from tests.engine.likelihoods import row_log_likelihoods
from tests.engine.methods.contexts import a_context, a_user, same, settings_of
from tests.engine.methods.tagging import LABELS, tag_context, tagger

NAMES = """majority majority-mean neighbours base rag pooled pooled-rag oppu oppu-pooled fusion fusion-random stack mta
mta-recipe mta-published mta-released per-pcs prime permuted-recipes permuted-anchors"""
COMPOSED = (
    "task:evidence:lora+habit",
    "base:uniform:none",
    "task:uniform:lora+neighbours",
    "task:similarity:lora+off",
    "permuted-mta",
    "permuted-task:none:lora+habit",
)
METHODS = [*PRESET_METHODS, *map(find_method, COMPOSED)]
EVERY = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
QUICK = {"steps": 2, "epochs": 1, "evaluations": 6, "placement": "late"}


def quick(method: Method, labels: bool) -> Settings:
    """The method's own settings, with as little work as they allow."""
    own = method.default_settings
    steps = {"steps"} if method.stack != "none" else set()
    return {**own, **{name: value for name, value in QUICK.items() if name in {*own, *steps}}}


def usable(base: LoadedBase, model: UserModel) -> bool:
    """Whether the model gives answers a likelihood."""
    if model.answerer is not None:
        return True
    return all(math.isfinite(value) for value, _ in row_log_likelihoods(base, a_user(1).rows, model.loras))


def test_all_names_that_are_promised_are_there() -> None:
    assert list(PRESETS_BY_NAME) == NAMES.split() and all(method.about for method in PRESET_METHODS)


def test_names_come_back_once_and_in_their_order() -> None:
    assert [method.name for method in find_methods(["mta", "base", "mta"])] == ["mta", "base"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mat", "did you mean mta?"),
        ("fusoin", "did you mean fusion?"),
        ("qqq", "mta eval methods"),
        ("task:evidence", "BELOW:ANCHORS:STACK, for example task:evidence:lora"),
        ("task:evidence:adapter", "none, lora"),
        ("floor:none:none", "base, task"),
        ("permuted-mat", "did you mean mta?"),
    ],
)
def test_a_wrong_name_is_refused_with_what_helps(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"no method '{name.replace('permuted-mat', 'mat')}'") as caught:
        find_methods(["base", name])
    assert hint in words_to_text(caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("permuted-pooled", "pooled has no LoRAs of users"),
        ("permuted-majority", "majority has no LoRAs of users"),
        ("permuted-neighbours", "neighbours has no LoRAs of users"),
        ("permuted-permuted-mta", "permuted-mta is itself a control"),
        ("permuted-permuted-anchors", "permuted-anchors is itself a control"),
    ],
)
def test_a_control_without_loras_of_its_own_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"no method '{name}': {reason}") as caught:
        find_methods(["base", name])
    assert "for example permuted-mta" in words_to_text(caught.value.hint or "")


def test_no_name_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="no method was named"):
        find_methods([])


def test_a_suffix_gives_any_method_another_label_memory() -> None:
    for stem in ("oppu-pooled", "stack", "mta", "per-pcs", "task:evidence:lora"):
        for memory in MEMORIES:
            found = find_method(f"{stem}+{memory}")
            named = stem if find_method(stem).memory == memory else f"{stem}+{memory}"
            assert (found.name, found.memory) == (named, memory)
            assert (found.anchors, found.stack) == (find_method(stem).anchors, find_method(stem).stack)
            assert ("prior_weight" in found.default_settings) == (memory != "off")
    assert find_method("stack", "habit").name == "stack+habit" and find_method("mta", "neighbours").name == "mta"
    assert find_method("stack+off", "habit").name == "stack", "a suffix stands above the option"
    assert find_method("majority", "habit").name == "majority"
    with pytest.raises(UsageError, match="'some' is not a label memory"):
        find_method("mta+some")
    with pytest.raises(UsageError, match="majority has no label memory to choose"):
        find_method("majority+habit")


@pytest.mark.parametrize(
    ("control", "method"),
    [
        ("permuted-mta", "mta"),
        ("permuted-task:none:lora", "task:none:lora"),
        ("permuted-recipes", "mta-recipe"),
        ("permuted-per-pcs", "per-pcs"),
    ],
)
def test_a_control_gives_each_user_the_loras_of_the_next_beside_their_own_memory(
    base: LoadedBase, control: str, method: str
) -> None:
    context = tag_context(base, 3)
    users = [tagger(base, context.task, [LABELS[n], LABELS[n], LABELS[2 - n]], n) for n in range(3)]
    settings = quick(find_method(method), labels=True)
    own, others = (build_models(find_method(name), context, users, settings) for name in (method, control))
    rotated = [own[1], own[2], own[0]]
    for theirs, expected in zip(others, rotated, strict=True):
        assert all(same(a, b) for a, b in zip(theirs.loras, expected.loras, strict=True)) and theirs.loras
    assert not same(own[0].loras[-1], own[1].loras[-1])
    priors = [
        (a.prior("a film") if a.prior else None, b.prior("a film") if b.prior else None)
        for a, b in zip(own, others, strict=True)
    ]
    assert all(mine == kept for mine, kept in priors)
    (alone,) = build_models(find_method(control), context, users[:1], settings)
    assert alone.loras == (), "there is nobody to give another's"


def test_the_published_preset_is_the_papers_choice() -> None:
    """One table gives it to `mta bank build`, `mta user adapt` and `mta eval run`."""
    method = find_method("mta-published")
    assert (method.below, method.anchors, method.stack, method.memory) == ("base", "similarity", "lora", "off")
    settings = method.default_settings
    for key, value in PRESETS["published"].items():
        section, _, name = key.partition(".")
        if section in ("fuse", "adapt") and name in settings:
            assert settings[name] == value, key
    assert (settings["top_k"], settings["rank"], settings["epochs"]) == (2, 4, 1)
    assert method.bank_preset == "published" and PRESETS["published"]["bank.task_adapter"] is False


@EVERY
def test_settings_that_are_tried_are_the_methods_own_and_of_their_kind(method: Method) -> None:
    """Settings are part of what an answer is stored under, where 1 and 1.0 are two."""
    own = {"learning_rate": 1.0, **method.default_settings}  # a stack's rate has no default: the task decides
    for laid in method.grid:
        assert {name: type(value) for name, value in laid.items()} == {name: type(own[name]) for name in laid}
    assert all(type(value) in (int, float, str, bool) for value in own.values())


@EVERY
def test_it_answers_for_a_task_of_texts_and_for_a_user_without_shots(base: LoadedBase, method: Method) -> None:
    users = [a_user(2), a_user(0, 1), a_user(1, 2)]
    made = build_models(method, a_context(base, 2, placement="late"), users, quick(method, labels=False))
    assert len(made) == 3 and all(usable(base, one) for one in made)
    assert all(one.prior is None and one.bytes >= 0 and not one.failed for one in made)


@EVERY
def test_it_answers_for_a_task_of_labels_and_for_a_user_without_shots(base: LoadedBase, method: Method) -> None:
    context = tag_context(base, 2)
    users = [tagger(base, context.task, [LABELS[1], LABELS[2]]), tagger(base, context.task, [], 1)]
    made = build_models(method, context, users, quick(method, labels=True))
    assert len(made) == 2 and all(usable(base, one) for one in made)
    for one in made:
        assert (one.prior is not None) == (method.memory in ("habit", "neighbours"))
        if one.prior is not None:
            said = one.prior("a film")
            assert len(said) == len(LABELS) and all(map(math.isfinite, said))
        if one.answerer is not None:
            answer, logliks = one.answerer("a film")
            assert answer in LABELS and len(logliks) == len(LABELS)


@EVERY
def test_a_bank_without_anchors_is_no_fault(base: LoadedBase, method: Method) -> None:
    (made,) = build_models(method, a_context(base, 0), [a_user(1)], quick(method, labels=False))
    assert usable(base, made)


@EVERY
def test_no_users_are_no_fault(base: LoadedBase, method: Method) -> None:
    assert build_models(method, a_context(base, 1, placement="late"), [], quick(method, labels=False)) == []


def test_a_model_is_fusion_stack_and_memory_and_its_bytes_are_counted(base: LoadedBase) -> None:
    """The stack is a LoRA of rank 2 on q and v of the upper layer."""
    context = tag_context(base, 3)
    users = [tagger(base, context.task, [LABELS[1], LABELS[2]])]
    (whole,) = build_models(find_method("mta"), context, users, settings_of(find_method("mta")))
    (recipe,) = build_models(find_method("mta-recipe"), context, users, settings_of(find_method("mta-recipe")))
    assert len(whole.loras) == 2 and len(recipe.loras) == 1 and same(whole.loras[0], recipe.loras[0])
    assert whole.prior == recipe.prior and whole.bytes == recipe.bytes + 2 * whole.loras[1].num_parameters
    assert {path.rsplit(".", 1)[-1] for path in whole.loras[1].factors} == {"q_proj", "v_proj"}
    (off,) = build_models(find_method("mta-recipe+off"), context, users, settings_of(find_method("mta-recipe+off")))
    assert off.prior is None and off.bytes % SHARE_BYTES == 0 and recipe.bytes % SHARE_BYTES == 2 * 2


def test_neighbours_change_what_is_learned_and_the_label_prior_does_not(base: LoadedBase) -> None:
    context = tag_context(base, 2)
    users = [tagger(base, context.task, [LABELS[1], LABELS[2]])]

    def stack(name: str) -> UserModel:
        return build_models(find_method(name), context, users, settings_of(find_method(name), steps=3))[0]

    off, habit, near = (stack(f"mta+{memory}") for memory in MEMORIES)
    assert all(same(*pair) for pair in zip(off.loras, habit.loras, strict=True)) and habit.prior is not None
    assert not same(habit.loras[-1], near.loras[-1])


def test_a_training_that_fails_is_told_and_leaves_the_rest(base: LoadedBase) -> None:
    context = tag_context(base, 2)
    users = [tagger(base, context.task, [LABELS[1], LABELS[2]])]
    method = find_method("mta")
    (broken,) = build_models(method, context, users, settings_of(method, learning_rate=float("nan")))
    (sound,) = build_models(method, context, users, settings_of(method))
    assert broken.failed and not sound.failed and broken.prior == sound.prior and broken.bytes < sound.bytes
    assert len(broken.loras) == len(sound.loras) - 1 and same(broken.loras[0], sound.loras[0])


def test_the_defaults_are_those_of_the_options() -> None:
    settings = find_method("mta").default_settings
    fuse, adapt = FuseOptions(), AdaptOptions()
    assert settings["sharpness"] == fuse.sharpness and settings["candidates"] == fuse.candidates
    assert settings["rank"] == adapt.rank == 2
    assert "learning_rate" not in settings, "the kind of task decides it"
