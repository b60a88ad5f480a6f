"""Lines of JSON that a run goes on with: as they were written, whatever characters they hold."""

import json

from hypothesis import given
from hypothesis import strategies as st

from slmjax.training.reporting.metrics import drop_lines_after, read_metrics

SEPARATORS = st.text(st.sampled_from('a\u2028\u2029\u0085\x0b\x0c\x1c\r\n"\\é日'), max_size=8)


@given(st.lists(st.tuples(st.integers(0, 9), SEPARATORS)), st.integers(-1, 9))
def test_the_lines_of_later_steps_are_dropped_and_no_others(tmp_path_factory, records, last):
    path = tmp_path_factory.mktemp("lines") / "samples.jsonl"
    lines = [json.dumps({"step": step, "answer": text}, ensure_ascii=False) for step, text in records]
    path.write_text("".join(line + "\n" for line in lines) + '{"step": 0, "cut sho', encoding="utf-8")
    drop_lines_after(path, last)
    kept = [line for line, (step, _) in zip(lines, records, strict=True) if step <= last]
    assert path.read_bytes() == "".join(line + "\n" for line in kept).encode()
    assert [line["answer"] for line in read_metrics(path)] == [text for step, text in records if step <= last]
