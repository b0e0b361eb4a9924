"""Summaries side by side."""

import pandas as pd

from pipeline.report.examples import as_html, as_markdown, sections


def test_examples_are_escaped():
    row = {
        "model": "m", "task": "t", "document": "<b>&", "train_sparsity": None, "rougeL": 1.0,
        "new_tokens": 3, "reference": "<script>alert(1)</script> & *x*",
    }  # fmt: skip
    tables = [
        pd.DataFrame([row | {"method": "full", "policy": None, "sparsity": None, "text": ""}]),
        pd.DataFrame(
            [
                row
                | {"method": "baseline_plus", "policy": "h2o", "sparsity": 0.1, "text": "<i>\n- a"}
            ]
        ),
    ]
    found = list(sections(tables, 3))
    page, text = as_html(found, "note"), as_markdown(found, "note")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; *x*" in page
    assert "&lt;i&gt;" in page
    assert not {"http", "src=", "href="} & set(page.split('"')), "nothing external"
    assert r"> \<script\>alert(1)\</script\> &amp; \*x\*" in text
    assert "(empty)" in text
