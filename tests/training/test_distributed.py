from gpu.steps import check_two_processes


def test_two_processes_take_the_step_of_one_with_all_their_photos(tmp_path):
    check_two_processes(tmp_path)
