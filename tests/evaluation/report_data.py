"""Results of made-up models, planted at the level of rows, and a reader that judges a page."""

from html.parser import HTMLParser

import numpy as np


VOID = {"meta", "img", "br", "link", "hr", "input"}


def fitness_result(values, **more):
    rows = [
        {"id": f"assay{index}", "num_residues": 50, "n": 100, "spearman": value, "undefined": {}}
        for index, value in enumerate(values)
    ]
    rows = [
        row | ({"spearman": None, "undefined": {"spearman": "all scores are the same"}} if np.isnan(value) else {})
        for row, value in zip(rows, values)
    ]
    return {"tables": {"fitness": rows}, "seconds": 1.0, "date": "today", "hardware": "paper"} | more


def perplexity_result(values):
    rows = [{"id": f"protein{index}", "log_perplexity": value} for index, value in enumerate(values)]
    return {"tables": {"natural, one-by-one": rows}}


class Page(HTMLParser):
    """Collects what is wrong with a page's tags, and all of its addresses and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.problems, self.addresses, self.tags, self.texts = [], [], [], [], []
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is never closed" for tag in self.open]
        self.text = "".join(self.texts)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> at {self.getpos()} closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)
