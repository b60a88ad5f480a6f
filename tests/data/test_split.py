"""The rule that holds documents out: by content alone, equals on one side, something of each source of several."""

from hypothesis import given
from hypothesis import strategies as st

from slmjax.data.split import content_key, held_out_keys, is_held_out, smallest_where_none

documents = st.lists(st.lists(st.binary(max_size=2), max_size=8), max_size=4)


@given(sources=documents, fraction=st.sampled_from([0.0, 0.01, 0.3, 0.9]), seed=st.integers(0, 9), data=st.data())
def test_the_rule(sources, fraction, seed, data):
    keys = [[content_key(document, seed) for document in source] for source in sources]
    held = held_out_keys(keys, fraction)
    every = {key for source in keys for key in source}
    assert held <= every
    assert {key for key in every if is_held_out(key, fraction)} <= held
    for source in keys:
        if fraction and len(set(source)) > 1:
            assert held & set(source)
        if not fraction or (len(set(source)) == 1 and len(keys) == 1 and not is_held_out(source[0], fraction)):
            assert not held & set(source)
    assert len(held - {key for key in every if is_held_out(key, fraction)}) <= len(sources)
    assert held_out_keys([data.draw(st.permutations(source)) for source in keys], fraction) == held
    assert smallest_where_none(keys, 0.0) == set()


def test_the_share_is_the_fraction_and_follows_the_seed():
    contents = [str(number).encode() for number in range(4000)]
    drawn = [{c for c in contents if is_held_out(content_key(c, seed), 0.25)} for seed in (0, 1)]
    assert all(900 < len(chosen) < 1100 for chosen in drawn)
    assert drawn[0] != drawn[1]
