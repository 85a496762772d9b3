import pytest

from carvana.log import read_records, replacing, write_records


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()

    def break_off() -> None:
        with replacing(path) as temporary:
            temporary.write_text("second")
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        break_off()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_records_come_back(tmp_path):
    assert read_records(tmp_path / "log.jsonl") == []
    records = [{"epoch": 1, "dice": 0.5}, {"epoch": 2, "dice": 0.75}]
    write_records(tmp_path / "log.jsonl", records)
    assert read_records(tmp_path / "log.jsonl") == records
