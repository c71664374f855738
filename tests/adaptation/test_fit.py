from momacli.adaptation.fit import together


def test_tasks_go_together_up_to_a_number_of_samples_and_none_is_left_out():
    parts = [range(8)[part] for part in together([4] * 8, 16)]
    uneven = [range(4)[part] for part in together([30, 1, 2, 14], 16)]

    assert parts == [range(4), range(4, 8)]
    assert uneven == [range(1), range(1, 3), range(3, 4)]
