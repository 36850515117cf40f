from labeling.wording import counted


def test_one_is_singular_and_thousands_are_told_apart():
    assert counted(1, "ranking") == "1 ranking"
    assert counted(0, "ranking") == "0 rankings"
    assert counted(1200, "preference pair") == "1,200 preference pairs"
