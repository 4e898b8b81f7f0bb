import numpy as np
import pytest

from bgs.data.cleaning import CHOICE_NOT_SHOWN, MISSING_VALUE, REPEATED_ITEM, CleaningReport
from bgs.data.formats.delimited import Columns, find_columns, read_delimited, write_csv
from bgs.data.judgments import Judgments


def written(tmp_path, *lines, name="judgments.csv"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def named(judgments):
    return [tuple(judgments.items[row] for row in triplet) for triplet in judgments.triplets]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            "triplet_id,participation,task,trial,stim1_name,stim2_name,stim3_name,choice,response_time,token",
            Columns(("stim1_name", "stim2_name", "stim3_name"), "choice", "participation"),
        ),
        ("image3,image2,image1,odd", Columns(("image1", "image2", "image3"), "odd", None)),
        ("Item0,Item1,Item2,Response,WorkerID", Columns(("Item0", "Item1", "Item2"), "Response", "WorkerID")),
        ("s1,s2,s3,rt10,rt20,odd_one_out,subject", Columns(("s1", "s2", "s3"), "odd_one_out", "subject")),
    ],
)
def test_columns_are_found(tmp_path, header, expected):
    assert find_columns(written(tmp_path, header)) == expected


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("a,b,c,choice", r"no three numbered columns among 'a', 'b', 'c', 'choice'; name .* \(items\)"),
        ("s1,s2,s3,t1,t2,t3,choice", "2 sets of three numbered columns"),
        ("s1,s2,s3,s4,choice", "no three numbered columns"),
        ("s1,s2,s3,picked", "no columns look like the choice .*choice"),
        ("s1,s2,s3,choice,response", "2 columns look like the choice"),
        ("s1,s2,s3,choice,worker,subject", "'worker', 'subject' all look like the participant; .*column"),
    ],
)
def test_columns_that_cannot_be_told_are_asked_for(tmp_path, header, message):
    with pytest.raises(ValueError, match=message):
        find_columns(written(tmp_path, header))


def test_columns_can_be_named(tmp_path):
    path = written(tmp_path, "left,mid,right,picked,who,s1,s2,s3,choice", "x,y,z,y,p,,,,")
    judgments = read_delimited(path, items=("left", "mid", "right"), choice="picked", participant="who")
    assert named(judgments) == [("x", "z", "y")]
    assert judgments.participant_names == ("p",)


def test_wrong_column_names(tmp_path):
    path = written(tmp_path, "s1,s2,s3,choice", "a,b,c,a")
    with pytest.raises(ValueError, match="no column 'picked'"):
        read_delimited(path, choice="picked")
    with pytest.raises(ValueError, match=r"items: 's1', expected the names of three columns"):
        read_delimited(path, items="s1")


def test_items_by_name_and_choice_by_name(tmp_path):
    path = written(tmp_path, "s1,s2,s3,choice,subject", "dog,cat,ant,cat,7", "ant,bee,dog,ant,9", "cat,bee,ant,ant,7")
    judgments = read_delimited(path)
    assert judgments.items == ("ant", "bee", "cat", "dog")
    assert named(judgments) == [("dog", "ant", "cat"), ("bee", "dog", "ant"), ("cat", "bee", "ant")]
    assert judgments.participant_names == ("7", "9")
    assert judgments.participants.tolist() == [0, 1, 0]
    assert judgments.cleaning == CleaningReport(3, 3)


def test_items_by_number_are_ordered_as_numbers(tmp_path):
    judgments = read_delimited(written(tmp_path, "s1,s2,s3,choice", "10,9,100,9", "8,10,9,8"))
    assert judgments.items == ("8", "9", "10", "100")
    assert named(judgments) == [("10", "100", "9"), ("10", "9", "8")]
    assert judgments.participants is None


def test_integers_saved_as_floats_are_the_same_items(tmp_path):
    judgments = read_delimited(written(tmp_path, "s1,s2,s3,choice", "10.0,9,11,9.0", "10,9.0,11,10", ",9,11,9"))
    assert judgments.items == ("9", "10", "11")
    assert named(judgments) == [("10", "11", "9"), ("9", "11", "10")]
    assert judgments.cleaning.dropped == {MISSING_VALUE: 1}


@pytest.mark.parametrize(("first", "one_indexed"), [(0, None), (1, None), (0, False), (1, True)])
def test_choice_by_position(tmp_path, first, one_indexed):
    path = written(tmp_path, "s1,s2,s3,choice", *(f"dog,cat,ant,{first + place}" for place in (0, 1, 2)))
    judgments = read_delimited(path, one_indexed=one_indexed)
    assert named(judgments) == [("cat", "ant", "dog"), ("dog", "ant", "cat"), ("dog", "cat", "ant")]


def test_positions_without_first_or_last_need_the_argument(tmp_path):
    path = written(tmp_path, "s1,s2,s3,choice", "dog,cat,ant,1", "dog,cat,ant,2")
    with pytest.raises(ValueError, match=r"positions with neither 0 nor 3 .* starts at 1 \(one_indexed\)"):
        read_delimited(path)
    assert named(read_delimited(path, one_indexed=True)) == [("cat", "ant", "dog"), ("dog", "ant", "cat")]
    assert named(read_delimited(path, one_indexed=False)) == [("dog", "ant", "cat"), ("dog", "cat", "ant")]


def test_positions_with_first_and_last_need_the_argument(tmp_path):
    path = written(tmp_path, "s1,s2,s3,choice", "dog,cat,ant,0", "dog,cat,ant,3", "dog,cat,ant,1")
    with pytest.raises(ValueError, match="positions with both 0 and 3"):
        read_delimited(path)
    judgments = read_delimited(path, one_indexed=True)
    assert named(judgments) == [("dog", "cat", "ant"), ("cat", "ant", "dog")]
    assert judgments.cleaning.dropped == {CHOICE_NOT_SHOWN: 1}


def test_many_numbered_items_leave_no_doubt_about_positions(tmp_path):
    generator = np.random.default_rng(0)
    shown = np.array([generator.choice(250, 3, replace=False) for _ in range(500)])
    places = generator.integers(0, 3, 500)
    rows = [f"{a},{b},{c},{place + 1}" for (a, b, c), place in zip(shown.tolist(), places.tolist(), strict=True)]
    judgments = read_delimited(written(tmp_path, "s1,s2,s3,choice", *rows))
    assert [triplet[2] for triplet in named(judgments)] == [
        str(triplet[place]) for triplet, place in zip(shown, places, strict=True)
    ]


def test_small_numbers_that_may_be_items_or_positions_need_the_argument(tmp_path):
    path = written(tmp_path, "s1,s2,s3,choice", "1,2,3,3", "3,2,1,1", "2,1,3,2")
    with pytest.raises(ValueError, match="both the items of most rows and positions; say which with choice_is="):
        read_delimited(path)
    assert named(read_delimited(path, choice_is="item"))[1] == ("3", "2", "1")
    assert named(read_delimited(path, choice_is="position"))[1] == ("2", "1", "3")


def test_a_choice_that_is_neither_item_nor_position(tmp_path):
    path = written(tmp_path, "s1,s2,s3,choice", "dog,cat,ant,left", "dog,cat,ant,right")
    with pytest.raises(ValueError, match="'choice' holds neither the items of most rows nor positions 0-3"):
        read_delimited(path)
    with pytest.raises(ValueError, match="row 2, column 'choice': 'left', expected an integer"):
        read_delimited(path, choice_is="position")


def test_arguments_that_contradict(tmp_path):
    path = written(tmp_path, "s1,s2,s3,choice", "dog,cat,ant,dog")
    with pytest.raises(ValueError, match="one_indexed: True, but .* names the chosen item"):
        read_delimited(path, one_indexed=True)
    with pytest.raises(ValueError, match="choice_is: 'name', expected 'item' or 'position'"):
        read_delimited(path, choice_is="name")


def test_malformed_rows_are_dropped_and_counted(tmp_path):
    path = written(
        tmp_path,
        "s1,s2,s3,choice,subject",
        "dog,cat,ant,cat,p",
        "dog,cat,,cat,p",
        "dog,cat,ant,NA,p",
        "dog,cat,ant,cat,",
        "dog,cat,ant",
        "dog,dog,ant,ant,p",
        "dog,cat,ant,bee,q",
        "dog,cat,ant,cow,q",
        "cow,cat,ant,cow,q",
    )
    judgments = read_delimited(path)
    assert named(judgments) == [("dog", "ant", "cat"), ("cat", "ant", "cow")]
    assert judgments.participants.tolist() == [0, 1]
    assert judgments.cleaning == CleaningReport(9, 2, {MISSING_VALUE: 4, REPEATED_ITEM: 1, CHOICE_NOT_SHOWN: 2})


def test_the_same_judgment_given_twice_is_kept(tmp_path):
    judgments = read_delimited(written(tmp_path, "s1,s2,s3,choice,subject", *["dog,cat,ant,cat,p"] * 2))
    assert len(judgments) == 2


def test_rows_that_all_lack_a_choice(tmp_path):
    judgments = read_delimited(written(tmp_path, "s1,s2,s3,choice", "dog,cat,ant,"))
    assert len(judgments) == 0
    assert judgments.cleaning.dropped == {MISSING_VALUE: 1}


def test_what_is_written_is_read_again(tmp_path):
    generator = np.random.default_rng(0)
    items = tuple(f'clip, "{number:02d}".mp4' for number in range(12))
    triplets = np.array([generator.choice(12, 3, replace=False) for _ in range(60)])
    judgments = Judgments(items, triplets, generator.integers(0, 3, 60), ("p", "q é", "r"))
    path = tmp_path / "copy.csv"
    write_csv(judgments, path)
    again = read_delimited(path)
    assert again.items == items
    assert (again.triplets == triplets).all()
    assert [again.participant_names[who] for who in again.participants] == [
        judgments.participant_names[who] for who in judgments.participants
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_judgments_of_nobody_are_written_without_participants(tmp_path):
    path = tmp_path / "copy.csv"
    write_csv(Judgments(tuple("abcd"), np.array([[0, 1, 2], [3, 1, 0]])), path)
    assert path.read_text().splitlines() == ["item1,item2,item3,choice", "a,b,c,c", "d,b,a,a"]
    assert read_delimited(path).participants is None
