import pytest

from megatron_octo.recipe.rl import LengthAlarm
from megatron_octo.rl.watch import Alarm, append_record
from megatron_octo.runtime.records import read_records, truncate_records


def record(step, length=100.0, truncated=0.0):
    return {"step": step, "response_length": length, "truncated_share": truncated}


def test_the_alarm_goes_off_when_responses_grow():
    alarm = Alarm(LengthAlarm(window=2, growth=3.0))
    assert [alarm.observe(record(i, length)) for i, length in enumerate((100, 100, 200, 300))] == [None] * 4
    assert alarm.observe(record(4, 320.0)) == "responses grew from 100 to 310 tokens (alarm.growth 3.0)"


def test_the_alarm_goes_off_when_responses_are_cut():
    alarm = Alarm(LengthAlarm(window=2, truncated_share=0.5))
    assert [alarm.observe(record(i, truncated=share)) for i, share in enumerate((0.9, 0.1))] == [None, None]
    assert (
        alarm.observe(record(2, truncated=1.0)) == "55% of responses are cut at their limit (alarm.truncated_share 0.5)"
    )


def test_a_restart_remembers_the_first_steps():
    alarm = Alarm(LengthAlarm(window=2, growth=3.0), [record(0), record(1)])
    alarm.observe(record(2, 400.0))
    assert alarm.observe(record(3, 400.0)) is not None


def test_a_resume_drops_the_steps_it_takes_again_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_record(path, record(step))
    with open(path, "a") as file:
        file.write('{"step": 4, "resp')
    assert [r["step"] for r in read_records(path)] == [1, 2, 3]
    assert [r["step"] for r in truncate_records(path, 2).kept] == [1, 2]
    append_record(path, record(3))
    assert [r["step"] for r in read_records(path)] == [1, 2, 3]


def test_no_records_before_the_first_step(tmp_path):
    assert truncate_records(tmp_path / "metrics.jsonl", 0).kept == []
    with pytest.raises(FileNotFoundError):
        append_record(tmp_path / "absent" / "metrics.jsonl", record(1))
