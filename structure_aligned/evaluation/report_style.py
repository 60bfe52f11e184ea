"""How the page of a report looks: one style sheet, readable on a phone and in print."""

from __future__ import annotations


CSS = """
:root { --ink: #24292f; --soft: #57606a; --line: #d8dee4; --head: #f3f5f7; --link: #0b62a8; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 72rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.6rem 0; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 0.5rem; padding-top: 0.5rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 0.4rem; }
p, li { max-width: 48rem; overflow-wrap: anywhere; }
p.soft, figcaption, caption, .soft { color: var(--soft); font-size: 0.9rem; }
nav { font-size: 0.9rem; margin: 0.6rem 0; }
nav a { color: var(--link); margin-right: 0.9rem; white-space: nowrap; display: inline-block; padding: 0.15rem 0; }
.scroll { overflow-x: auto; margin: 0.6rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { background: var(--head); font-weight: 600; white-space: nowrap; }
th.number, td.number { text-align: right; white-space: nowrap; }
tbody th { font-weight: 400; min-width: 11rem; }
td.break { overflow-wrap: anywhere; min-width: 12rem; }
.verdict { white-space: nowrap; font-weight: 600; }
.better { color: #05603a; } .worse { color: #a8260b; } .neutral { color: var(--soft); font-weight: 400; }
.why { color: var(--soft); font-size: 0.85em; white-space: normal; display: block; font-weight: 400; }
td.verdict .why { min-width: 8rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem;
  margin: 0.8rem 0; align-items: start; }
.wide { max-width: 42rem; }
figure { margin: 0; min-width: 0; }
img { max-width: 100%; height: auto; display: block; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 0.85em; overflow-wrap: anywhere; }
pre { background: var(--head); padding: 0.7rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
.problem { border-left: 4px solid #a8260b; padding: 0.3rem 0.8rem; background: #fdf1ee; }
details > summary { cursor: pointer; padding: 0.4rem 0; color: var(--link); }
@media (max-width: 600px) {
  body { padding: 0.6rem 0.7rem 3rem; }
  h1 { font-size: 1.4rem; }
  th, td { padding: 0.35rem 0.45rem; }
  tbody th { min-width: 9rem; }
}
@media print { .scroll { overflow: visible; } figure, tr { break-inside: avoid; } }
""".strip()
