"""The order of claims decides, the same for every worker."""

from hypothesis import given
from hypothesis import strategies as st

from shears.adapt.space import RankConfig
from shears.searching.shared.claims import Claim, ClaimState, StudyState
from shears.searching.strategies.base import LOSS, Evaluated
from tests.searching.formulas import make_space

SPACE = make_space(2, (3, 2, 1))
CONFIGS = [RankConfig({**SPACE.heuristic(), "layers.0.up_proj": rank}) for rank in (1, 2, 3)]
A, B, C = CONFIGS
claims_of_anyone = st.lists(
    st.tuples(st.sampled_from(CONFIGS), st.sampled_from(ClaimState), st.sampled_from(["x", "y"])), max_size=12
).map(
    lambda some: [
        Claim(number, ranks, state, worker, metrics={"loss": float(number), "parameters": 1})
        for number, (ranks, state, worker) in enumerate(some)
    ]
)


def state_after(*claims: tuple[RankConfig, ClaimState]) -> StudyState:
    made = [Claim(n, ranks, state, metrics={"loss": n, "parameters": 1}) for n, (ranks, state) in enumerate(claims)]
    return StudyState.of(LOSS, made)


def test_of_two_claims_the_first_holds() -> None:
    state = state_after((A, ClaimState.RUNNING), (A, ClaimState.RUNNING))
    holder = state.holder(A, 9)
    assert holder is not None
    assert holder.trial_id == 0


def test_the_second_holds_when_the_first_is_withdrawn_or_its_worker_died() -> None:
    for state in (ClaimState.WITHDRAWN, ClaimState.ABANDONED):
        holder = state_after((A, state), (A, ClaimState.RUNNING)).holder(A, 9)
        assert holder is not None
        assert holder.trial_id == 1


def test_a_claim_beyond_the_budget_holds_nothing() -> None:
    state = state_after((A, ClaimState.COMPLETE), (B, ClaimState.RUNNING), (C, ClaimState.RUNNING))
    assert state.holder(B, 2) is not None
    assert state.holder(C, 2) is None


def test_what_a_dead_worker_had_begun_keeps_its_place_in_the_budget() -> None:
    state = state_after((A, ClaimState.ABANDONED), (B, ClaimState.COMPLETE), (C, ClaimState.RUNNING))
    assert state.to_retry(2) == [A]
    assert state.holder(C, 2) is None


def test_what_is_retried_is_in_the_history_where_it_was_first_claimed() -> None:
    state = state_after((A, ClaimState.ABANDONED), (B, ClaimState.COMPLETE), (A, ClaimState.COMPLETE))
    assert [e.ranks for e in state.history] == [e.ranks for e in state.evaluations] == [A, B]


def test_a_configuration_proposed_again_is_in_the_history_again_and_counts_as_a_repeat() -> None:
    state = state_after(
        (A, ClaimState.COMPLETE), (B, ClaimState.COMPLETE), (A, ClaimState.REPEAT), (B, ClaimState.COMPLETE)
    )
    assert [e.ranks for e in state.history] == [A, B, A, B]
    assert state.num_repeats == 2
    assert state.known[B].metrics["loss"] == 1, "the first figures stay"


def test_repeats_are_counted_from_the_last_new_figures_whatever_is_pending() -> None:
    assert state_after((A, ClaimState.COMPLETE), (A, ClaimState.REPEAT), (B, ClaimState.COMPLETE)).num_repeats == 0
    assert (
        state_after(
            (A, ClaimState.COMPLETE), (A, ClaimState.REPEAT), (B, ClaimState.RUNNING), (A, ClaimState.REPEAT)
        ).num_repeats
        == 2
    )


def test_the_constant_liar_gives_pending_configurations_the_worst_figures() -> None:
    state = state_after((A, ClaimState.COMPLETE), (B, ClaimState.RUNNING), (C, ClaimState.COMPLETE))
    assert [e.ranks for e in state.history_with_constant_liar()] == [A, B, C]
    assert state.history_with_constant_liar()[1] == Evaluated(B, state.known[C].metrics)
    assert [e.ranks for e in state.history] == [A, C]


def test_there_is_no_worst_before_anything_is_known() -> None:
    assert state_after((A, ClaimState.RUNNING)).history_with_constant_liar() == []


@given(claims_of_anyone, st.integers(0, 12), st.integers(1, 3))
def test_adding_claims_in_parts_is_adding_them_at_once(claims: list[Claim], cut: int, budget: int) -> None:
    whole = StudyState.of(LOSS, claims)
    parts = StudyState.of(LOSS, claims[:cut])
    for claim in claims[cut:]:
        parts.add(claim)
    assert whole == parts
    assert [whole.holder(r, budget) for r in CONFIGS] == [parts.holder(r, budget) for r in CONFIGS]


@given(claims_of_anyone, st.integers(1, 3))
def test_no_configuration_is_known_and_claimed_and_never_more_than_the_budget(claims: list[Claim], budget: int) -> None:
    state = StudyState.of(LOSS, claims)
    holding = [ranks for ranks in CONFIGS if state.holder(ranks, budget)]
    retried = state.to_retry(budget)
    assert not (set(holding) | set(retried)) & set(state.known)
    assert not set(holding) & set(retried)
    assert len({*holding, *retried, *(r for r, place in state.places.items() if place < budget)}) <= budget


@given(claims_of_anyone)
def test_later_claims_never_take_a_valid_claim_away(claims: list[Claim]) -> None:
    """A worker that holds a configuration holds it whatever others claim later, until it gives it up itself."""
    before = StudyState.of(LOSS, claims)
    held = {ranks: before.holder(ranks, 2) for ranks in CONFIGS}
    later = [Claim(100 + number, ranks, ClaimState.RUNNING, "z") for number, ranks in enumerate([*CONFIGS, *CONFIGS])]
    after = StudyState.of(LOSS, [*claims, *later])
    for ranks, claim in held.items():
        assert claim is None or after.holder(ranks, 2) == claim
