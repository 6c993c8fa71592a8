import msgspec
import pytest

from state import spec
from state.spec import Category, Features, Number, Place, Recent, Statistic

USER, ITEM = Category(name="user", source="user_id"), Category(name="item", source="item_id")
GENRES = Category(name="genres", source="item.genres", max_values=6)
RATE = Statistic(name="item_rate", key=("item",), kind="rate")
CLICK = ("click",)


def sequence(source: str, share: str = "", nth: int = 1) -> Category:
    return Category(name="lately", source=source, max_values=5, share=share, nth=nth)


def features(**groups: object) -> Features:
    return Features(**{"categories": (USER, ITEM, GENRES), **groups})  # type: ignore[arg-type]


def test_a_multi_valued_category_takes_as_many_columns_as_it_has_values() -> None:
    columns = spec.id_columns(features(categories=(USER, GENRES, ITEM)))
    assert [(c.name, c.start, c.width) for c in columns] == [("user", 0, 1), ("genres", 1, 6), ("item", 7, 1)]
    assert spec.id_width(features(categories=(USER, GENRES, ITEM))) == 8


def test_number_columns_are_numbers_statistics_recent_and_places_in_that_order() -> None:
    declared = features(
        places=(Place(name="place", of="item_rate"),),
        recent=(Recent(name="lately"),),
        statistics=(RATE,),
        numbers=(Number(name="year", source="item.year"),),
    )
    assert spec.number_names(declared) == ("year", "item_rate", "lately", "place")


def test_the_fingerprint_changes_with_everything_that_changes_a_sample() -> None:
    base = features(statistics=(RATE,))
    others = [
        (features(statistics=(msgspec.structs.replace(RATE, prior=11.0),)), CLICK),
        (features(categories=(ITEM, USER, GENRES), statistics=(RATE,)), CLICK),
        (base, ("click", "view")),
        (features(), CLICK),
        (features(categories=(ITEM, sequence("recent.item"))), CLICK),
        (features(categories=(ITEM, sequence("recent.item", "item"))), CLICK),
        (features(categories=(GENRES, sequence("recent.genres"))), CLICK),
        (features(categories=(GENRES, sequence("recent.genres", nth=2))), CLICK),
    ]
    seen = {spec.fingerprint(*each) for each in [(base, CLICK), *others]}
    assert len(seen) == 9
    assert spec.fingerprint(features(statistics=(RATE,)), CLICK) == spec.fingerprint(base, CLICK)


def test_the_fingerprint_of_a_known_spec_never_changes() -> None:
    assert spec.fingerprint(Features(categories=(USER, ITEM)), CLICK) == "fc0324b1bf0ba04e"


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"numbers": (Number(name="user", source="item.x"),)}, '"user" is declared twice'),
        ({"statistics": (Statistic(name="s", key=("page",), kind="rate"),)}, 'key "page" is unknown; allowed: genres, item'),
        ({"statistics": (Statistic(name="s", key=(), kind="rate", action="buy"),)}, 'action "buy" is unknown; allowed: click'),
        ({"statistics": (Statistic(name="s", key=(), kind="rate", toward="t"),)}, 'toward "t" is no rate declared before it'),
        ({"statistics": (Statistic(name="s", key=(), kind="residual"),)}, "a residual needs `over`"),
        (
            {"statistics": (Statistic(name="s", key=(), kind="residual", over="item_rate"), RATE)},
            'over "item_rate" is no rate declared before it',
        ),
        ({"recent": (Recent(name="r", match="brand"),)}, 'match "brand" is unknown; allowed: any, item, genres'),
        ({"recent": (Recent(name="r", action="buy"),)}, 'action "buy" is unknown; allowed: any, click'),
        ({"places": (Place(name="p", of="price"),)}, '"price" is no number or statistic'),
        ({"categories": (ITEM, sequence("recent.brand"))}, '"recent.brand" is not kept of an action; allowed: item, kind, age'),
        (
            {"categories": (ITEM, GENRES, sequence("recent.genres", nth=7))},
            'nth 7 is beyond the values of "recent.genres"; allowed: up to 6',
        ),
        ({"categories": (ITEM, sequence("recent.item", nth=2))}, 'nth 2 is beyond the values of "recent.item"; allowed: up to 1'),
        ({"categories": (msgspec.structs.replace(ITEM, nth=2),)}, 'nth 2 is beyond the values of "item_id"; allowed: up to 1'),
        (
            {"categories": (Category(name="many", source="item.x", max_values=33),)},
            "33 is for last actions only; allowed: up to 32",
        ),
        ({"categories": (sequence("recent.item", "item"), ITEM)}, 'share "item" is no category before it'),
        (
            {"categories": (ITEM, sequence("recent.item")), "statistics": (Statistic(name="s", key=("lately",), kind="rate"),)},
            'key "lately" is unknown; allowed: item, scenario, user',
        ),
    ],
)
def test_an_impossible_combination_is_named_with_what_is_allowed(groups: dict[str, object], words: str) -> None:
    assert words in spec.problem(features(**groups), CLICK)


def test_a_possible_combination_has_no_problem() -> None:
    declared = features(
        statistics=(RATE, Statistic(name="s", key=("item", "genres"), kind="residual", over="item_rate", window="last")),
        recent=(Recent(name="r", match="genres", action="click"),),
        places=(Place(name="p", of="s"),),
    )
    assert spec.problem(declared, CLICK) == ""


@pytest.mark.parametrize("source", ["user_id", "scenario", "position", "item.price", "context.Device_1", "recent.item"])
def test_sources_that_exist(source: str) -> None:
    assert msgspec.convert({"name": "a", "source": source}, Category).source == source


@pytest.mark.parametrize("source", ["price", "item.", "item.a.b", "request.x", "", "item.1x"])
def test_sources_that_do_not_exist_are_refused(source: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "a", "source": source}, Category)
