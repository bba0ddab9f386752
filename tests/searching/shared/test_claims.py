"""The order of claims decides, the same for every worker."""

from hypothesis import given
from hypothesis import strategies as st

from shears.adapt.space import RankConfig
from shears.searching.shared.claims import Claim, State, Tally
from shears.searching.strategies.base import LOSS, Evaluated
from tests.searching.formulas import make_space

SPACE = make_space(2, (3, 2, 1))
CONFIGS = [RankConfig({**SPACE.heuristic(), "layers.0.up_proj": rank}) for rank in (1, 2, 3)]
A, B, C = CONFIGS
claims_of_anyone = st.lists(
    st.tuples(st.sampled_from(CONFIGS), st.sampled_from(State), st.sampled_from(["x", "y"])), max_size=12
).map(
    lambda some: [
        Claim(number, ranks, state, worker, metrics={"loss": float(number), "parameters": 1})
        for number, (ranks, state, worker) in enumerate(some)
    ]
)


def tally(*claims: tuple[RankConfig, State]) -> Tally:
    made = [Claim(n, ranks, state, metrics={"loss": n, "parameters": 1}) for n, (ranks, state) in enumerate(claims)]
    return Tally(LOSS).with_claims(made)


def test_of_two_claims_the_first_holds() -> None:
    counted = tally((A, State.RUNNING), (A, State.RUNNING))
    holder = counted.holder(A, 9)
    assert holder is not None
    assert holder.ident == 0


def test_the_second_holds_when_the_first_is_withdrawn_or_its_worker_died() -> None:
    for state in (State.WITHDRAWN, State.ABANDONED):
        holder = tally((A, state), (A, State.RUNNING)).holder(A, 9)
        assert holder is not None
        assert holder.ident == 1


def test_a_claim_beyond_the_budget_holds_nothing() -> None:
    counted = tally((A, State.COMPLETE), (B, State.RUNNING), (C, State.RUNNING))
    assert counted.holder(B, 2) is not None
    assert counted.holder(C, 2) is None


def test_what_a_dead_worker_had_begun_keeps_its_place_in_the_budget() -> None:
    counted = tally((A, State.ABANDONED), (B, State.COMPLETE), (C, State.RUNNING))
    assert counted.to_retry(2) == [A]
    assert counted.holder(C, 2) is None


def test_what_is_retried_is_in_the_history_where_it_was_first_claimed() -> None:
    counted = tally((A, State.ABANDONED), (B, State.COMPLETE), (A, State.COMPLETE))
    assert [e.ranks for e in counted.history] == [e.ranks for e in counted.evaluations] == [A, B]


def test_a_configuration_proposed_again_is_in_the_history_again_and_counts_as_a_repeat() -> None:
    counted = tally((A, State.COMPLETE), (B, State.COMPLETE), (A, State.REPEAT), (B, State.COMPLETE))
    assert [e.ranks for e in counted.history] == [A, B, A, B]
    assert counted.num_repeats == 2
    assert counted.known[B].metrics["loss"] == 1, "the first figures stay"


def test_repeats_are_counted_from_the_last_new_figures_whatever_is_pending() -> None:
    assert tally((A, State.COMPLETE), (A, State.REPEAT), (B, State.COMPLETE)).num_repeats == 0
    assert tally((A, State.COMPLETE), (A, State.REPEAT), (B, State.RUNNING), (A, State.REPEAT)).num_repeats == 2


def test_a_strategy_is_told_that_what_others_evaluate_is_the_worst_so_far() -> None:
    counted = tally((A, State.COMPLETE), (B, State.RUNNING), (C, State.COMPLETE))
    assert [e.ranks for e in counted.with_lies()] == [A, B, C]
    assert counted.with_lies()[1] == Evaluated(B, counted.known[C].metrics)
    assert [e.ranks for e in counted.with_lies(but=[B])] == [e.ranks for e in counted.history] == [A, C]


def test_nobody_knows_what_is_worst_before_anything_is_known() -> None:
    assert tally((A, State.RUNNING)).with_lies() == []


@given(claims_of_anyone, st.integers(0, 12), st.integers(1, 3))
def test_counting_in_parts_is_counting_at_once(claims: list[Claim], cut: int, budget: int) -> None:
    whole, parts = Tally(LOSS).with_claims(claims), Tally(LOSS).with_claims(claims[:cut]).with_claims(claims[cut:])
    assert whole == parts
    assert [whole.holder(r, budget) for r in CONFIGS] == [parts.holder(r, budget) for r in CONFIGS]


@given(claims_of_anyone, st.integers(1, 3))
def test_no_configuration_is_known_and_claimed_and_never_more_than_the_budget(claims: list[Claim], budget: int) -> None:
    counted = Tally(LOSS).with_claims(claims)
    holding = [ranks for ranks in CONFIGS if counted.holder(ranks, budget)]
    retried = counted.to_retry(budget)
    assert not (set(holding) | set(retried)) & set(counted.known)
    assert not set(holding) & set(retried)
    assert len({*holding, *retried, *(r for r, place in counted.places.items() if place < budget)}) <= budget


@given(claims_of_anyone)
def test_whoever_reads_on_never_takes_a_valid_claim_away(claims: list[Claim]) -> None:
    """A worker that holds a configuration holds it whatever others claim later, until it gives it up itself."""
    before = Tally(LOSS).with_claims(claims)
    held = {ranks: before.holder(ranks, 2) for ranks in CONFIGS}
    later = before.with_claims(
        Claim(100 + number, ranks, State.RUNNING, "z") for number, ranks in enumerate([*CONFIGS, *CONFIGS])
    )
    for ranks, claim in held.items():
        assert claim is None or later.holder(ranks, 2) == claim
