import hashlib
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from storage.shards import MAX_BYTES, Shard, shard_key, shards, tiles

MB = 2**20

# Ids as data sets have them, dense so that runs of more than 64 without an end occur, and any text at all.
numbered = st.sets(st.integers(0, 1500), max_size=300).map(lambda numbers: {f"{number:06d}" for number in numbers})
image_ids = numbered | st.sets(st.text(max_size=6), max_size=40)
sizes = st.sampled_from([0, 1, 4 * MB, 5 * MB, 16 * MB, 25 * MB, 51 * MB, 100 * MB, 255 * MB, 256 * MB, 900 * MB])


def hash_of(image_id: str) -> int:
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "little")


ENDLESS = [i for i in (f"{number:06d}" for number in range(600)) if hash_of(i) % 16]
"""No run of these ends by itself."""


def digests_of(ids) -> dict[str, str]:
    return {image_id: f"digest of {image_id}" for image_id in ids}


def limit_of(size: int) -> int:
    """How many images of ``size`` bytes make a shard, the last one being that with which it reaches 256 MB."""
    count, total = 0, 0
    while total < 256 * MB and count < 64:
        count, total = count + 1, total + size
    return count


def cut_slowly(ids, limit: int) -> list[tuple[str, ...]]:
    """Every gap between two ids looked at by itself.

    A gap is as strong as the id before it has a small hash; there is a cut if that is 0 mod 16, or if more than
    ``limit`` ids lie between the next stronger gaps (or ends of the run) on both its sides.
    """
    ids = sorted(ids)
    ends = [-1, *(i for i, image_id in enumerate(ids) if hash_of(image_id) % 16 == 0), len(ids) - 1]
    cuts = {end for end in ends if end >= 0}
    for gap in range(len(ids) - 1):
        low = max(end for end in ends if end <= gap)
        high = min(end for end in ends if end >= gap)
        if low == gap:
            continue
        stronger = [g for g in range(low + 1, high) if hash_of(ids[g]) < hash_of(ids[gap])]
        left = max([low, *(g for g in stronger if g < gap)])
        right = min([high, *(g for g in stronger if g > gap)])
        if right - left > limit:
            cuts.add(gap)
    starts = [0, *(cut + 1 for cut in sorted(cuts))]
    return [tuple(ids[a:b]) for a, b in pairwise(starts)]


@given(image_ids, sizes)
@example(set(ENDLESS), 16 * MB)
@example(set(ENDLESS), 1)
def test_the_cuts_are_those_of_the_slow_rule(ids, size):
    assert [shard.image_ids for shard in shards(digests_of(ids), size)] == cut_slowly(ids, limit_of(size))


@given(image_ids)
@example(set(ENDLESS))
def test_tiles_are_the_shards_of_small_rows(ids):
    assert tiles(ids) == [shard.image_ids for shard in shards(digests_of(ids), 1)]


@given(image_ids, sizes)
@example(set(ENDLESS), 0)
def test_every_image_is_in_one_shard_and_all_are_sorted(ids, size):
    made = shards(digests_of(ids), size)
    assert [image_id for shard in made for image_id in shard.image_ids] == sorted(ids)
    assert all(shard.image_ids for shard in made)
    assert len({shard.key for shard in made}) == len(made)


@given(image_ids, sizes)
@example(set(ENDLESS), 4 * MB)
def test_a_shard_is_bounded_in_images_and_bytes(ids, size):
    for shard in shards(digests_of(ids), size):
        assert len(shard.image_ids) <= 64
        assert (len(shard.image_ids) - 1) * size < MAX_BYTES == 256 * MB


def test_images_larger_than_the_limit_are_shards_of_their_own():
    assert all(len(shard.image_ids) == 1 for shard in shards(digests_of(ENDLESS), 256 * MB))
    assert any(len(shard.image_ids) == 2 for shard in shards(digests_of(ENDLESS), 255 * MB))


def test_no_images_make_no_shards():
    assert shards({}, 1) == []
    assert tiles([]) == []


@given(st.data(), image_ids, sizes)
def test_the_order_in_which_images_are_named_does_not_matter(data, ids, size):
    digests = digests_of(ids)
    other = {image_id: digests[image_id] for image_id in data.draw(st.permutations(sorted(ids)))}
    assert shards(other, size) == shards(digests, size)


@given(image_ids.filter(bool), sizes, st.data())
@example(set(ENDLESS), 25 * MB, None)
def test_an_added_image_makes_at_most_two_new_shards(ids, size, data):
    """And all that is renamed lies between the ends of the run that the image falls into."""
    added = "000300+"
    if data is not None:
        added = data.draw(st.sampled_from(sorted(ids))) + data.draw(st.text("+x", min_size=1))
    old = shards(digests_of(ids - {added}), size)
    new = shards(digests_of(ids | {added}), size)
    fresh = set(new) - set(old)
    assert len(fresh) <= 2
    assert sum(added in shard.image_ids for shard in fresh) == 1
    ends = [image_id for image_id in sorted(ids - {added}) if hash_of(image_id) % 16 == 0]
    low = max((end for end in ends if end < added), default=None)
    high = min((end for end in ends if end > added), default=None)
    for shard in fresh | (set(old) - set(new)):
        assert low is None or shard.image_ids[0] > low
        assert high is None or shard.image_ids[-1] <= high


def test_an_added_image_mostly_makes_one_new_shard():
    ids = {f"{number:06d}" for number in range(0, 4000, 2)}
    old = set(shards(digests_of(ids), 51 * MB))
    fresh = [len(set(shards(digests_of(ids | {f"{n:06d}"}), 51 * MB)) - old) for n in range(1, 4000, 80)]
    assert sum(fresh) / len(fresh) < 1.75
    assert min(fresh) == 1


@given(image_ids.filter(bool), sizes, st.data())
def test_a_mended_image_renames_its_shard_alone(ids, size, data):
    mended = data.draw(st.sampled_from(sorted(ids)))
    old = shards(digests_of(ids), size)
    new = shards({**digests_of(ids), mended: "another"}, size)
    assert [shard.image_ids for shard in new] == [shard.image_ids for shard in old]
    for before, after in zip(old, new, strict=True):
        assert (before.key == after.key) == (mended not in before.image_ids)


@given(image_ids, sizes, sizes)
@example(set(ENDLESS), 5 * MB, 6 * MB)
@example(set(ENDLESS), 25 * MB, 51 * MB)
def test_shards_of_larger_rows_lie_within_those_of_smaller_ones(ids, one, other):
    small, large = sorted((one, other))
    holder = {image_id: shard.key for shard in shards(digests_of(ids), small) for image_id in shard.image_ids}
    for shard in shards(digests_of(ids), large):
        assert len({holder[image_id] for image_id in shard.image_ids}) == 1


def test_a_key_is_that_of_the_pairs():
    text = b"".join(len(part).to_bytes(8, "little") + part for part in (b"a", b"1", b"b", b"2"))
    assert shard_key([("a", "1"), ("b", "2")]) == hashlib.sha256(text).hexdigest()[:16]
    assert shard_key([("a", "1"), ("b", "2")]) != shard_key([("a", "12"), ("b", "")])


def test_shards_never_change():
    """Whoever changes this makes every stored shard unknown to its dataset."""
    made = shards({f"{number:06d}": f"sha256:{number}" for number in range(30)}, 51 * MB)
    assert [(shard.key, shard.image_ids[0], len(shard.image_ids)) for shard in made] == [
        ("8427d008de8de049", "000000", 1),
        ("f7ea17d9fd3abf72", "000001", 3),
        ("b01660ef8ac7adfc", "000004", 5),
        ("ea2f2d8d4440eb1d", "000009", 3),
        ("f9d5a55ec46f78f8", "000012", 6),
        ("363e074ff1060c93", "000018", 3),
        ("15f86df8d4fd7b60", "000021", 2),
        ("4e5cf8a47fcb1d72", "000023", 2),
        ("f167392198c6430c", "000025", 5),
    ]
    assert isinstance(made[0], Shard)
